"""Labels beside tokens: a second indexed dataset, aligned sequence by sequence.

    tokens.bin/.idx ─┬─▶ sequence i: tokens
    labels.bin/.idx ─┘   sequence i: at the same positions, the id to predict there, or a negative one (-100): not counted in the loss

Where the two differ in number or length of sequences, or a label lies outside the vocabulary, a DataError names the files.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megamesh.data.store.format import bin_path, idx_path
from megamesh.data.store.indexed import IndexedDataset
from megamesh.data.store.token_range import largest_and_smallest_id
from megamesh.errors import DataError

CHUNK = 1 << 22
MEND = "write tokens and labels in one run of tools/preprocess_data.py"


def open_labels(prefix: str, tokens: IndexedDataset, vocab_size: int, cache_folder: Path | None) -> IndexedDataset:
    """Open the labels of `tokens` and check that they are such."""
    labels = IndexedDataset(prefix)
    here, there = idx_path(prefix), idx_path(tokens.prefix)
    if len(labels) != len(tokens):
        raise DataError(f"{here}: labels of {len(labels)} sequences, but {there} has {len(tokens)}; {MEND}")
    for start in range(0, len(labels), CHUNK):
        ours, theirs = labels.lengths[start : start + CHUNK], tokens.lengths[start : start + CHUNK]
        if not np.array_equal(ours, theirs):
            first = int((ours != theirs).argmax())
            raise DataError(
                f"{here}: sequence {start + first} has {ours[first]} labels, but {theirs[first]} tokens in {there}; {MEND}"
            )
    _, largest = largest_and_smallest_id(bin_path(prefix), labels.dtype, vocab_size, cache_folder)
    if largest >= vocab_size:
        raise DataError(
            f"{bin_path(prefix)}: label {largest} is outside the vocabulary of {vocab_size}; what is not to be counted is -100, "
            "in a file of int32"
        )
    return labels


def num_counted_labels(labels: IndexedDataset, start: int, stop: int, room: int) -> np.ndarray:
    """For each of the sequences [start, stop): how many of its labels 1 … room−1 are counted; int64."""
    return np.concatenate([np.empty(0, np.int64), *_counted(labels, start, stop, room)])


def _counted(labels: IndexedDataset, start: int, stop: int, room: int) -> Iterator[np.ndarray]:
    while start < stop:
        ends = np.cumsum(labels.lengths[start : min(start + CHUNK, stop)], dtype=np.int64)
        ends = ends[: max(1, int(np.searchsorted(ends, CHUNK, side="right")))]
        lengths = labels.lengths[start : start + len(ends)]
        ids = np.concatenate([labels.get(i) for i in range(start, start + len(ends))])
        before = np.concatenate(([0], np.cumsum(ids >= 0)))
        begins = ends - lengths
        firsts, lasts = np.minimum(begins + 1, ends), np.minimum(begins + room, ends)
        yield before[lasts] - before[firsts]
        start += len(ends)
