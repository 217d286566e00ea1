"""Training in fp16: near fp32 at every stage; an overflow on any rank skips the step on all; the loss scale resumes with the run."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megamesh.checkpoint.load import load_checkpoint
from megamesh.checkpoint.meta import CheckpointMeta, RunState
from megamesh.engine.engine import StepResult
from megamesh.engine.loss_scale import LossScale
from tests.checkpoint.runs import bits, save
from tests.distributed import run
from tests.engine.runs import Setup, full_state, model_weights, oracle, train, training

TOO_HIGH = {"initial_scale_power": 24, "hysteresis": 1}
MOVING = {"initial_scale_power": 20, "hysteresis": 2, "loss_scale_window": 2}


def _train(setup: Setup, num_steps: int) -> tuple[list[StepResult], dict[str, Tensor], dict[str, Tensor]]:
    with training(setup) as engine:
        return train(engine, 0, num_steps), full_state(engine), model_weights(engine)


@pytest.mark.parametrize("stage", [0, 2, 3])  # stage 0 is stage 1
def test_ten_steps_are_near_fp32_with_fp32_masters(stage: int) -> None:
    losses, norms, _ = oracle(Setup(), 10)
    setup = Setup(stage, "fp16", scaling={"initial_scale_power": 10})
    (results, state, model), other = run(2, _train, setup, 10)
    assert [result.loss for result in results] == [result.loss for result in other[0]]
    assert [result.loss for result in results] == pytest.approx(losses, rel=2e-4)
    assert [result.grad_norm for result in results] == pytest.approx(norms, rel=1e-2)
    assert {(result.skipped, result.loss_scale) for result in results} == {(False, 1024.0)}
    for name, weight in model.items():
        assert (weight.dtype, state[f"fp32.{name}"].dtype) == (torch.float16, torch.float32)
        assert torch.equal(weight, state[f"fp32.{name}"].half()), f"{name}: not the rounded master"


def test_a_scale_that_starts_too_high_falls_until_gradients_fit() -> None:
    results = run(2, _train, Setup(1, "fp16", scaling=TOO_HIGH), 16)[0][0]
    overflows = [result for result in results if result.skipped]
    assert 3 < len(overflows) < 12 and overflows == results[: len(overflows)]
    assert all(result.overflowed and result.bad_parameter != "loss" for result in overflows)
    assert [result.loss_scale for result in results[: len(overflows) + 1]] == [
        2.0 ** (24 - step) for step in range(len(overflows) + 1)
    ]
    taken = results[len(overflows) :]
    losses, norms, _ = oracle(Setup(), len(taken), first=len(overflows))
    assert [result.loss for result in taken] == pytest.approx(losses, rel=2e-4)
    assert [result.grad_norm for result in taken] == pytest.approx(norms, rel=1e-2)


def _overflow_on_rank_1(setup: Setup) -> tuple[list[StepResult], int, LossScale]:
    with training(setup) as engine:
        results = train(engine, 0, 1)
        handle = None
        if dist.get_rank() == 1:
            handle = engine.module.register_full_backward_pre_hook(lambda _, gradients: (gradients[0] * 2.0**40,))
        results += train(engine, 1, 2)
        if handle is not None:
            handle.remove()
        return results + train(engine, 2, 3), engine.access.step_count(), engine.loss_scale


@pytest.mark.parametrize("setup", [Setup(2), Setup(3), Setup(1, tensor_parallel_size=2)])
def test_an_overflow_on_one_rank_skips_and_lowers_the_scale_on_all(setup) -> None:
    setup = replace(setup, precision="fp16", scaling={"initial_scale_power": 10, "hysteresis": 1})
    answers = run(2, _overflow_on_rank_1, setup)
    for results, num_adam_steps, scale in answers:
        assert [(result.skipped, result.overflowed) for result in results] == [
            (False, False),
            (True, True),
            (False, False),
        ]
        assert [result.loss_scale for result in results] == [1024, 1024, 512]
        assert (num_adam_steps, scale) == (2, LossScale(512.0, good_steps=1, hysteresis=1))
    assert repr(answers[0]) == repr(answers[1])


def _overflow_at_the_minimum(setup: Setup) -> tuple[list[StepResult], RunState]:
    state = RunState(0, 0, 7)
    with training(setup) as engine:
        results = train(engine, 0, 4)
    for result in results:
        state = state.after_step(1, skipped=result.skipped, overflowed=result.overflowed)
    return results, state


@pytest.mark.parametrize(
    ("scaling", "counted"),
    [({"loss_scale": 2.0**30}, 4), (TOO_HIGH | {"min_loss_scale": 2.0**22}, 2), (TOO_HIGH, 0)],
    ids=["constant", "two above the minimum", "free"],
)
def test_only_overflows_that_no_lower_scale_can_mend_count_as_broken(scaling, counted: int) -> None:
    ((results, state),) = run(1, _overflow_at_the_minimum, Setup(1, "fp16", scaling=scaling))
    assert all(result.skipped for result in results)
    assert (state.skipped_steps, state.consecutive_skipped_steps) == (4, counted)


def _scales(
    setup: Setup, folder: Path, first: int, last: int
) -> tuple[list[tuple[float, float | None]], LossScale, dict]:
    with training(setup) as engine:
        if first:
            load_checkpoint(folder, engine)
        results = train(engine, first, last)
        if not first:
            save(folder, engine)
        return [(result.loss, result.loss_scale) for result in results], engine.loss_scale, bits(engine)


@pytest.mark.parametrize(("stage", "num_steps"), [(1, 4), (3, 10)], ids=["while it falls", "while it grows"])
def test_a_resumed_run_has_the_scales_and_bits_of_a_straight_one(tmp_path: Path, stage: int, num_steps: int) -> None:
    setup = Setup(stage, "fp16", scaling=MOVING)
    straight, end, end_bits = run(2, _scales, setup, tmp_path / "straight", 0, 14)[0]
    first, *_ = run(2, _scales, setup, tmp_path / "halves", 0, num_steps)[0]
    second, resumed_end, resumed_bits = run(2, _scales, replace(setup, seed=8), tmp_path / "halves", num_steps, 14)[0]
    assert first + second == straight
    assert (resumed_end, resumed_bits) == (end, end_bits)
    assert len({scale for _, scale in second}) > 1, "the scale must move after the resume"


def test_a_checkpoint_of_before_loss_scales_is_read(tmp_path: Path) -> None:
    meta = CheckpointMeta(RunState(3, 12, 7), 3, {}, {}, {}, LossScale(8.0, 2, 1))
    assert CheckpointMeta.from_json(meta.to_json(), tmp_path) == meta
    old = asdict(meta)
    del old["loss_scale"]
    assert CheckpointMeta.from_json(json.dumps(old), tmp_path) == replace(meta, loss_scale=None)
