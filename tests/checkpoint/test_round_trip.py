"""A run continues from a checkpoint: the same layout bit for bit, any other with the same numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megamesh.checkpoint.meta import RunState
from megamesh.config.sections import PrecisionConfig
from megamesh.model.build import torch_dtype
from tests.checkpoint.runs import load_and_train, load_each, train_and_save, train_straight
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


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bfloat16"), (2, "bfloat16"), (3, "bfloat16")],
)  # bf16 at stage 0 is stage 1; fp16, with its loss scale, is in tests/engine/test_fp16.py
def test_ten_steps_and_ten_after_loading_are_twenty_bit_for_bit(tmp_path, stage, precision):
    setup = Setup(stage, precision)
    straight = run(2, train_straight, setup, 20)
    run(2, train_and_save, setup, tmp_path, 10)
    continued = run(2, load_and_train, replace(setup, seed=OTHER_SEED), tmp_path, 20)
    for (losses, bits), (state, later_losses, later_bits) in zip(straight, continued, strict=True):
        assert state == RunState(step=10, consumed_samples=40, seed=7, skipped_steps=1)
        assert later_losses == losses[10:]
        assert later_bits == bits


@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (1, 1), (2, 3)])
def test_a_run_of_stage_1_on_two_continues_elsewhere(tmp_path, world_size, stage):
    losses, _ = run(2, train_straight, Setup(1), 20)[0]
    run(2, train_and_save, Setup(1), tmp_path, 10)
    for _, later_losses, _ in run(world_size, load_and_train, Setup(stage, seed=OTHER_SEED), tmp_path, 20):
        assert later_losses == pytest.approx(losses[10:], rel=1e-5)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, tuple[Path, dict[str, torch.Tensor]]]:
    """One checkpoint of every layout, with the state that was in memory."""
    checkpoints = {}
    for name, (world_size, setup) in WRITERS.items():
        folder = tmp_path_factory.mktemp("run")
        checkpoints[name] = folder, run(world_size, train_and_save, setup, folder, 2)[0]
    return checkpoints


@pytest.mark.parametrize("reader", WRITERS)
def test_every_layout_reads_what_every_layout_wrote_bit_for_bit(written, reader):
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
