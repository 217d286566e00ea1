"""Ctrl-C: before the first step, once, twice, under every launcher, and where the main thread is stuck."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megamesh.checkpoint.reader import read_meta
from megamesh.log import configure_logging
from megamesh.training.hooks.signals import SignalHook
from megamesh.training.interrupt import Interrupts, KeyPresses
from tests.engine.living import live
from tests.processes import free_port
from tests.training.tiny import ROOT, losses, write_config, write_corpus

LAUNCHERS = {
    "python": ["{script}"],
    "deepspeed": ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", "{port}", "{script}"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "{port}", "{script}"],
}
OURS = "Ctrl-C: this step is finished and saved"


def test_signals_within_a_second_are_one_press() -> None:
    presses = KeyPresses()
    assert [presses.hear(seconds) for seconds in (100.0, 100.01, 100.9, 101.1)] == ["first", "same", "same", "again"]


def test_of_a_second_press_torchrun_passes_on_a_sigterm() -> None:
    presses, torchrun = KeyPresses(), {"TORCHELASTIC_RUN_ID": "none"}
    assert not presses.among([signal.SIGTERM], torchrun), "a SIGTERM of its own: the run stops in order"
    assert presses.among([signal.SIGINT], torchrun)
    presses.hear(100.0)
    assert presses.among([signal.SIGTERM], torchrun)
    assert not presses.among([signal.SIGTERM], {}), "deepspeed sends one after the first press"


def hear_it(signals: SignalHook, last: int = signal.SIGINT) -> None:
    configure_logging()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests themselves may run in the background
    with Interrupts(signals):
        if signals.training:
            for delay, number in ((0.1, signal.SIGINT), (0.2, signal.SIGINT), (1.5, last)):
                threading.Timer(delay, os.kill, (os.getpid(), number)).start()
        else:
            os.kill(os.getpid(), signal.SIGINT)
        if dist.get_rank() == 0:
            dist.recv(torch.zeros(1), src=1)  # which sends nothing: no handler of Python's runs in here
        time.sleep(60)


def hear_it_in_training(torchrun: bool) -> None:
    signals = SignalHook()
    signals.training = True
    if torchrun:
        os.environ["TORCHELASTIC_RUN_ID"] = "none"
    hear_it(signals, signal.SIGTERM if torchrun else signal.SIGINT)


def hear_it_before_training() -> None:
    hear_it(SignalHook())


def test_before_the_first_step_all_leave_at_once(tmp_path: Path) -> None:
    outcome = live(tmp_path, 2, hear_it_before_training)
    assert outcome.statuses == [130, 130]
    assert outcome.stderr == "interrupted before the first step\n"


@pytest.mark.parametrize("torchrun", [False, True])
def test_the_second_press_ends_a_run_that_is_stuck(tmp_path: Path, torchrun: bool) -> None:
    outcome = live(tmp_path, 2, hear_it_in_training, torchrun)
    assert outcome.statuses == [130, 130]
    first, second = outcome.stderr.splitlines()
    assert OURS in first and "30 seconds after which deepspeed and torchrun kill it" in first
    assert second == "left at once, without saving; the same command continues from the last checkpoint"


def hear_it_where_nothing_is_saved() -> None:
    signals = SignalHook()
    signals.training, signals.saves = True, False
    hear_it(signals)


def test_a_run_that_saves_nothing_promises_no_checkpoint(tmp_path: Path) -> None:
    outcome = live(tmp_path, 2, hear_it_where_nothing_is_saved)
    assert outcome.statuses == [130, 130]
    first, second = outcome.stderr.splitlines()
    assert OURS not in first and "nothing saved, as save is not given" in first
    assert second == "left at once, without saving"


def hear_it_on_rank_1() -> None:
    if dist.get_rank() == 1:
        hear_it(SignalHook())
    dist.recv(torch.zeros(1), src=2 if dist.get_rank() == 0 else 0)


def test_a_rank_that_alone_was_interrupted_is_named(tmp_path: Path) -> None:
    outcome = live(tmp_path, 3, hear_it_on_rank_1, FAILED_SECONDS=0.5)
    assert outcome.statuses == [1, 130, 1]
    (message,) = outcome.messages
    assert message.startswith("error: Ctrl-C ended rank 1 on ")


def leave_the_handlers_as_they_were() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Interrupts(SignalHook()):
        assert signal.getsignal(signal.SIGINT) != signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts(SignalHook()):
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_handlers_are_restored_and_a_command_in_the_background_is_left_alone(tmp_path: Path) -> None:
    outcome = live(tmp_path, 1, leave_the_handlers_as_they_were)
    assert outcome.statuses == [0], outcome.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ctrl_c_at_a_terminal_saves_and_the_run_can_go_on(tmp_path: Path, launcher: str) -> None:
    """A terminal signals the whole process group; deepspeed and torchrun then signal their workers once more."""
    write_corpus(tmp_path / "corpus")
    config = write_config(tmp_path, train_iters=100_000, checkpoint_factor=None, eval_iters=0, num_workers=1)
    script = ROOT / "tools/train.py"
    command = [part.format(script=script, port=free_port()) for part in LAUNCHERS[launcher]]
    process = subprocess.Popen(
        [sys.executable, *command, config], env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    metrics = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)  # the end of all that write to it
    if launcher == "python":
        assert process.returncode == 0, output
        assert "Traceback" not in output
    assert output.count(OURS) == 1, output
    assert output.count("SIGINT: stopped after step") == 1, output
    assert 'tools/train.py", line' not in output, "a traceback of a rank"
    assert read_meta(tmp_path / "run").state.step == max(losses(tmp_path / "run"))
