"""Optimizer steps of a model divided over the tensor axis are those of one process, at every ZeRO stage, alone and beside data parallelism.

Pruned: that the divided model is the same function, for every scheme and every kind of block, is proved in float64 in
tests/model/test_tensor_parallel.py; the engine knows neither. Here each ZeRO stage meets 2 and 2 × 2 ranks once, with the schemes, GQA and
both ways to hold states dealt out over them, and 4 ranks once. In 16 bits, where stage 0 is stage 1, three layouts stand for all.
"""

from dataclasses import replace
from typing import Any

import pytest

from megamesh.engine import engine as engine_module
from megamesh.engine.engine import TrainingEngine
from megamesh.parallel.collectives import Kind
from tests.distributed import WorkerError, run
from tests.engine.runs import BOLD, GATED, Setup
from tests.engine.steps import STEPS, compare_with_one_process, distance, train_and_look

GQA = BOLD | GATED


def _setup(stage: int, size: int = 2, scheme: str | None = "mesh", **changes: Any) -> Setup:
    return Setup(stage, tensor_parallel_size=size, scheme=scheme, **({"model": BOLD} | changes))


@pytest.mark.parametrize(
    ("world_size", "setup"),
    [
        (2, _setup(0)),
        (2, _setup(1, scheme=None, sequence_parallel=True, tied=True)),
        (2, _setup(3, sequence_parallel=True, model=GQA, checkpoint_activations=True)),
        (4, _setup(0, scheme=None, model=GQA)),
        (4, _setup(1, scheme="base", sequence_parallel=True)),
        (
            4,
            _setup(2, scheme="anchor", sequence_parallel=True, seed=9),
        ),  # 7 has a bias whose gradient is rounding alone
        (4, _setup(3)),
        (4, _setup(1, 4, sequence_parallel=True, model=GQA)),
    ],
    ids=lambda value: (
        f"stage {value.stage} tp{value.tensor_parallel_size}{' sp' if value.sequence_parallel else ''} {value.scheme}"
        if isinstance(value, Setup)
        else str(value)
    ),
)
def test_ten_steps_are_those_of_one_process(world_size: int, setup) -> None:
    answers = run(world_size, train_and_look, setup, STEPS)
    compare_with_one_process(setup, answers[0])
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
    engine._norms._copies = lambda *_: 1  # type: ignore[method-assign]


def _forget_to_sum(engine: TrainingEngine) -> None:
    engine_module.sum_replicated = lambda *_: None  # type: ignore[assignment]


def _train_without_a_sum(setup: Setup) -> None:
    original = engine_module.sum_replicated
    try:
        train_and_look(setup, 1, _forget_to_sum)
    finally:
        engine_module.sum_replicated = original  # type: ignore[assignment]


@pytest.mark.parametrize("sabotage", [_forget_partial_gradients, _sum_whole_gradients, _count_copies_twice])
def test_the_comparison_sees_what_is_done_wrong_to_replicated_parameters(sabotage) -> None:
    setup = _setup(1)
    trained = run(2, train_and_look, setup, 1, sabotage)[0]
    with pytest.raises(AssertionError):
        compare_with_one_process(setup, trained)


def test_the_comparison_sees_replicated_parameters_drift_apart() -> None:
    with pytest.raises(WorkerError, match="differs between tensor ranks"):
        run(2, _train_without_a_sum, _setup(1))


@pytest.mark.parametrize(
    ("precision", "divided"),
    [
        ("bfloat16", [(2, _setup(1, sequence_parallel=True)), (4, _setup(2))]),
        ("fp16", [(2, _setup(3, sequence_parallel=True))]),
    ],
    ids=["bfloat16", "fp16"],
)
def test_in_16_bits_it_is_as_near_fp32_as_one_process_is(precision: str, divided) -> None:
    keys: dict[str, Any] = {"precision": precision, "scaling": {"initial_scale_power": 10}}
    own_losses, own_gradients = distance(_setup(0), run(1, train_and_look, _setup(1, 1, **keys), STEPS)[0])
    assert 1e-5 < own_losses < 1e-2 and 1e-4 < own_gradients < 3e-2
    for world_size, setup in divided:
        losses, gradients = distance(_setup(0), run(world_size, train_and_look, replace(setup, **keys), STEPS)[0])
        assert losses < 3 * own_losses and gradients < 1.5 * own_gradients
