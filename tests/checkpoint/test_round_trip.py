"""A run continues from a checkpoint: the same layout bit for bit, any other with the same numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megamesh.checkpoint.meta import RunState
from megamesh.config.keys import PrecisionConfig
from megamesh.model.build import torch_dtype
from tests.checkpoint.runs import DIVIDED, load_and_train, load_each, train_and_save, train_and_save_half_way
from tests.distributed import run
from tests.engine.runs import Setup

OTHER_SEED = 8
WRITERS = {
    "one process": (1, Setup(0)),
    "two, stage 0": (2, Setup(0)),
    "two, stage 1": (2, Setup(1)),
    "two, stage 2": (2, Setup(2)),
    "two, stage 3": (2, Setup(3)),
    "two, bf16 1": (2, Setup(1, "bfloat16")),
    "two, bf16 3": (2, Setup(3, "bfloat16")),
    "two, fp16 2": (2, Setup(2, "fp16")),
}


def divided(stage: int, precision: str = "fp32", **keys: Any) -> Setup:
    return Setup(stage, precision, tensor_parallel_size=2, model=DIVIDED, **keys)


@pytest.mark.parametrize(
    ("world_size", "setup"),
    [
        *((2, Setup(stage)) for stage in (0, 1, 2, 3)),
        *((2, Setup(stage, "bfloat16")) for stage in (1, 2, 3)),  # stage 0 is stage 1
        (2, divided(0, sequence_parallel=True)),
        (2, divided(1, "fp16", tied=True)),  # fp16 with a loss scale that moves is in tests/engine/test_fp16.py
        (4, divided(1, "bfloat16", sequence_parallel=True)),
        (4, divided(3)),
    ],
    ids=lambda value: (
        f"stage {value.stage} {value.precision} tp{value.tensor_parallel_size}"
        if isinstance(value, Setup)
        else str(value)
    ),
)
def test_steps_after_loading_are_those_without_it_bit_for_bit(tmp_path: Path, world_size: int, setup) -> None:
    """Ten and ten, in whole runs, are in tests/training/test_run.py."""
    straight = run(world_size, train_and_save_half_way, setup, tmp_path, 8)
    continued = run(world_size, load_and_train, replace(setup, seed=OTHER_SEED), tmp_path, 8)
    for (losses, bits), (state, later_losses, later_bits) in zip(straight, continued, strict=True):
        assert state == RunState(step=4, consumed_samples=16, seed=7, skipped_steps=1)
        assert later_losses == losses[4:]
        assert later_bits == bits


@pytest.fixture(scope="module")
def half_way(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A checkpoint of stage 1 on two processes, and the losses of the ten steps after it."""
    folder = tmp_path_factory.mktemp("run")
    losses, _ = run(2, train_and_save_half_way, Setup(1), folder, 20)[0]
    return folder, losses[10:]


@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (1, 1), (2, 3)])
def test_a_run_of_stage_1_on_two_continues_elsewhere(
    half_way: tuple[Path, list[float]], world_size: int, stage: int
) -> None:
    folder, expected = half_way
    for _, losses, _ in run(world_size, load_and_train, Setup(stage, seed=OTHER_SEED), folder, 20):
        assert losses == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, torch.Tensor]]]:
    """One checkpoint of every layout, with the state that was in memory."""
    checkpoints = {}
    for name, (world_size, setup) in WRITERS.items():
        folder = tmp_path_factory.mktemp("run")
        checkpoints[name] = folder, run(world_size, train_and_save, setup, folder, 2)[0]
    return checkpoints


@pytest.mark.parametrize("reader", WRITERS)
def test_every_layout_reads_what_every_layout_wrote_bit_for_bit(
    written: dict[str, tuple[Path, dict[str, torch.Tensor]]], reader
) -> None:
    world_size, setup = WRITERS[reader]
    paths = [path for path, _ in written.values()]
    loaded = run(world_size, load_each, replace(setup, seed=OTHER_SEED), paths)[0]
    for (writer, (_, expected)), (step_count, state, weights) in zip(written.items(), loaded, strict=True):
        assert step_count == 2
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(state[name], tensor), f"{name} differs, written by {writer}"
        dtype = torch_dtype(PrecisionConfig(precision=setup.precision))
        for name, pattern in weights.items():
            rounded = expected[f"fp32.{name}"].to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
            assert pattern == rounded, f"the model computes with a stale {name}, written by {writer}"
