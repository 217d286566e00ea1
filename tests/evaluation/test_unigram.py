"""The unigram loss against a direct sum over tokens."""

import math

import numpy as np

from megamesh.evaluation.perplexity import perplexity
from megamesh.evaluation.unigram import unigram_loss


def test_unigram_loss_is_the_mean_over_tokens() -> None:
    train, valid = [0, 0, 0, 1], [0, 1, 1, 2]
    counts = [np.bincount(tokens, minlength=4) for tokens in (train, valid)]
    probability = {0: 4 / 8, 1: 2 / 8, 2: 1 / 8, 3: 1 / 8}
    expected = -sum(math.log(probability[token]) for token in valid) / len(valid)
    assert math.isclose(unigram_loss(*counts), expected, rel_tol=1e-12)


def test_perplexity_is_cut_where_it_would_overflow() -> None:
    assert math.isclose(perplexity(2.0), math.e**2)
    assert perplexity(1e6) == math.exp(20)
