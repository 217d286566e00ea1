"""Numbered samples of S+1 tokens.

    IndexedDataset + SampleOrder ─▶ PackedDataset ─┐
    several of these + blend order ────────────────┴─▶ BlendedDataset

Sample i depends on i alone, so the state of a run is the number of samples it has consumed. Both kinds go to other processes by reference
to their files (index arrays that could not be kept on disk travel by value).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from megamesh.data.indexed import IndexedDataset
from megamesh.data.sample_index import SampleOrder


class TokenDataset(Protocol):
    """Samples 0 … len−1; each is [S+1] int64 token ids."""

    sequence_length: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...


class PackedDataset:
    """Documents laid end to end in shuffled order and cut every S tokens."""

    def __init__(self, indexed: IndexedDataset, order: SampleOrder, sequence_length: int):
        self.indexed = indexed
        self.order = order
        self.sequence_length = sequence_length

    def __len__(self) -> int:
        return self.order.num_samples

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        row = int(self.order.shuffle[index])
        (first, offset), (last, end) = self.order.sample_index[row : row + 2].tolist()
        documents = self.order.document_order[first : last + 1].tolist()
        sample = np.empty(self.sequence_length + 1, dtype=np.int64)
        filled = 0
        for position, document in enumerate(documents, start=first):
            begin = offset if position == first else 0
            tokens = self.indexed.get(document, begin, end + 1 - begin if position == last else None)
            sample[filled : filled + len(tokens)] = tokens
            filled += len(tokens)
        assert filled == len(sample), f"{self.indexed.prefix}: sample {index} has {filled} tokens"
        return sample


class BlendedDataset:
    """Samples of several datasets, in the order of blend.py. dataset_of [n] int16, number_within [n] int64."""

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

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        dataset = self.datasets[int(self.dataset_of[index])]
        assert dataset is not None, "a dataset of weight 0 is never drawn"
        return dataset[int(self.number_within[index])]
