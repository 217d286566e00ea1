"""Numbered samples of S+1 tokens.

    IndexedDataset (+ one of labels) + SampleOrder ─▶ PackedDataset ─┐
    IndexedDataset (+ one of labels) + PaddedOrder ─▶ PaddedDataset ─┤
    several of these + blend order ──────────────────────────────────┴─▶ BlendedDataset

Sample i depends on i alone, so the state of a run is the number of samples it has consumed. All kinds go to other processes by reference
to their files (index arrays that could not be kept on disk travel by value).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from megamesh.data.samples.padded import PaddedOrder
from megamesh.data.samples.sample_index import SampleOrder
from megamesh.data.store.indexed import IndexedDataset

IGNORED = -100
PADDING = 0


class Sample(NamedTuple):
    """tokens [S+1] int64; labels [S+1] int64 at the same positions, negative where not counted. None: the tokens are the labels."""

    tokens: np.ndarray
    labels: np.ndarray | None = None


class TokenDataset(Protocol):
    """Samples 0 … len−1."""

    sequence_length: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class PackedDataset:
    """Documents laid end to end in shuffled order and cut every S tokens."""

    def __init__(
        self,
        indexed: IndexedDataset,
        order: SampleOrder,
        sequence_length: int,
        labels: IndexedDataset | None = None,
    ):
        self.indexed, self.labels = indexed, labels
        self.order = order
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return self.order.num_samples

    def __getitem__(self, index: int) -> Sample:
        _check_number(index, len(self))
        row = int(self.order.shuffle[index])
        (first, offset), (last, end) = self.order.sample_index[row : row + 2].tolist()
        documents = self.order.document_order[first : last + 1].tolist()
        tokens = self._read(self.indexed, documents, offset, end)
        return Sample(tokens, None if self.labels is None else self._read(self.labels, documents, offset, end))

    def _read(self, indexed: IndexedDataset, documents: list[int], offset: int, end: int) -> np.ndarray:
        """S+1 ids: from `offset` in the first document to `end` in the last, that one included."""
        row = np.empty(self.sequence_length + 1, dtype=np.int64)
        filled = 0
        for number, document in enumerate(documents, start=1):
            begin = offset if number == 1 else 0
            ids = indexed.get(document, begin, end + 1 - begin if number == len(documents) else None)
            row[filled : filled + len(ids)] = ids
            filled += len(ids)
        assert filled == len(row), f"{indexed.prefix}: a sample of {filled} tokens"
        return row


class PaddedDataset:
    """Samples of whole documents, cut off at S+1 tokens or padded; the loss does not count padding."""

    def __init__(
        self,
        indexed: IndexedDataset,
        order: PaddedOrder,
        sequence_length: int,
        labels: IndexedDataset | None = None,
    ):
        self.indexed, self.labels = indexed, labels
        self.order = order
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return self.order.num_samples

    def __getitem__(self, index: int) -> Sample:
        _check_number(index, len(self))
        row = int(self.order.shuffle[index])
        first, stop = self.order.starts[row : row + 2].tolist()
        tokens = np.full(self.sequence_length + 1, PADDING, dtype=np.int64)
        labels = np.full(self.sequence_length + 1, IGNORED, dtype=np.int64)
        filled = 0
        for document in self.order.document_order[first:stop].tolist():
            ids = self.indexed.get(document)[: len(tokens) - filled]
            counted = ids if self.labels is None else self.labels.get(document)[: len(ids)]
            tokens[filled : filled + len(ids)] = ids
            labels[filled : filled + len(ids)] = counted
            filled += len(ids)
        return Sample(tokens, labels)


class BlendedDataset:
    """Samples of several datasets, in the order of blend.py. dataset_of [n] int16 or int32, number_within [n] int64."""

    def __init__(
        self,
        datasets: Sequence[TokenDataset | None],
        dataset_of: np.ndarray,
        number_within: np.ndarray,
        sequence_length: int,
    ):
        self.datasets = list(datasets)
        self.dataset_of = dataset_of
        self.number_within = number_within
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return len(self.dataset_of)

    def __getitem__(self, index: int) -> Sample:
        _check_number(index, len(self))
        dataset = self.datasets[int(self.dataset_of[index])]
        assert dataset is not None, "a dataset of weight 0 is never drawn"
        return dataset[int(self.number_within[index])]


def _check_number(index: int, num_samples: int) -> None:
    if not 0 <= index < num_samples:
        raise IndexError(f"sample {index} of {num_samples}")
