"""The loss scale follows DeepSpeed's own scaler, step for step."""

import random
from types import SimpleNamespace

import pytest
from deepspeed.runtime.fp16 import loss_scaler
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from megamesh.config.keys import PrecisionConfig
from megamesh.engine.loss_scale import LossScale, can_fall, first_loss_scale, next_loss_scale


def _config(**keys: float) -> PrecisionConfig:
    return PrecisionConfig(precision="fp16", **keys)


def _scales(config: PrecisionConfig, finite: list[bool]) -> list[float]:
    state, scales = first_loss_scale(config), []
    for good in finite:
        state = next_loss_scale(state, config, finite=good)
        scales.append(state.scale)
    return scales


def _peer_scales(peer: DynamicLossScaler, finite: list[bool]) -> list[float]:
    scales = []
    for good in finite:
        peer.update_scale(not good)
        scales.append(peer.cur_scale)
    return scales


@pytest.mark.parametrize("hysteresis", [1, 2, 4])
@pytest.mark.parametrize("window", [1, 3, 7])
def test_it_is_deepspeeds_scaler_on_any_run(hysteresis: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scaler, "dist", SimpleNamespace(get_rank=lambda: 1))  # only for its log lines
    draw = random.Random(window)
    finite = [draw.random() < (0.1, 0.97)[step // 40 % 2] for step in range(400)]  # stormy, then calm
    config = _config(initial_scale_power=6, loss_scale_window=window, hysteresis=hysteresis, min_loss_scale=4)
    peer = DynamicLossScaler(
        2.0**6, window, 4, hysteresis, consecutive_hysteresis=False, raise_error_at_min_scale=False
    )
    scales = _scales(config, finite)
    assert scales == _peer_scales(peer, finite)
    assert min(scales) == 4 and len(set(scales)) > 4, "the run must meet the minimum and move"


def test_the_first_overflow_only_uses_up_hysteresis_and_growth_restores_it() -> None:
    config = _config(initial_scale_power=4, loss_scale_window=2, hysteresis=2)
    assert _scales(config, [False, False, False]) == [16, 8, 4]
    assert _scales(config, [False, True, True, True, False, False]) == [16, 16, 16, 32, 32, 16]


def test_a_constant_scale_stays_and_other_precisions_have_none() -> None:
    finite = [False, True] * 5
    assert set(_scales(_config(loss_scale=1024.0, loss_scale_window=1), finite)) == {1024.0}
    assert set(_scales(PrecisionConfig(precision="bfloat16", loss_scale_window=1), finite)) == {1.0}


def test_only_a_dynamic_scale_above_its_minimum_can_fall() -> None:
    config = _config(min_loss_scale=4)
    assert can_fall(LossScale(8.0), config) and not can_fall(LossScale(4.0), config)
    assert not can_fall(LossScale(8.0), _config(loss_scale=8.0))
    assert not can_fall(LossScale(8.0), PrecisionConfig(precision="fp32"))
