"""Shards side by side in the final files.

    token files ─▶ each copied to its place in <name>.bin, by the rank that made it, without passing through Python
    lengths     ─▶ <name>.idx, streamed by rank 0

A shard's place is known when all shards before it are complete, so one process copies while its workers still encode; ranks of an MPI job
copy most of theirs when the last one has encoded. Nothing is held in memory but a number per shard.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from megamesh.data.preprocessing.folder import WorkFolder
from megamesh.data.preprocessing.shard import Job, ShardFacts
from megamesh.data.store.byte_copy import copy_range
from megamesh.data.store.format import bin_path, idx_path
from megamesh.data.store.writer import write_index


def make_targets(names: Sequence[str], folder: WorkFolder) -> None:
    """Empty .bin files, in a joined/ that holds nothing else; `names` are the outputs' final names without their endings."""
    folder.joined.mkdir(exist_ok=True)
    for left in folder.joined.iterdir():
        left.unlink()
    for name in names:
        bin_path(folder.joined / name).touch()


class _Piece(NamedTuple):
    """A shard's tokens of one output, and where they go in its .bin, in bytes."""

    shard: int
    output: int
    offset: int
    num_bytes: int


class Joiner:
    """Copies the tokens of the shards `mine` to their places in files that `make_targets` has made; use as a context manager."""

    def __init__(self, jobs: Sequence[Job], mine: Sequence[int], names: Sequence[str], folder: WorkFolder):
        self._jobs, self._mine, self._folder = jobs, set(mine), folder
        self._facts: dict[int, ShardFacts] = {}
        self._next = 0  # the first shard whose place is not known
        self._ends = [0] * len(names)
        self._targets = [os.open(bin_path(folder.joined / name), os.O_WRONLY) for name in names]

    def add(self, facts: Mapping[int, ShardFacts], threads: int = 1) -> None:
        """Complete shards, by number; copies those whose places are known now, several at once where there are threads."""
        self._facts.update(facts)
        pieces = list(self._placed())
        if threads == 1:
            for piece in pieces:
                self._copy(piece)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self._copy, pieces))

    def finish(self) -> None:
        """Bring the copies to disk."""
        assert self._next == len(self._jobs), f"{len(self._jobs) - self._next} shards are not complete"
        for target in self._targets:
            os.fsync(target)

    def _placed(self) -> Iterator[_Piece]:
        """The pieces of our shards whose places become known."""
        while self._next in self._facts:
            for number, output in enumerate(self._facts[self._next].outputs):
                if self._next in self._mine:
                    yield _Piece(self._next, number, self._ends[number], output.num_bytes)
                self._ends[number] += output.num_bytes
            self._next += 1

    def _copy(self, piece: _Piece) -> None:
        with self._folder.tokens(self._jobs[piece.shard].identity, piece.output).open("rb") as source:
            copy_range(source.fileno(), self._targets[piece.output], 0, piece.offset, piece.num_bytes)

    def __enter__(self) -> "Joiner":
        return self

    def __exit__(self, *_: object) -> None:
        for target in self._targets:
            os.close(target)


def write_indexes(
    jobs: Sequence[Job], facts: Sequence[ShardFacts], outputs: Mapping[str, np.dtype], folder: WorkFolder
) -> None:
    """The .idx of every output; `outputs`: final names and number formats."""
    documents = sum(fact.documents for fact in facts)
    for number, (name, dtype) in enumerate(outputs.items()):
        write_index(idx_path(folder.joined / name), dtype, _Lengths(jobs, number, folder), documents)


class _Lengths:
    """The lengths of one output's documents, shard by shard; can be gone through again."""

    def __init__(self, jobs: Sequence[Job], output: int, folder: WorkFolder):
        self._paths = [folder.lengths(job.identity, output) for job in jobs]

    def __iter__(self) -> Iterator[np.ndarray]:
        for path in self._paths:
            yield np.fromfile(path, dtype="<i4")
