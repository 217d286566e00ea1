"""Optimizer steps of a model divided over the tensor axis are those of one process, at every ZeRO stage, alone and beside data parallelism.

Pruned: that the divided model is the same function, for every scheme and every kind of block, is proved in float64 in
tests/model/test_tensor_parallel.py; the engine knows neither. Here each ZeRO stage meets 2 and 2 × 2 ranks once, with the schemes, GQA and
both ways to hold states dealt out over them, and 4 ranks once. In 16 bits, where stage 0 is stage 1, three layouts stand for all.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megamesh.engine import engine as engine_module
from megamesh.engine.engine import StepResult, TrainingEngine
from megamesh.engine.zero_access import Fragment
from megamesh.parallel.collectives import Communication, Kind, count_communication
from tests.distributed import WorkerError, run
from tests.engine.runs import CLIP, PEAK, Setup, full_state, global_batch, join, oracle, train, training, transformer

STEPS = 10
BOLD: dict[str, Any] = {
    "init_method_std": 0.1,
    "output_layer_init_method": "normal",
}  # gradients of routers are not mere rounding
GQA = BOLD | {
    "num_attention_heads": 8,
    "num_kv_heads": 4,
    "norm": "rmsnorm",
    "activation": "swiglu",
    "intermediate_size": 88,
}

Trained = tuple[list[StepResult], dict[str, Tensor], dict[str, Tensor], Communication]


def _setup(stage: int, size: int = 2, scheme: str | None = "mesh", **changes: Any) -> Setup:
    return Setup(stage, tensor_parallel_size=size, scheme=scheme, **({"model": BOLD} | changes))


def _train(setup: Setup, num_steps: int, sabotage: Callable[[TrainingEngine], None] | None = None) -> Trained:
    """Results of all steps, the gradients of the first before clipping, the state after the last, and the last step's communication."""
    with training(setup) as engine:
        engine.access.prepare_state()
        gradients: dict[str, Tensor] = {}
        clip = engine._clip

        def look_and_clip(grad_norm: float, own: list[Tensor | None]) -> None:
            if not gradients:
                gradients.update(_join_gradients(engine, own))
            clip(grad_norm, own)

        engine._clip = look_and_clip  # type: ignore[assignment,method-assign]
        if sabotage is not None:
            sabotage(engine)
        results = train(engine, 0, num_steps - 1)
        with count_communication() as communication:
            results += train(engine, num_steps - 1, num_steps)
        return results, gradients, full_state(engine), communication


def _join_gradients(engine: TrainingEngine, own: list[Tensor | None]) -> dict[str, Tensor]:
    joined = {}
    for (name, parameter), values in zip(engine.named_parameters(), own, strict=True):
        place = engine.access.fragment(parameter, "fp32")
        fragment = None if place is None or values is None else Fragment(place.start, values)
        joined[name] = join(engine, name, parameter, fragment)
    return joined


def _compare(setup: Setup, trained: Trained) -> None:
    """With plain torch on one process: losses, norms, the first step's gradients, the last weights."""
    results, gradients, state, _ = trained
    losses, norms, weights = oracle(setup, len(results))
    assert max(norms) > CLIP, "the test must clip"
    assert [result.loss for result in results] == pytest.approx(losses, rel=1e-5)
    assert [result.grad_norm for result in results] == pytest.approx(norms, rel=1e-5)
    module = transformer(setup)
    module(*global_batch(0)).backward()
    for name, parameter in module.named_parameters():
        expected = parameter.grad
        error = (gradients[name] - expected).norm()
        assert error <= 1e-5 * expected.norm() + 1e-8 * norms[0], (
            f"gradient of {name}: {error:g} of {expected.norm():g}"
        )
        # Adam moves even what has a gradient of rounding only (the keys' biases), but by no more than a thousandth of its rate.
        torch.testing.assert_close(
            state[f"fp32.{name}"], weights[name], rtol=1e-4, atol=1e-3 * PEAK * STEPS, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    ("world_size", "setup"),
    [
        (2, _setup(0)),
        (2, _setup(1, scheme=None, sequence_parallel=True, tied=True)),
        (2, _setup(3, sequence_parallel=True, model=GQA, checkpoint_activations=True)),
        (4, _setup(0, scheme=None, model=GQA)),
        (4, _setup(1, scheme="base", sequence_parallel=True)),
        (4, _setup(2, scheme="anchor", sequence_parallel=True)),
        (4, _setup(3)),
        (4, _setup(1, 4, sequence_parallel=True, model=GQA)),
    ],
    ids=lambda value: (
        f"stage {value.stage} tp{value.tensor_parallel_size}{' sp' if value.sequence_parallel else ''} {value.scheme}"
        if isinstance(value, Setup)
        else str(value)
    ),
)
def test_ten_steps_are_those_of_one_process(world_size, setup):
    answers = run(world_size, _train, setup, STEPS)
    _compare(setup, answers[0])
    assert len({repr(results) for results, *_ in answers}) == 1, "ranks disagree on what a step did"
    kind = Kind("replicated_gradients", "step", "all_reduce")
    num_calls = [communication.calls[kind] for *_, communication in answers]
    assert max(num_calls) == 1, (
        "one collective per step (none where a data-parallel rank holds no replicated parameter)"
    )


def _forget_partial_gradients(engine: TrainingEngine) -> None:
    engine._specs = [replace(spec, partial_gradient=False) for spec in engine._specs]


def _sum_whole_gradients(engine: TrainingEngine) -> None:
    engine._specs = [replace(spec, partial_gradient=spec.dim is None) for spec in engine._specs]


def _count_copies_twice(engine: TrainingEngine) -> None:
    engine._num_copies = lambda index: 1  # type: ignore[method-assign]


def _forget_to_sum(engine: TrainingEngine) -> None:
    engine_module.sum_replicated = lambda *_: None  # type: ignore[assignment]


def _train_without_a_sum(setup: Setup) -> None:
    original = engine_module.sum_replicated
    try:
        _train(setup, 1, _forget_to_sum)
    finally:
        engine_module.sum_replicated = original  # type: ignore[assignment]


@pytest.mark.parametrize("sabotage", [_forget_partial_gradients, _sum_whole_gradients, _count_copies_twice])
def test_the_comparison_sees_what_is_done_wrong_to_replicated_parameters(sabotage):
    setup = _setup(1)
    trained = run(2, _train, setup, 1, sabotage)[0]
    with pytest.raises(AssertionError):
        _compare(setup, trained)


def test_the_comparison_sees_replicated_parameters_drift_apart():
    with pytest.raises(WorkerError, match="differs between tensor ranks"):
        run(2, _train_without_a_sum, _setup(1))


@pytest.fixture(scope="module")
def in_fp32():
    module = transformer(_setup(0))
    module(*global_batch(0)).backward()
    losses, *_ = oracle(_setup(0), STEPS)
    return losses, {name: parameter.grad for name, parameter in module.named_parameters()}


def _distance(trained: Trained, losses: list[float], gradients: dict[str, Tensor]) -> tuple[float, float]:
    """From fp32: of the losses, and of the first step's gradients, as shares of them."""
    of_losses = max(abs(result.loss / loss - 1) for result, loss in zip(trained[0], losses, strict=True))
    difference = sum(float((trained[1][name] - gradient).square().sum()) for name, gradient in gradients.items())
    return of_losses, (difference / sum(float(gradient.square().sum()) for gradient in gradients.values())) ** 0.5


@pytest.mark.parametrize(
    ("precision", "divided"),
    [
        ("bfloat16", [(2, _setup(1, sequence_parallel=True)), (4, _setup(2))]),
        ("fp16", [(2, _setup(3, sequence_parallel=True))]),
    ],
    ids=["bfloat16", "fp16"],
)
def test_in_16_bits_it_is_as_near_fp32_as_one_process_is(precision, divided, in_fp32):
    keys: dict[str, Any] = {"precision": precision, "scaling": {"initial_scale_power": 10}}
    own_losses, own_gradients = _distance(run(1, _train, _setup(1, 1, **keys), STEPS)[0], *in_fp32)
    assert 1e-5 < own_losses < 1e-2 and 1e-4 < own_gradients < 3e-2
    for world_size, setup in divided:
        losses, gradients = _distance(run(world_size, _train, replace(setup, **keys), STEPS)[0], *in_fp32)
        assert losses < 3 * own_losses and gradients < 1.5 * own_gradients
