"""Optimizer steps of a model on the ring are those of one process, at ZeRO 0 and 1, alone and beside data and tensor parallelism.

Pruned: that the ring computes the same loss and gradients, for every scheme, K, cut and kind of block, is proved in float64 in
tests/pipeline/test_ring.py; the engine knows none of these. Here both ZeRO stages meet two and four ranks, with the schemes dealt out over
them, data parallelism with both, and all three axes meet once on eight processes. In 16 bits, where stage 0 is stage 1, one layout each.

Some small models amplify: one rounding of the start weights, 6e-8 of each, moves later gradient norms of 1+4R2+2 by 1e-4. The models (and
seeds) here are such that it stays below 1e-5, or the comparison would say nothing.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megamesh.engine.engine import TrainingEngine
from tests.distributed import run
from tests.engine.runs import BOLD, GATED, Setup, global_batch, my_micro_batches, train, training, transformer
from tests.engine.steps import STEPS, Trained, compare_with_one_process, distance, train_and_look


def _setup(stage: int, size: int = 2, scheme: str | None = "mesh", **changes: Any) -> Setup:
    return Setup(stage, pipe_parallel_size=size, scheme=scheme, **({"model": BOLD} | changes))


def on_ring(world_size: int, setup: Setup) -> Trained:
    """What all ranks found together: every pipeline rank has parameters of its own."""
    answers = run(world_size, train_and_look, setup, STEPS)
    results, _, _, communication = answers[0]
    assert len({repr(results) for results, *_ in answers}) == 1, "ranks disagree on what a step did"
    per_rank = world_size // setup.pipe_parallel_size
    gradients: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    for _, own_gradients, own_state, _ in answers[::per_rank]:
        assert not gradients.keys() & own_gradients.keys(), "a parameter is on two pipeline ranks"
        gradients |= own_gradients
        state |= own_state
    return results, gradients, state, communication


@pytest.mark.parametrize(
    ("world_size", "setup"),
    [
        (2, _setup(0)),
        (2, _setup(1, scheme="anchor*", tied=True, checkpoint_activations=True, recompute_per="loop")),
        (2, _setup(1, scheme=None, num_passes=2)),
        (4, _setup(0, 4, scheme="anchor", recursion="2+3R3+2")),
        (4, _setup(1, 4, recursion="2+3R2+2", seed=9, partition="0,1,0,1+1,0,1,1+1,0,1,0", schedule="looped_bfs")),
        (4, _setup(0, scheme="dynamic", seed=9)),
        (4, _setup(1, scheme="residual", tied=True, zero={"overlap_comm": True})),
        (8, _setup(1, tensor_parallel_size=2, sequence_parallel=True, model=BOLD | GATED)),
    ],
    ids=lambda value: (
        f"stage {value.stage} pp{value.pipe_parallel_size} tp{value.tensor_parallel_size} {value.scheme}"
        if isinstance(value, Setup)
        else str(value)
    ),
)
def test_ten_steps_are_those_of_one_process(world_size: int, setup) -> None:
    compare_with_one_process(setup, on_ring(world_size, setup))


@pytest.fixture(scope="module")
def one_process() -> dict[str, tuple[float, float]]:
    """How far one process in 16 bits is from fp32: its losses, and its first gradients."""
    return {
        precision: distance(_setup(1), run(1, train_and_look, replace(_setup(1, 1), **_keys(precision)), STEPS)[0])
        for precision in ("bfloat16", "fp16")
    }


def _keys(precision: str) -> dict[str, Any]:
    return {"precision": precision, "scaling": {"initial_scale_power": 10}}


@pytest.mark.parametrize(
    ("precision", "world_size", "setup"),
    [("bfloat16", 2, _setup(0)), ("bfloat16", 4, _setup(1)), ("fp16", 2, _setup(1))],
)
def test_in_16_bits_it_is_as_near_fp32_as_one_process_is(
    precision: str, world_size: int, setup, one_process: dict[str, tuple[float, float]]
) -> None:
    own_losses, own_gradients = one_process[precision]
    losses, gradients = distance(_setup(1), on_ring(world_size, replace(setup, **_keys(precision))))
    assert losses < 3 * own_losses and gradients < 1.5 * own_gradients


def _evaluate(setup: Setup) -> list[Tensor]:
    """Before and after a step that computes with other dropout, and of fewer micro-batches than a step has."""
    with training(setup) as engine:
        before = engine.evaluate(my_micro_batches(50, engine.mesh))
        train(engine, 0, 1)
        return [before, engine.evaluate(my_micro_batches(50, engine.mesh)[:3])]


def test_an_evaluation_drops_nothing_and_is_the_same_on_all_ranks() -> None:
    setup = _setup(1, model=BOLD | {"hidden_dropout": 0.5, "attention_dropout": 0.5})
    module = transformer(replace(setup, pipe_parallel_size=1)).eval()
    micro_batches = zip(*(tensor.chunk(4) for tensor in global_batch(50)), strict=True)
    expected = torch.stack([module(*inputs).detach() for inputs in micro_batches])
    for before, after in run(2, _evaluate, setup):
        torch.testing.assert_close(before, expected, rtol=1e-5, atol=0)
        assert after.shape == (3,) and not torch.equal(after, before[:3])


def _spoil_on_rank(setup: Setup, rank: int) -> list[tuple[bool, str | None]]:
    """Two steps; before the second one a weight of one pipeline rank is made infinite."""
    with training(setup) as engine:
        results = train(engine, 0, 1)
        if engine.mesh.rank("pp") == rank:
            _make_infinite(engine)
        results += train(engine, 1, 2)
        return [(result.skipped, result.bad_parameter) for result in results]


def _make_infinite(engine: TrainingEngine) -> None:
    name, parameter = list(engine.named_parameters())[-1]
    assert name in engine.shards
    parameter.data.fill_(float("inf"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_step_with_a_bad_number_on_one_rank_is_skipped_on_all(rank: int) -> None:
    answers = run(2, _spoil_on_rank, _setup(1), rank)
    assert len({repr(answer) for answer in answers}) == 1
    (good, _), (skipped, bad_parameter) = answers[0]
    assert not good and skipped
    assert bad_parameter == "embedding.weight", "the first in model order, whichever rank it is on"
