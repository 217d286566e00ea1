"""What is drawn follows the distribution that temperature, top k and top p describe."""

import pytest
import torch

from megamesh.errors import ConfigError
from megamesh.generation.sampling import Sampler, Sampling, candidate_probabilities

LOGITS = torch.tensor([[0.5, 2.0, -1.0, 1.0, 1.5]])


def distribution(**changes) -> torch.Tensor:
    probs, ids = candidate_probabilities(LOGITS, Sampling(**changes))
    return torch.zeros(5).scatter(0, ids[0], probs[0] / probs.sum())


def test_temperature_scales_the_logits() -> None:
    torch.testing.assert_close(distribution(temperature=0.7), (LOGITS[0] / 0.7).softmax(-1))


def test_top_k_keeps_the_most_probable() -> None:
    expected = torch.tensor([0.0, 2.0, 0.0, 0.0, 1.5]).exp() * torch.tensor([0, 1, 0, 0, 1])
    torch.testing.assert_close(distribution(top_k=2), expected / expected.sum())
    torch.testing.assert_close(distribution(top_k=50), LOGITS[0].softmax(-1))


@pytest.mark.parametrize("top_p", [0.01, 0.4, 0.6, 0.8, 0.95, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float) -> None:
    probs = LOGITS[0].softmax(-1)
    kept, total = [], 0.0
    for i in probs.argsort(descending=True).tolist():
        kept.append(i)
        total += probs[i].item()
        if total >= top_p:
            break
    expected = torch.zeros(5)
    expected[kept] = probs[kept] / probs[kept].sum()
    torch.testing.assert_close(distribution(top_p=top_p), expected)


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    count = 20_000  # each from a stream of its own
    sampler = Sampler(Sampling(temperature=1.3, top_p=0.9, seed=5), list(range(count)))
    drawn = torch.cat((sampler(LOGITS.expand(count, -1)), sampler(LOGITS.expand(count, -1))))
    expected = distribution(temperature=1.3, top_p=0.9)
    frequencies = drawn.bincount(minlength=5) / (2 * count)
    assert (frequencies - expected).abs().max() < 4 * 0.5 / (2 * count) ** 0.5
    assert frequencies[expected == 0].sum() == 0


def test_temperature_zero_takes_the_most_probable() -> None:
    assert Sampler(Sampling(temperature=0), [0])(LOGITS).tolist() == [1]


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 1e-300])
def test_a_tiny_temperature_is_nearly_greedy_and_never_overflows(temperature: float) -> None:
    logits = LOGITS * 1e4
    assert distribution(temperature=temperature).tolist() == [0, 1, 0, 0, 0]
    assert Sampler(Sampling(temperature=temperature), [0])(logits).tolist() == [1]


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(temperature=-1, top_k=0, top_p=0, seed=-1)
    assert len(caught.value.problems) == 4
