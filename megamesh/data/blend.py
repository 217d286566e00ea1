"""Several datasets drawn by weight.

    weights ─▶ for each sample: (dataset, number of the sample in it)

At step n the dataset with the largest deficit weight·max(n, 1) − (samples drawn so far) is drawn, the first of equals: NeoX's rule. Each
dataset is asked for 0.5% more than its share, as in NeoX, because this decides its number of epochs and so its order. NeoX wraps around
where the rule draws more than a dataset has; here such a dataset gets another epoch.
"""

import math
from array import array
from collections.abc import Sequence

import numpy as np

from megamesh.errors import ConfigError

RESERVE = 1.005


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


def samples_wanted(weight: float, num_samples: int, num_drawn: int) -> int:
    """How many samples a dataset of this weight has to offer."""
    return max(math.ceil(num_samples * weight * RESERVE), num_drawn)


def blend_order(weights: Sequence[float], num_samples: int) -> np.ndarray:
    """The dataset of each sample; [num_samples] int16. The order for fewer samples is its beginning."""
    exact = np.asarray(weights, dtype=np.float64)
    pairs = list(enumerate((exact / exact.sum()).tolist()))
    drawn = [0.0] * len(pairs)
    order = array("h")
    for n in range(num_samples):
        scale = float(n) if n else 1.0
        best, largest = 0, -math.inf
        for i, weight in pairs:
            deficit = weight * scale - drawn[i]
            if deficit > largest:
                best, largest = i, deficit
        order.append(best)
        drawn[best] += 1.0
    return np.frombuffer(order, dtype=np.int16) if num_samples else np.empty(0, np.int16)


def numbers_within(order: np.ndarray, num_datasets: int) -> np.ndarray:
    """For each sample, how many earlier samples came from the same dataset; int64."""
    numbers = np.empty(len(order), dtype=np.int64)
    for i in range(num_datasets):
        drawn = np.flatnonzero(order == i)
        numbers[drawn] = np.arange(len(drawn))
    return numbers
