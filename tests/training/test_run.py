"""Whole runs on a tiny corpus: interrupted ones equal straight ones bit for bit, and every ZeRO stage equals one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from megamesh.checkpoint.reader import read_meta, read_weights
from megamesh.config.load import load_config
from megamesh.training.hooks.signals import SignalHook
from megamesh.training.run import train
from tests.distributed import run
from tests.training.tiny import ROOT, launch, losses, write_config, write_corpus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus")
    return tmp_path


def train_here(config: Path) -> int:
    """A whole run in a worker of the test pool; returns the last step."""
    trainer = train(load_config([config]), torch.device("cpu"), SignalHook())
    trainer.engine.close()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    return trainer.state.step


def weights(save: Path) -> dict[str, torch.Tensor]:
    return dict(read_weights(save))


def assert_same_run(one: Path, other: Path) -> None:
    """Every step's loss, every evaluation and every final weight, bit for bit."""
    assert losses(one) == losses(other)
    assert losses(one, "valid") == losses(other, "valid")
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_killed_run_continues_bit_for_bit(folder: Path, stage: int) -> None:
    changes = dict(zero_optimization={"stage": stage}, precision="bfloat16" if stage == 2 else "fp32")
    straight, killed = write_config(folder, "straight", **changes), write_config(folder, "killed", **changes)
    assert run(2, train_here, straight) == [20, 20]
    died = launch("step:13", killed, num_processes=2, script="tests/training/killed_run.py", check=False)
    assert died.returncode != 0
    assert (folder / "killed/latest").read_text().strip() == "global_step10"
    assert len(losses(folder / "killed")) == 13
    assert run(2, train_here, killed) == [20, 20]
    assert_same_run(folder / "straight", folder / "killed")


@pytest.mark.parametrize("moment", ["before-rename", "before-latest"])
def test_a_run_killed_inside_a_save_continues_bit_for_bit(folder: Path, moment: str) -> None:
    straight, killed = write_config(folder, "straight"), write_config(folder, "killed")
    run(1, train_here, straight)
    died = launch(f"save:20:{moment}", killed, script="tests/training/killed_run.py", check=False)
    assert died.returncode == -signal.SIGKILL
    assert (folder / "killed/latest").read_text().strip() == "global_step10"
    launch(killed)
    assert_same_run(folder / "straight", folder / "killed")
    assert {path.name for path in (folder / "killed").iterdir()} == {
        "global_step10", "global_step20", "latest", "metrics.jsonl",
    }  # fmt: skip


def test_a_checkpoint_continues_on_another_number_of_processes_and_zero_stage(folder: Path) -> None:
    keys = dict(hidden_dropout=0.0)
    run(2, train_here, write_config(folder, "straight", **keys))
    run(2, train_here, write_config(folder, "first", train_iters=10, lr_decay_iters=20, **keys))
    for name, stage, processes in (("alone", 0, 1), ("zero3", 3, 2)):
        changes = keys | dict(load=str(folder / "first"), zero_optimization={"stage": stage}, lr_decay_iters=20)
        run(processes, train_here, write_config(folder, name, **changes))
        straight, found = losses(folder / "straight"), losses(folder / name)
        assert set(found) == set(range(11, 21))
        assert all(abs(found[step] / straight[step] - 1) < 1e-5 for step in found)


def test_sigterm_saves_and_leaves_with_status_0(folder: Path) -> None:
    config = write_config(folder, "stopped", train_iters=100_000, checkpoint_factor=None, log_interval=1, eval_iters=0)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, ROOT / "tools/train.py", config], env=environment, stderr=subprocess.PIPE, text=True
    )
    metrics = folder / "stopped/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "SIGTERM: stopped after step" in output
    step = read_meta(folder / "stopped").state.step
    assert max(losses(folder / "stopped")) == step


def test_the_checkpoint_tells_where_it_came_from(folder: Path) -> None:
    config = write_config(folder, train_iters=3)
    run(1, train_here, config)
    meta = read_meta(folder / "run")
    assert (meta.state.step, meta.state.consumed_samples, meta.state.seed) == (3, 12, 1234)
    assert meta.config["model"]["hidden_size"] == 32
    assert (folder / "run/global_step3/configs/run.yml").read_text() == config.read_text()


def test_a_finished_run_does_nothing_more(folder: Path) -> None:
    config = write_config(folder, train_iters=3)
    assert run(1, train_here, config) == [3]
    before = (folder / "run/global_step3/meta.json").stat().st_mtime_ns
    assert run(1, train_here, config) == [3]
    assert (folder / "run/global_step3/meta.json").stat().st_mtime_ns == before


def test_train_epochs_reads_every_token_once(folder: Path) -> None:
    config = write_config(
        folder, train_iters=None, train_epochs=1, train_batch_size=8, train_micro_batch_size_per_gpu=None
    )
    (last_step,) = run(1, train_here, config)
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == last_step == 211 // 8
