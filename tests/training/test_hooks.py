"""Hooks one by one, on a trainer that only counts."""

import json
import logging
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megamesh.checkpoint.meta import RunState
from megamesh.config.keys import CheckpointConfig
from megamesh.engine.engine import StepResult
from megamesh.engine.loss_scale import LossScale
from megamesh.engine.peak_memory import PeakMemory, own_peak_bytes, peak_memory
from megamesh.errors import TrainingError
from megamesh.training.hooks import memory, save_clock
from megamesh.training.hooks.checkpoint import is_due, when_saved
from megamesh.training.hooks.console import ConsoleHook, training_line
from megamesh.training.hooks.memory import MemoryHook
from megamesh.training.hooks.metrics_file import MetricsFileHook, read_metrics
from megamesh.training.hooks.nonfinite import NonFiniteHook
from megamesh.training.hooks.progress import ProgressHook
from megamesh.training.hooks.save_clock import SaveClock
from megamesh.training.hooks.signals import SignalHook
from megamesh.training.hooks.tensorboard import TensorBoardHook
from megamesh.training.throughput import Throughput, known_peak_tflops
from megamesh.training.trainer import Hook, Metrics, Trainer
from tests.distributed import run


def due_steps(last: int, **keys) -> list[int]:
    return [step for step in range(1, last + 1) if is_due(step, CheckpointConfig(**keys))]


def test_checkpoints_are_due_as_in_neox() -> None:
    assert due_steps(100, checkpoint_factor=20) == [20, 40, 60, 80, 100]
    assert due_steps(100, checkpoint_factor=2, checkpoint_scale="log") == [1, 2, 4, 8, 16, 32, 64]
    assert due_steps(10, extra_save_iters=[3, 7]) == [3, 7]
    assert due_steps(10) == []


def state(step: int, **changes) -> SimpleNamespace:
    return SimpleNamespace(
        step=step, consumed_samples=step * 4, skipped_steps=0, consecutive_skipped_steps=0, **changes
    )


def test_progress_averages_since_the_last_line_and_leaves_skipped_steps_out() -> None:
    throughput = Throughput(sequence_length=10, samples_per_step=4, flops_per_token=1e9, num_devices=2, peak_tflops=0.1)
    hook, published = ProgressHook(3, throughput), []
    trainer = SimpleNamespace(publish=published.append, train_iters=5, step_seconds=0.5, consumed_tokens=40)
    for step, (loss, skipped) in enumerate(
        [(4.0, False), (float("nan"), True), (2.0, False), (1.0, False), (3.0, False)], 1
    ):
        trainer.state = state(step)
        hook.after_step(trainer, StepResult(loss, 0.7, 1e-3, skipped, "x" if skipped else None))
    assert [(metrics.step, metrics.values["loss"]) for metrics in published] == [(3, 3.0), (5, 2.0)]
    values = published[0].values
    assert values["tokens_per_second"] == 80.0
    assert values["tflops_per_device"] == pytest.approx(0.04)
    assert values["mfu"] == pytest.approx(0.4)
    assert values["seconds_left"] == pytest.approx(1.0)
    assert "loss  3.0000" in training_line(values)
    assert "80 tokens/s" in training_line(values)
    assert "loss_scale" not in values and "loss scale" not in training_line(values)
    assert "loss scale 4096 " in training_line(values | {"loss_scale": 4096.0})


def test_metrics_file_drops_what_a_resumed_run_writes_again(tmp_path: Path) -> None:
    hook = MetricsFileHook(tmp_path)
    hook.on_start(SimpleNamespace(state=state(0), train_iters=9))
    for step in (1, 2, 3):
        hook.on_metrics(Metrics("train", step, {"loss": float(step)}))
    with hook.path.open("a") as file:
        file.write('{"kind": "train", "st')  # killed while writing
    assert [row["step"] for row in read_metrics(hook.path)] == [1, 2, 3]
    resumed = MetricsFileHook(tmp_path)
    resumed.on_start(SimpleNamespace(state=state(2), train_iters=9))
    resumed.on_metrics(Metrics("train", 3, {"loss": 30.0}))
    assert [json.loads(line)["loss"] for line in hook.path.read_text().splitlines()] == [1.0, 2.0, 30.0]


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    hook = MetricsFileHook(tmp_path)
    hook.on_start(SimpleNamespace(state=state(0), train_iters=9))
    hook.on_metrics(Metrics("train", 1, {"loss": float("nan"), "grad_norm": float("inf"), "learning_rate": 0.5}))
    (row,) = read_metrics(hook.path)
    assert (row["loss"], row["grad_norm"], row["learning_rate"]) == (None, None, 0.5)


def test_metrics_that_cannot_be_written_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("megamesh"), "propagate", True)
    MetricsFileHook(tmp_path / "gone").on_metrics(Metrics("train", 3, {"loss": 1.0}))
    assert "the train metrics of step 3 are lost: No such file or directory" in caplog.text


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
    ],
)
def test_peaks_belong_to_whole_names(name: str, peak) -> None:
    assert known_peak_tflops(name) == peak


def test_too_many_skipped_steps_in_a_row_stop_the_run() -> None:
    hook = NonFiniteHook(limit=2)
    bad = StepResult(float("nan"), float("nan"), 1e-3, True, "core.0.mlp.up.weight")
    trainer = SimpleNamespace(state=state(7))
    trainer.state.consecutive_skipped_steps = 1
    hook.after_step(trainer, bad)
    trainer.state.consecutive_skipped_steps = 2
    with pytest.raises(TrainingError, match=r"step 7: 2 non-finite steps in a row .*core\.0\.mlp\.up\.weight"):
        hook.after_step(trainer, bad)


def test_overflows_of_a_dynamic_loss_scale_are_said_and_neither_counted_nor_forgiven(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("megamesh"), "propagate", True)
    overflow = StepResult(2.5, float("inf"), 1e-3, True, "head.weight", loss_scale=65536.0, overflowed=True)
    engine = SimpleNamespace(loss_scale=LossScale(32768.0))
    with caplog.at_level(logging.INFO, "megamesh"):
        NonFiniteHook(limit=1).after_step(SimpleNamespace(state=state(7), engine=engine), overflow)
    assert (
        "step 7 skipped: the gradient of head.weight overflows fp16 at loss scale 65536; the next step is at 32768"
        in caplog.text
    )
    run_state = RunState(0, 0, 7)
    for skipped, overflowed, in_a_row in [
        (True, False, 1),
        (True, True, 1),
        (True, False, 2),
        (False, False, 0),
        (True, True, 0),
    ]:
        run_state = run_state.after_step(4, skipped=skipped, overflowed=overflowed)
        assert run_state.consecutive_skipped_steps == in_a_row
    assert run_state.skipped_steps == 4


def stop_reason_where_rank_1_got_sigterm() -> str | None:
    hook = SignalHook()
    trainer = SimpleNamespace(engine=SimpleNamespace(device=torch.device("cpu")), stop_reason=None)
    hook.after_step(trainer, StepResult(1.0, 1.0, 1e-3, False, None))
    assert trainer.stop_reason is None and trainer.time_is_over is False
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)  # the first one counts
    hook.after_step(trainer, StepResult(1.0, 1.0, 1e-3, False, None))
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    return trainer.stop_reason


def test_a_signal_on_one_rank_stops_all() -> None:
    assert run(2, stop_reason_where_rank_1_got_sigterm) == ["SIGTERM", "SIGTERM"]


def saves_where_time_is_over(rank: int) -> bool:
    hook = SignalHook()
    hook.clock = SaveClock(1e-9 if int(os.environ["RANK"]) == rank else None)
    trainer = SimpleNamespace(engine=SimpleNamespace(device=torch.device("cpu")), stop_reason=None)
    hook.after_step(trainer, StepResult(1.0, 1.0, 1e-3, False, None))
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    assert trainer.stop_reason is None
    return trainer.time_is_over


def test_the_clock_of_rank_0_says_for_all_when_time_is_over() -> None:
    assert run(2, saves_where_time_is_over, 0) == [True, True]
    assert run(2, saves_where_time_is_over, 1) == [False, False]


def test_the_save_clock_counts_from_the_last_save(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(save_clock.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(save_clock.dist, "get_rank", lambda: 0)
    clock, never = SaveClock(30), SaveClock(None)
    found = []
    for seconds in (1799, 1, 1):
        now[0] += seconds
        found.append((clock.is_due(), never.is_due()))
    clock.restart()
    found.append((clock.is_due(), never.is_due()))
    assert found == [(False, False), (True, False), (True, False), (False, False)]


@pytest.mark.parametrize(
    ("keys", "minutes", "told"),
    [
        ({}, 30.0, "after 30 minutes without a save, at the end"),
        ({"checkpoint_minutes": 0}, None, "at the end"),
        ({"checkpoint_factor": 1000}, None, "every 1000 steps, at the end"),
        ({"extra_save_iters": [3, 7]}, None, "at steps 3, 7, at the end"),
        (
            {"checkpoint_factor": 1, "checkpoint_minutes": 5.5},
            5.5,
            "every step, after 5.5 minutes without a save, at the end",
        ),
        ({"checkpoint_factor": 2, "checkpoint_scale": "log"}, None, "at steps 1, 2, 4, …, at the end"),
    ],
)
def test_a_run_that_names_no_steps_saves_by_time(keys: dict[str, Any], minutes: float | None, told: str) -> None:
    config = CheckpointConfig(**keys)
    assert config.minutes_between_saves == minutes
    assert when_saved(config) == f"{told}, and when a signal stops the run"


def steps_told(interval: int, skipped: list[bool], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps after which the peak is told, of a run with these steps."""
    told: list[int] = []
    trainer = SimpleNamespace(engine=SimpleNamespace(device=torch.device("cpu")), state=state(0))
    monkeypatch.setattr(memory, "peak_memory", lambda _: told.append(trainer.state.step) or PeakMemory(1, 0, 1.0))
    hook = MemoryHook(interval)
    for step, skip in enumerate(skipped, 1):
        trainer.state = state(step)
        hook.after_step(trainer, StepResult(1.0, 1.0, 1e-3, skip, None))
    hook.on_end(trainer)
    return told


def test_peak_memory_is_told_once_a_whole_step_had_the_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps_told(1, [False] * 6, monkeypatch) == [2, 6]
    assert steps_told(4, [False] * 6, monkeypatch) == [4, 6]
    assert steps_told(1, [True, True, False, False, False], monkeypatch) == [4, 5]
    assert steps_told(1, [False], monkeypatch) == [1]


class Kept(Hook):
    def __init__(self) -> None:
        self.shown: list[Metrics] = []

    def on_metrics(self, metrics: Metrics) -> None:
        self.shown.append(metrics)


def publish(metrics: Metrics, *hooks: Hook) -> None:
    Trainer.publish(SimpleNamespace(hooks=hooks), metrics)


def test_any_named_number_goes_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("megamesh"), "propagate", True)
    file, board, kept = MetricsFileHook(tmp_path), TensorBoardHook(str(tmp_path / "board")), Kept()
    board.on_start(SimpleNamespace(state=state(0)))
    hooks = (ConsoleHook(9), file, board, kept)
    with caplog.at_level(logging.INFO, "megamesh"):
        publish(Metrics("my_kind", 3, {"a/norm": torch.tensor(0.25), "b": np.float32(1.5), "c": 7}), *hooks)
        publish(Metrics("train", 4, {"mine": 12345.678}), *hooks)
        publish(Metrics("valid", 5, {"accuracy": 0.5}), *hooks)
        publish(Metrics("train", 5, {"seconds_left": math.nan, "loss": math.inf}), *hooks)
        publish(Metrics("many", 6, {f"n{i}": float(i) for i in range(10)}), *hooks)
    assert [record.getMessage() for record in caplog.records] == [
        "step 3/9 | my_kind | a/norm 0.25 | b 1.5 | c 7",
        "step 4/9 | mine 1.235e+04",
        "step 5/9 | validation | accuracy 0.5",
        "step 5/9 | loss     inf",
        "step 6/9 | many | n0 0 | n1 1 | n2 2 | n3 3 | n4 4 | n5 5 | n6 6 | n7 7 | and 2 more",
    ]
    assert read_metrics(file.path)[:2] == [
        {"kind": "my_kind", "step": 3, "a/norm": 0.25, "b": 1.5, "c": 7.0},
        {"kind": "train", "step": 4, "mine": 12345.678},
    ]
    assert all(type(value) is float for metrics in kept.shown for value in metrics.values.values())
    board.on_end(SimpleNamespace())
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("my_kind/a/norm")] == [(3, 0.25)]
    assert len(events.Tags()["scalars"]) == 3 + 1 + 2 + 1 + 10


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("word", "7", r"'word'='7', which is not a number"),
        ("both", torch.ones(2), r"'both', a Tensor that is not one number"),
        ("step", 7.0, r"'step', which every row of metrics has already"),
    ],
)
def test_what_is_not_a_number_is_an_error(name: str, value: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=rf"the my_kind metrics of step 3 have {message}"):
        publish(Metrics("my_kind", 3, {name: value}))


class Told(Hook):
    def __init__(self, name: str, told: list[str]):
        self.name, self.told = name, told

    def on_start(self, trainer: Trainer) -> None:
        self.told.append(f"{self.name} starts")

    def on_end(self, trainer: Trainer) -> None:
        self.told.append(f"{self.name} ends")


def test_what_shows_starts_before_what_measures_and_ends_after_it() -> None:
    told: list[str] = []
    hooks = [Told("measures", told), Told("shows", told)]
    Trainer(None, None, iter(()), None, RunState(5, 0, 7), hooks, train_iters=5, sequence_length=8).train()
    assert told == ["shows starts", "measures starts", "measures ends", "shows ends"]


def peaks_where_rank_1_holds_more() -> tuple[int, PeakMemory]:
    own = own_peak_bytes(torch.device("cpu"))
    held = torch.ones(own // 4) if os.environ["RANK"] == "1" else None  # as much again, in fp32
    peak = peak_memory(torch.device("cpu"))
    assert held is None or held.sum() > 0
    return own_peak_bytes(torch.device("cpu")), peak


def test_peak_memory_is_that_of_the_fullest_rank() -> None:
    (first, told), (second, told_too) = run(2, peaks_where_rank_1_holds_more)
    assert told == told_too
    assert told.fullest_rank == 1 and first < told.largest_bytes <= second
    assert told.mean_bytes == pytest.approx((first + told.largest_bytes) / 2, rel=0.02)
