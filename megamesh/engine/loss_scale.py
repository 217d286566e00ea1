"""The loss scale of fp16: what it is now, and what follows from a step. Three numbers, so that a resumed run has the same ones.

    loss × scale ──backward in fp16──▶ gradients, ÷ scale in fp32 ──finite──▶ the step is taken; × 2 after loss_scale_window of them
                                                 └──not finite──▶ the step is skipped; ÷ 2 once hysteresis is used up,
                                                                  never below min_loss_scale

fp16 reaches from 6e-8 to 65504, and most gradients lie at its lower end or below: they are moved up as far as they go. Scaling by powers
of two is exact. The rules are those of DeepSpeed's DynamicLossScaler, and so of GPT-NeoX, step for step; only a run whose scale can fall
no further is not ended here but left to max_nonfinite_steps. In other precisions the scale is a constant 1.
"""

from dataclasses import dataclass, replace

from megamesh.config.keys import PrecisionConfig

FACTOR = 2.0


@dataclass(frozen=True)
class LossScale:
    """The scale of the next step; finite steps since the last overflow; the scale falls at the `hysteresis`-th overflow from here."""

    scale: float = 1.0
    good_steps: int = 0
    hysteresis: int = 1


def is_dynamic(config: PrecisionConfig) -> bool:
    """Whether the scale follows from the steps, so that it belongs in a checkpoint."""
    return config.precision == "fp16" and config.loss_scale == 0


def first_loss_scale(config: PrecisionConfig) -> LossScale:
    """The scale that training starts with."""
    if is_dynamic(config):
        return LossScale(FACTOR**config.initial_scale_power, hysteresis=config.hysteresis)
    return LossScale(config.loss_scale) if config.precision == "fp16" else LossScale()


def can_fall(state: LossScale, config: PrecisionConfig) -> bool:
    """Whether an overflow leads to a lower scale, now or once hysteresis is used up: an ordinary event, then."""
    return is_dynamic(config) and state.scale > config.min_loss_scale


def next_loss_scale(state: LossScale, config: PrecisionConfig, *, finite: bool) -> LossScale:
    """The scale after a step."""
    if not is_dynamic(config):
        return state
    if not finite and state.hysteresis > 1:
        return replace(state, good_steps=0, hysteresis=state.hysteresis - 1)
    if not finite:
        return replace(state, scale=max(state.scale / FACTOR, config.min_loss_scale), good_steps=0)
    if state.good_steps and state.good_steps % config.loss_scale_window == 0:
        return LossScale(state.scale * FACTOR, state.good_steps + 1, config.hysteresis)
    return replace(state, good_steps=state.good_steps + 1)
