"""Shards side by side in the final files.

    token files ─▶ each copied to its place in <name>.bin, by the rank that made it, without passing through Python
    lengths     ─▶ <name>.idx, streamed by rank 0

Nothing is held in memory but a number per shard.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megamesh.data.byte_copy import copy_range
from megamesh.data.format import bin_path, idx_path
from megamesh.data.preprocessing.folder import WorkFolder
from megamesh.data.preprocessing.shard import Job, ShardFacts
from megamesh.data.writer import write_index


@dataclass(frozen=True)
class Piece:
    """A shard's tokens of one output, and where they go: byte `offset` of a file in joined/."""

    tokens: Path
    num_bytes: int
    target: Path
    offset: int


def pieces(
    jobs: Sequence[Job], facts: Sequence[ShardFacts], names: Sequence[str], folder: WorkFolder
) -> list[list[Piece]]:
    """For each job, its piece of every output; `names` are the outputs' final names without their endings."""
    ends = [0] * len(names)
    found = []
    for job, fact in zip(jobs, facts, strict=True):
        row = []
        for number, (name, output) in enumerate(zip(names, fact.outputs, strict=True)):
            target = bin_path(folder.joined / name)
            row.append(Piece(folder.tokens(job.identity, number), output.num_bytes, target, ends[number]))
            ends[number] += output.num_bytes
        found.append(row)
    return found


def make_targets(facts: Sequence[ShardFacts], names: Sequence[str], folder: WorkFolder) -> None:
    """Empty .bin files of their full size, in a new joined/."""
    folder.joined.mkdir(exist_ok=True)
    for left in folder.joined.iterdir():
        left.unlink()
    for number, name in enumerate(names):
        with bin_path(folder.joined / name).open("wb") as file:
            file.truncate(sum(fact.outputs[number].num_bytes for fact in facts))


def copy_pieces(group: Sequence[Piece]) -> int:
    """Copy pieces to their places and bring them to disk; the number of bytes."""
    targets = {piece.target: os.open(piece.target, os.O_WRONLY) for piece in group}
    try:
        for piece in group:
            with piece.tokens.open("rb") as source:
                copy_range(source.fileno(), targets[piece.target], 0, piece.offset, piece.num_bytes)
        for target in targets.values():
            os.fsync(target)
    finally:
        for target in targets.values():
            os.close(target)
    return sum(piece.num_bytes for piece in group)


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
