"""Several datasets drawn by weight, or each passed a number of times.

    weights            ─▶ blend_order     ─┐
    samples of each    ─▶ interleave_order ─┴─▶ for each sample: the dataset, and the number of the sample in it (numbers_within)

**By weight**: at step n the dataset with the largest deficit weight·max(n, 1) − (samples drawn so far) is drawn, the first of equals, in
double precision: NeoX's and Megatron's rule, exactly. What follows a step depends on n and the counts so far alone, and the rule soon
forgets where it started. So many stretches of the order are computed at once, each from counts guessed by rounding; a stretch whose
first counts are not the last ones of the stretch before is computed again from these, until all seams fit: then the whole is the rule's
own order.

**Passes**: sample j of n stands at (j + ½)/n of the run, so every dataset gives each of its samples once, in proportion throughout.

Each dataset is asked for 0.5% more than its share of a blend by weight, as in NeoX, because this decides its number of epochs and so its
order. NeoX wraps around where the rule draws more than a dataset has; here such a dataset gets another epoch.
"""

import math
from collections.abc import Sequence

import numpy as np

RESERVE = 1.005
CELLS = 1 << 16  # deficits computed at once: they stay in a core's cache
LONGEST, SHORTEST = 8000, 64  # steps of a stretch
LOOK = 32  # steps between two looks at whether a corrected stretch has met its first version


def samples_wanted(weight: float, num_samples: int, num_drawn: int) -> int:
    """How many samples a dataset of this weight has to offer."""
    return max(math.ceil(num_samples * weight * RESERVE), num_drawn)


def dataset_dtype(num_datasets: int) -> np.dtype:
    """The number format of an order over so many datasets."""
    return np.dtype(np.int16 if num_datasets <= np.iinfo(np.int16).max else np.int32)


def blend_order(weights: Sequence[float], num_samples: int) -> np.ndarray:
    """The dataset of each sample; [num_samples] int16, or int32 for many. The order for fewer samples is its beginning.

    A dataset of weight 0 is never drawn (NeoX draws it at step 1 where it stands first).
    """
    exact = np.asarray(weights, dtype=np.float64)
    positive = np.flatnonzero(exact)
    order = _order(exact[positive] / exact.sum(), num_samples)
    return order if len(positive) == len(exact) else positive.astype(dataset_dtype(len(exact)))[order]


def _order(shares: np.ndarray, num_samples: int) -> np.ndarray:
    num_datasets = len(shares)
    length = int(np.clip(num_samples * num_datasets // CELLS, max(2 * num_datasets, SHORTEST), LONGEST))
    num_stretches, at_once = -(-num_samples // length), max(2, CELLS // num_datasets)
    order = np.empty((num_stretches, length), dtype=dataset_dtype(num_datasets))
    counts = np.zeros(num_datasets)
    for first in range(0, num_stretches, at_once):
        counts = _draw_stretches(shares, first * length, counts, order[first : first + at_once])
    return order.reshape(-1)[:num_samples]


def _draw_stretches(shares: np.ndarray, first_step: int, counts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Fill consecutive stretches, given the counts before the first; returns the counts after the last."""
    num_stretches, length = order.shape
    steps = first_step + length * np.arange(num_stretches, dtype=np.float64)
    begin = np.stack([counts, *(rounded_counts(shares, step) for step in steps[1:])])
    end = begin.copy()
    _draw(shares, steps, end, order, np.arange(num_stretches))
    wrong = np.flatnonzero((end[:-1] != begin[1:]).any(axis=1)) + 1
    while len(wrong):
        before = end[wrong]
        shift = end[wrong - 1] - begin[wrong]
        begin[wrong] += shift
        end[wrong] += _redraw(shares, steps, begin, order, wrong, shift)
        moved = wrong[(end[wrong] != before).any(axis=1)] + 1
        moved = moved[moved < num_stretches]
        wrong = moved[(end[moved - 1] != begin[moved]).any(axis=1)]
    return end[-1]


def _draw(shares: np.ndarray, steps: np.ndarray, counts: np.ndarray, order: np.ndarray, rows: np.ndarray) -> None:
    """Follow the rule through whole stretches `rows` side by side, from `counts`, which becomes those at their ends."""
    deficits, flat, begins = np.empty_like(counts), counts.reshape(-1), np.arange(len(rows)) * counts.shape[1]
    for step in range(order.shape[1]):
        np.multiply(shares, np.maximum(steps + step, 1.0)[:, None], out=deficits)
        np.subtract(deficits, counts, out=deficits)
        drawn = deficits.argmax(axis=1)
        order[rows, step] = drawn
        flat[begins + drawn] += 1


def _redraw(
    shares: np.ndarray, steps: np.ndarray, begin: np.ndarray, order: np.ndarray, rows: np.ndarray, shift: np.ndarray
) -> np.ndarray:
    """Follow the rule from corrected counts until they meet those of the version in `order`; returns how far the last counts moved."""
    left, counts, active = shift.copy(), begin[rows], np.arange(len(rows))
    for start in range(0, order.shape[1], LOOK):
        piece = order[rows[active], start : start + LOOK]
        old, new = piece.astype(np.int64), piece.copy()
        now = counts[active]
        _draw(shares, steps[rows[active]] + start, now, new, np.arange(len(active)))
        order[rows[active], start : start + LOOK] = new
        counts[active] = now
        column = active[:, None]
        np.add.at(left, (column, new.astype(np.int64)), 1.0)
        np.subtract.at(left, (column, old), 1.0)
        active = active[left[active].any(axis=1)]
        if not len(active):
            break
    return left


def rounded_counts(shares: np.ndarray, step: float) -> np.ndarray:
    """Whole numbers near shares·step that sum to it: about what the rule has drawn by then."""
    counts = np.floor(shares * step)
    missing = int(step - counts.sum())
    rest = np.argsort(counts - shares * step, kind="stable")
    counts[rest[:missing] if missing >= 0 else rest[missing:]] += np.sign(missing)
    return counts


def interleave_order(num_samples: Sequence[int]) -> np.ndarray:
    """The dataset of each sample where dataset i gives num_samples[i] samples, each once; dtype as in blend_order."""
    sizes = np.asarray(num_samples, dtype=np.int64)
    datasets = np.repeat(np.arange(len(sizes), dtype=dataset_dtype(len(sizes))), sizes)
    places = (numbers_within(datasets, len(sizes)) + 0.5) / np.repeat(sizes.astype(np.float64), sizes)
    return datasets[np.argsort(places, kind="stable")]


def numbers_within(order: np.ndarray, num_datasets: int) -> np.ndarray:
    """For each sample, how many earlier samples came from the same dataset; int64."""
    sizes = np.bincount(order, minlength=num_datasets)
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[np.argsort(order, kind="stable")] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return numbers
