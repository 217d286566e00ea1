"""Training over processes and ZeRO stages follows plain torch on one process."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from megamesh.engine.engine import StepResult
from tests.distributed import run
from tests.engine.runs import (
    CLIP,
    Setup,
    fingerprint,
    full_state,
    global_batch,
    model_weights,
    my_micro_batches,
    oracle,
    train,
    training,
    transformer,
)

STEPS = 20
STEADY = {"initial_scale_power": 10, "hysteresis": 3}  # of fp16: two overflows leave the scale as it is


def _train(setup: Setup, num_steps: int) -> tuple[list[StepResult], dict[str, Tensor], dict[str, Tensor]]:
    with training(setup) as engine:
        return train(engine, 0, num_steps), full_state(engine), model_weights(engine)


@pytest.fixture(scope="module")
def expected():
    return oracle(Setup(), STEPS)


@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)])
def test_two_processes_at_every_stage_follow_plain_torch(world_size: int, stage: int, expected) -> None:
    losses, norms, weights = expected
    assert max(norms) > CLIP > min(norms), "the test must clip some steps and not others"
    for results, state, model in run(world_size, _train, Setup(stage), STEPS):
        assert [result.loss for result in results] == pytest.approx(losses, rel=1e-5)
        assert [result.grad_norm for result in results] == pytest.approx(norms, rel=1e-5)
        assert not any(result.skipped for result in results)
        for name, weight in weights.items():
            torch.testing.assert_close(state[f"fp32.{name}"], weight, rtol=1e-5, atol=1e-5)
            assert torch.equal(state[f"fp32.{name}"], model[name]), f"{name}: the model's weight is not the master"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_accumulates_in_fp32_and_stays_near_fp32(stage: int, expected) -> None:
    losses, norms, _ = expected
    (results, state, model), other = run(2, _train, Setup(stage, "bfloat16"), STEPS)
    assert [result.loss for result in results] == [result.loss for result in other[0]]
    assert [result.loss for result in results] == pytest.approx(losses, rel=1e-2)
    assert [result.grad_norm for result in results] == pytest.approx(norms, rel=6e-2)
    for name, weight in model.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, state[f"fp32.{name}"].bfloat16()), f"{name}: not the rounded master"
        assert state[f"fp32.{name}"].dtype == torch.float32


@pytest.mark.parametrize(
    "setup",
    [
        Setup(3, checkpoint_activations=True),
        Setup(3, checkpoint_activations=True, recompute_per="loop"),
        Setup(3, tied=True),
        Setup(1, tied=True),
        Setup(3, zero={"stage3_max_reuse_distance": 0, "stage3_param_persistence_threshold": 0}),
        Setup(2, zero={"overlap_comm": False}),
    ],
    ids=["recompute blocks", "recompute loops", "tied, stage 3", "tied, stage 1", "nothing kept", "no overlap"],
)
def test_recomputation_tying_and_zero_settings_change_no_numbers(setup) -> None:
    losses, norms, weights = oracle(setup, 4)
    results, state, _ = run(2, _train, setup, 4)[0]
    assert [result.loss for result in results] == pytest.approx(losses, rel=1e-5)
    assert [result.grad_norm for result in results] == pytest.approx(norms, rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(state[f"fp32.{name}"], weight, rtol=1e-5, atol=1e-5)


def _train_with_evaluations(setup: Setup, evaluate: bool) -> tuple[list[float], list[float], dict[str, bytes]]:
    evaluations, losses = [], []
    with training(setup) as engine:
        for step in range(3):
            losses.append(train(engine, step, step + 1)[0].loss)
            if evaluate:
                evaluations += [engine.evaluate(my_micro_batches(50 + index)[:1]).item() for index in range(2)]
        return losses, evaluations, fingerprint(full_state(engine))


@pytest.mark.parametrize("stage", [0, 3])
def test_evaluation_is_the_models_loss_and_does_not_disturb_training(stage: int) -> None:
    answers = run(2, _train_with_evaluations, Setup(stage), True)
    undisturbed = run(2, _train_with_evaluations, Setup(stage), False)
    assert [(answer[0], answer[2]) for answer in answers] == [(answer[0], answer[2]) for answer in undisturbed]
    assert all(math.isfinite(loss) for answer in answers for loss in answer[1])
    assert len({loss for answer in answers for loss in answer[1]}) == 12, (
        "two ranks, three times, two different batches"
    )
    _, _, weights = oracle(Setup(stage), 3)
    module = transformer(Setup(stage))
    module.load_state_dict(weights, strict=False)
    assert answers[0][1][-2] == pytest.approx(_rank_zero_loss(module), rel=1e-4)


def _rank_zero_loss(module: nn.Module) -> float:
    with torch.no_grad():
        loss: Tensor = module(*(tensor[:1] for tensor in global_batch(50)))
    return loss.item()


def _arm(module: nn.Module, fault: str) -> RemovableHandle:
    """Put a fault into the next micro-batches of this rank: in the loss only, or in the gradient of one linear's bias."""
    if fault == "loss":
        return module.register_forward_hook(lambda _, __, loss: loss + math.inf)
    linear = module.get_submodule(fault)
    return linear.register_forward_hook(lambda _, __, output: _InfiniteBias.apply(output, linear.bias))


def _train_around_bad_batches(
    setup: Setup, faults: list[str]
) -> tuple[list[StepResult], int, list[float], dict[str, bytes]]:
    """Two steps, one with each fault, two more: the bad ones' results; Adam's step count, losses and state after them."""
    bad = []
    with training(setup) as engine:
        train(engine, 0, 2)
        for fault in faults:
            armed = [_arm(engine.module, fault)] if dist.get_rank() == 1 else []
            bad += train(engine, 99, 100)
            for handle in armed:
                handle.remove()
        losses = [result.loss for result in train(engine, 2, 4)]
        return bad, engine.access.step_count(), losses, fingerprint(full_state(engine) | model_weights(engine))


class _InfiniteBias(torch.autograd.Function):
    """Identity in the state; the bias alone receives an infinite gradient."""

    @staticmethod
    def forward(ctx, output: Tensor, bias: Tensor) -> Tensor:
        ctx.shape = bias.shape
        return output.view_as(output)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, torch.full(ctx.shape, math.inf, dtype=gradient.dtype)


@pytest.mark.parametrize(
    "setup",
    [
        Setup(0),
        Setup(1),
        Setup(2),
        Setup(3),
        Setup(1, "bfloat16"),
        Setup(2, "bfloat16"),
        Setup(3, "bfloat16"),
        Setup(1, "fp16", scaling=STEADY),
        Setup(0, tensor_parallel_size=2),
        Setup(3, "fp16", scaling=STEADY, tensor_parallel_size=2, sequence_parallel=True),
    ],
    ids=lambda setup: f"{setup.stage} {setup.precision} tp{setup.tensor_parallel_size}",
)  # 16 bits at stage 0 are stage 1
def test_a_step_with_a_bad_number_on_one_rank_never_was(setup) -> None:
    clean = run(2, _train_around_bad_batches, setup, [])
    assert clean[0][1] == 4
    faults = {"loss": "loss", "core.0.mlp.up": "core.0.mlp.up.bias"}
    for rank, (steps, *after) in enumerate(run(2, _train_around_bad_batches, setup, list(faults))):
        for bad, (fault, blamed) in zip(steps, faults.items(), strict=True):
            assert bad.skipped and bad.bad_parameter == blamed
            assert math.isinf(bad.loss) == (fault == "loss")
            assert bad.overflowed == (setup.precision == "fp16" and fault != "loss")
        assert after == list(clean[rank][1:]), "training did not continue as if the batches had never been"
