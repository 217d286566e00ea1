"""kill -9 at every durable operation of a save: `latest` names a checkpoint that loads, old or new, never anything else."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megamesh.checkpoint.folder import find_latest
from megamesh.checkpoint.reader import read_meta, read_weights
from tests.checkpoint.runs import save
from tests.engine.runs import Setup, training
from tests.processes import Process

OPERATIONS = ("fsync", "rename", "replace", "rmdir")


class _Killer:
    """Counts the operations on a folder's files and kills the process before the chosen one."""

    def __init__(self, folder: Path, at: int | None) -> None:
        self.folder, self.at, self.done = str(folder), at, 0

    def watch(self) -> None:
        for name in OPERATIONS:
            setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            descriptor = kwargs.get("dir_fd") or args[0]
            path = os.readlink(f"/proc/self/fd/{descriptor}") if isinstance(descriptor, int) else os.fspath(descriptor)
            if not path.startswith(self.folder):
                return operation(*args, **kwargs)
            self.done += 1
            if self.done == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return wrapped


def _save_under_threat(folder: Path, steps: tuple[int, ...], at: int | None, count: Any) -> None:
    """Save some steps, keeping two checkpoints; the killer strikes in the last save."""
    from megamesh.engine.distributed import init_distributed

    init_distributed()
    with training(Setup(0)) as engine:
        for step in steps:
            engine.num_steps = step
            for master in engine.access.masters():
                master.data += step  # in place of training, so that each checkpoint holds other weights
            if step == steps[-1]:
                killer = _Killer(folder, at)
                killer.watch()
            save(folder, engine, keep_last=2)
        count.value = killer.done


def _start(folder: Path, *steps: int, at: int | None = None) -> tuple[int | None, int]:
    """Exit code, and how many operations the last save had."""
    count = multiprocessing.get_context("forkserver").Value("i", 0)
    process = Process(_save_under_threat, (folder, steps, at, count))
    process.start()
    process.join(120)
    return process.exitcode, count.value


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 1 and 2: the save of step 3 removes the first."""
    folder = tmp_path_factory.mktemp("run")
    assert _start(folder, 1, 2)[0] == 0
    return folder


def test_a_kill_anywhere_in_a_save_leaves_a_checkpoint_to_continue_from(two_saved: Path, tmp_path: Path) -> None:
    exit_code, num_operations = _start(shutil.copytree(two_saved, tmp_path / "whole"), 3)
    assert exit_code == 0 and num_operations >= 12
    weights = {path.name: _weights(path) for path in (tmp_path / "whole").glob("global_step*")}
    seen = set()
    for at in range(1, num_operations + 1):
        folder = shutil.copytree(two_saved, tmp_path / f"killed at {at}")
        exit_code, _ = _start(folder, 3, at=at)
        assert exit_code == -signal.SIGKILL
        path = find_latest(folder)
        assert path is not None
        assert path.name == f"global_step{read_meta(path).state.step}"
        assert path.name in ("global_step2", "global_step3")
        assert _weights(path) == weights[path.name]
        seen.add(path.name)
    assert seen == {"global_step2", "global_step3"}, "some kills come before the new one counts, some after"


def _weights(path: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in read_weights(path)}


@pytest.mark.parametrize("at", [3, 9])
def test_the_next_save_cleans_up_and_continues(two_saved: Path, tmp_path: Path, at: int) -> None:
    folder = shutil.copytree(two_saved, tmp_path / "run")
    assert _start(folder, 3, at=at)[0] == -signal.SIGKILL
    assert _start(folder, 3)[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["global_step2", "global_step3", "latest"]
