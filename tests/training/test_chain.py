"""A run that changes its layout again and again is the run that never did; the same layout twice is so bit for bit.

Every change is one to what the configuration says of parallelism: the command, the save folder and the data are the same.
"""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from megamesh.checkpoint.reader import read_meta
from megamesh.config.load import load_config
from megamesh.engine.engine import StepResult
from megamesh.training.hooks.metrics_file import read_metrics
from megamesh.training.hooks.signals import SIGNALS, SignalHook
from megamesh.training.run import prepare
from megamesh.training.trainer import Hook, Trainer
from tests.distributed import run
from tests.training.test_layouts import KEYS, assert_near
from tests.training.test_run import assert_same_run
from tests.training.tiny import write_config, write_corpus

STEPS_EACH = 3
CHAIN: list[tuple[int, dict[str, Any]]] = [
    (4, {"model_parallel_size": 2, "sequence_parallel": True, "zero_optimization": {"stage": 1}}),
    (4, {"pipe_parallel_size": 2, "model_parallel_size": 2, "zero_optimization": {"stage": 0}}),
    (4, {"zero_optimization": {"stage": 3}}),
    (4, {"pipe_parallel_size": 4, "zero_optimization": {"stage": 1}}),
    (1, {"zero_optimization": {"stage": 0}}),
    (8, {"pipe_parallel_size": 2, "model_parallel_size": 2, "zero_optimization": {"stage": 1}}),
]
NAMES = ["tp2-dp2-zero1", "pp2-tp2", "dp4-zero3", "pp4", "one", "pp2-tp2-dp2"]
MODEL = KEYS | {
    "num_layers": 12,
    "recursion": "2+4R2+2",
    "train_iters": STEPS_EACH * len(CHAIN),
    "eval_interval": STEPS_EACH,
    "checkpoint_factor": None,
    "async_save": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_corpus(folder / "corpus")
    return folder


class _StopHook(Hook):
    """Ends a run as a signal would."""

    def __init__(self, last_step: int) -> None:
        self.last_step = last_step

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if trainer.state.step == self.last_step:
            trainer.stop_reason = "enough"


def train_until(config: Path, last_step: int) -> tuple[int, int]:
    """Part of a run, in a worker: the steps at which it began and ended."""
    trainer = prepare(load_config([config]), torch.device("cpu"), SignalHook())
    first = trainer.state.step
    trainer.hooks = [*trainer.hooks, _StopHook(last_step)]
    trainer.train()
    trainer.engine.close()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    return first, trainer.state.step


def part(folder: Path, name: str, steps: tuple[int, int], world_size: int, **keys: Any) -> None:
    config = write_config(folder, name, **MODEL | keys)
    assert run(world_size, train_until, config, steps[1]) == [steps] * world_size


def test_a_chain_of_layouts_follows_one_straight_run(folder: Path) -> None:
    """Losses, norms, evaluations and last weights of 18 steps on six layouts, each loaded from the one before."""
    config = write_config(folder, "straight", **MODEL | {"hidden_dropout": 0.0, "zero_optimization": {"stage": 0}})
    assert run(1, train_until, config, MODEL["train_iters"]) == [(0, MODEL["train_iters"])]
    for number, (world_size, keys) in enumerate(CHAIN, 1):
        steps = ((number - 1) * STEPS_EACH, number * STEPS_EACH)
        part(folder, "chain", steps, world_size, hidden_dropout=0.0, **keys)
        meta = read_meta(folder / "chain")
        assert (meta.state.step, meta.state.consumed_samples) == (number * STEPS_EACH, number * STEPS_EACH * 4)
        sizes = [meta.layout[f"{axis}_size"] for axis in ("pp", "tp", "dp")]
        assert (
            sizes[0] * sizes[1] * sizes[2] == world_size
            and meta.layout["zero_stage"] == keys["zero_optimization"]["stage"]
        )
    assert_near(folder / "chain", folder / "straight")
    norms = [
        [row["grad_norm"] for row in read_metrics(folder / name / "metrics.jsonl") if row["kind"] == "train"]
        for name in ("chain", "straight")
    ]
    assert len(norms[0]) == MODEL["train_iters"] and norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize(("world_size", "keys"), CHAIN, ids=NAMES)
def test_the_same_layout_twice_is_bit_identical_with_dropout(
    folder: Path, world_size: int, keys: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    keys = keys | {
        "attention_dropout": 0.1,
        "num_layers": 6,
        "recursion": "1+2R2+1",
        "train_iters": 4,
        "eval_interval": 2,
    }
    part(folder, f"straight-{name}", (0, 4), world_size, **keys)
    for steps in ((0, 2), (2, 4)):
        part(folder, f"twice-{name}", steps, world_size, **keys)
    assert_same_run(folder / f"twice-{name}", folder / f"straight-{name}")
