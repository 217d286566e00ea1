"""The unigram model of a corpus: what a predictor scores that knows only how often each token occurs.

The yardstick for small runs: a language model that has learnt anything about order must beat it.
"""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def unigram_loss(train_counts: Counts, valid_counts: Counts) -> float:
    """Cross entropy in nats per token of the validation tokens under add-one smoothed training frequencies.

    Both arguments count occurrences per token id and have the vocabulary's length.
    """
    smoothed = train_counts + 1.0
    log_probabilities = np.log(smoothed / smoothed.sum())
    return float(-(valid_counts * log_probabilities).sum() / valid_counts.sum())
