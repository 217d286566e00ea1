"""How much of a blend each dataset is.

given weights            ─┐
numbers of documents ^ α ─┼─▶ shares that sum to 1
numbers of tokens ^ α    ─┘
"""

import math
from collections.abc import Sequence

from megamesh.errors import ConfigError


def normalise_weights(weights: Sequence[float] | None, num_datasets: int, key: str) -> list[float]:
    """Weights that sum to 1; equal where none are given. Raises ConfigError."""
    if weights is None:
        return [1.0 / num_datasets] * num_datasets
    if len(weights) != num_datasets:
        raise ConfigError(f"{key} has {len(weights)} values for {num_datasets} data paths; give one per path")
    if any(not math.isfinite(w) or w < 0 for w in weights) or sum(weights) <= 0:
        raise ConfigError(f"{key}={list(weights)}: weights must be 0 or more, and not all 0")
    total = sum(weights)
    return [w / total for w in weights]


def weights_by_size(sizes: Sequence[int], alpha: float) -> list[float]:
    """Shares in proportion to size^alpha; 1 is the natural share, less favours small datasets, 0 is equal."""
    largest = max(sizes)
    return _sum_to_one([(size / largest) ** alpha if size else 0.0 for size in sizes])


def weights_by_documents(num_documents: Sequence[int], alpha: float, limit: int | None = None) -> list[float]:
    """NeoX's weight_by_num_documents: p^alpha · (1 − p) for the natural shares p, of which no dataset counts more than `limit` documents.

    The factor 1 − p makes large datasets smaller at every alpha, also at 1. A dataset alone has the weight 1 (NeoX divides by zero).
    """
    counts = [min(count, limit or count) for count in num_documents]
    if sum(map(bool, counts)) == 1:
        return [float(bool(count)) for count in counts]
    total = sum(counts)
    shares = weights_by_size(counts, alpha)
    return _sum_to_one([share * (1 - count / total) for share, count in zip(shares, counts, strict=True)])


def _sum_to_one(weights: list[float]) -> list[float]:
    total = sum(weights)
    return [weight / total for weight in weights]
