"""How much a dataset holds, and how long its documents are.

    index, piece by piece ─▶ {length: documents} ─▶ Statistics: quantiles (exact), histogram (bins that double)

Memory grows with the number of documents of a million tokens and more, not with that of others. Tokens are not read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megamesh.data.store.format import bin_path, idx_path
from megamesh.data.store.manifest import holds_labels
from megamesh.data.store.stored import Sections, Stored

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
EXACT_BELOW = 1 << 20  # shorter documents are counted in a table, longer ones, of which there are few, one by one


@dataclass(frozen=True)
class Bin:
    """Documents of `first` to `last` tokens, both included, and the tokens in them."""

    first: int
    last: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Statistics:
    """Lengths are tokens per document, 0 where there is none. `quantiles`: "95%" → a length that 95 % of the documents do not exceed.

    `labels`: the manifest says that they are labels, and `tokens` counts these.
    """

    prefix: str
    labels: bool
    dtype: str
    documents: int
    sequences: int
    tokens: int
    bin_bytes: int
    idx_bytes: int
    empty_documents: int
    shortest: int
    mean: float
    longest: int
    quantiles: dict[str, int]
    histogram: list[Bin]


def statistics(stored: Stored) -> Statistics:
    """Go through the index of a dataset. Raises DataError where its manifest is damaged."""
    lengths, counts = _counted_lengths(stored)
    return Statistics(
        prefix=stored.prefix,
        labels=holds_labels(stored.prefix),
        dtype=stored.dtype.name,
        documents=stored.num_documents,
        sequences=stored.num_sequences,
        tokens=stored.num_tokens,
        bin_bytes=bin_path(stored.prefix).stat().st_size,
        idx_bytes=idx_path(stored.prefix).stat().st_size,
        empty_documents=int(counts[lengths == 0].sum()),
        shortest=int(lengths[0]) if len(lengths) else 0,
        mean=stored.num_tokens / max(stored.num_documents, 1),
        longest=int(lengths[-1]) if len(lengths) else 0,
        quantiles={f"{share:.0%}": _quantile(lengths, counts, share) for share in QUANTILES if len(lengths)},
        histogram=_histogram(lengths, counts),
    )


def shares(tokens: Sequence[int]) -> list[float]:
    """Each number's part of their sum; 0 where that is 0."""
    total = max(sum(tokens), 1)
    return [one / total for one in tokens]


def _counted_lengths(stored: Stored) -> tuple[np.ndarray, np.ndarray]:
    """The different lengths, ascending, and how many documents have each; both int64."""
    table, long = np.zeros(0, np.int64), [np.empty(0, np.int64)]
    for lengths in Sections(stored).document_lengths(0, stored.num_documents):
        short = lengths < EXACT_BELOW
        counts = np.bincount(lengths[short], minlength=len(table))
        counts[: len(table)] += table
        table = counts
        long.append(lengths[~short])
    found = np.flatnonzero(table)
    lengths, counts = np.unique(np.concatenate(long), return_counts=True)
    return np.concatenate((found, lengths)), np.concatenate((table[found], counts))


def _quantile(lengths: np.ndarray, counts: np.ndarray, share: float) -> int:
    """The smallest length of which at least `share` of the documents are no longer."""
    ends = np.cumsum(counts)
    return int(lengths[min(int(np.searchsorted(ends, share * int(ends[-1]))), len(lengths) - 1)])


def _histogram(lengths: np.ndarray, counts: np.ndarray) -> list[Bin]:
    """Bins 0, 1, 2 to 3, 4 to 7 … from the shortest document to the longest; some in between may be empty."""
    if not len(lengths):
        return []
    numbers = np.array([length.bit_length() for length in lengths.tolist()])
    bins = []
    for number in range(int(numbers[0]), int(numbers[-1]) + 1):
        inside = numbers == number
        documents, tokens = counts[inside].sum(), (lengths[inside] * counts[inside]).sum()
        bins.append(Bin((1 << number) >> 1, (1 << number) - 1, int(documents), int(tokens)))
    return bins
