"""The schedule is GPT-NeoX's, and stays at min_lr after its end."""

import math

import pytest

from megamesh.config.keys import OptimizerConfig
from megamesh.engine.schedule import learning_rate

PEAK, LOW = 1e-3, 1e-4


def _config(style: str, warmup: float = 0.1, decay_iters: int | None = None) -> OptimizerConfig:
    params = {"type": "AdamW", "params": {"lr": PEAK}}
    return OptimizerConfig(
        optimizer=params, lr_decay_style=style, min_lr=LOW, warmup=warmup, lr_decay_iters=decay_iters
    )


@pytest.mark.parametrize("style", ["linear", "cosine", "constant"])
def test_warm_up_is_linear_from_zero(style: str) -> None:
    assert [learning_rate(step, _config(style), 100) for step in (0, 1, 5, 10)] == pytest.approx(
        [0, PEAK / 10, PEAK / 2, PEAK]
    )
    assert learning_rate(0, _config(style, warmup=0.0), 100) == PEAK


def test_cosine_passes_the_middle_and_ends_at_min_lr() -> None:
    config = _config("cosine")
    assert learning_rate(55, config, 100) == pytest.approx((PEAK + LOW) / 2)
    expected = LOW + (PEAK - LOW) / 2 * (1 + math.cos(math.pi * 20 / 90))
    assert learning_rate(30, config, 100) == pytest.approx(expected)
    assert [learning_rate(step, config, 100) for step in (100, 101, 250)] == [LOW] * 3


def test_linear_falls_towards_zero_and_is_cut_at_min_lr() -> None:
    config = _config("linear")
    assert learning_rate(55, config, 100) == pytest.approx(PEAK / 2)
    assert [learning_rate(step, config, 100) for step in (95, 100, 300)] == [LOW] * 3


def test_constant_stays_and_decay_iters_replace_train_iters() -> None:
    assert learning_rate(10_000, _config("constant"), 100) == PEAK
    assert learning_rate(25, _config("cosine", decay_iters=50), 1000) == learning_rate(25, _config("cosine"), 50)
    assert learning_rate(50, _config("cosine", decay_iters=50), 1000) == LOW
