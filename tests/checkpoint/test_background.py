"""Saves beside training: what is stored is the state of the moment, ranks agree on the end, and a failure loses nothing."""

import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megamesh.checkpoint import background
from megamesh.checkpoint.background import BackgroundSaver
from megamesh.checkpoint.folder import find_latest
from megamesh.checkpoint.load import load_checkpoint
from megamesh.checkpoint.meta import RunState
from megamesh.checkpoint.reader import read_meta
from megamesh.checkpoint.save import Snapshot, Target, take, write
from megamesh.engine.engine import TrainingEngine
from megamesh.errors import CheckpointError
from tests.checkpoint.runs import bits
from tests.distributed import run
from tests.engine.runs import GLOBAL_BATCH, Setup, train, training

SETUPS = [
    (1, Setup(0)),
    (2, Setup(2, "bfloat16")),
    (2, Setup(3)),
    (4, Setup(1, tensor_parallel_size=2, pipe_parallel_size=2, model={"num_kv_heads": 2})),
]


class _Gate:
    """Holds the writes of this process back, or their ends, until it is opened; the `broken` one fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: int = -1, *, at_the_end: bool = False) -> None:
        self.open, self.broken, self.count, self.at_the_end = threading.Event(), broken, 0, at_the_end
        monkeypatch.setattr(background, "write", self.write)

    def write(self, target: Target, snapshot: Snapshot, group: dist.ProcessGroup) -> Path:
        self.count += 1
        if self.at_the_end:
            path = self._write(target, snapshot, group)
            self.open.wait(60)
            return path
        self.open.wait(60)
        return self._write(target, snapshot, group)

    def _write(self, target: Target, snapshot: Snapshot, group: dist.ProcessGroup) -> Path:
        if self.count == self.broken:
            raise CheckpointError("the disk is full")
        return write(target, snapshot, group)


def _snapshot(engine: TrainingEngine) -> Snapshot:
    return take(engine, RunState(engine.num_steps, engine.num_steps * GLOBAL_BATCH, 7), {})


def _save_while_training(setup: Setup, folder: Path) -> bool:
    """Whether a save that was started at step 2, and written after step 4, holds step 2, and the next one step 4."""
    with pytest.MonkeyPatch.context() as monkeypatch, training(setup) as engine:
        gate, saver = _Gate(monkeypatch), BackgroundSaver(Target(folder, {}))
        train(engine, 0, 2)
        expected = bits(engine)
        saver.start(_snapshot(engine))
        assert saver.poll() is None
        train(engine, 2, 4)
        later = bits(engine)
        assert saver.poll() is None and find_latest(folder) is None
        gate.open.set()
        saved = saver.wait()
        assert saved is not None and saved.path == folder / "global_step2"
        assert 0 < saved.blocking_seconds < saved.total_seconds
        assert saver.poll() is saver.wait() is None
        saver.start(_snapshot(engine))
        saver.wait()
        load_checkpoint(folder / "global_step2", engine)
        found = bits(engine)
        load_checkpoint(folder, engine)
        return found == expected and bits(engine) == later and expected != later


@pytest.mark.parametrize(
    ("world_size", "setup"), SETUPS, ids=lambda value: "" if isinstance(value, int) else f"{value.stage}"
)
def test_a_save_holds_the_moment_at_which_it_began(tmp_path: Path, world_size: int, setup) -> None:
    assert run(world_size, _save_while_training, setup, tmp_path) == [True] * world_size


def _poll_with_one_slow_rank(folder: Path) -> list[bool]:
    """The second rank hears of the end later: until then nobody may act on it."""
    with pytest.MonkeyPatch.context() as monkeypatch, training(Setup(1)) as engine:
        gate, saver = _Gate(monkeypatch, at_the_end=True), BackgroundSaver(Target(folder, {}))
        saver.start(_snapshot(engine))
        if dist.get_rank() == 0:
            gate.open.set()
            assert saver._running is not None
            saver._running.join(60)
        dist.barrier()
        ended = [saver.poll() is not None for _ in range(2)]
        gate.open.set()
        deadline = time.monotonic() + 60
        while saver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return [*ended, find_latest(folder) is not None]


def test_no_rank_sees_the_end_before_the_others(tmp_path: Path) -> None:
    assert run(2, _poll_with_one_slow_rank, tmp_path) == [[False, False, True]] * 2


def _fail_and_go_on(folder: Path) -> str:
    with pytest.MonkeyPatch.context() as monkeypatch, training(Setup(1)) as engine:
        gate, saver = _Gate(monkeypatch, broken=2), BackgroundSaver(Target(folder, {}, keep_last=1))
        gate.open.set()
        saver.start(_snapshot(engine))
        saver.wait()
        before = bits(engine)
        train(engine, 0, 1)
        saver.start(_snapshot(engine))
        message = ""
        while not message:
            try:
                saver.poll()
            except CheckpointError as error:
                message = str(error)
        assert find_latest(folder) == folder / "global_step0"
        later = bits(engine)
        load_checkpoint(folder, engine)
        assert bits(engine) == before
        train(engine, 0, 1)
        assert bits(engine) == later
        saver.start(_snapshot(engine))
        saver.wait()
        assert read_meta(folder).state.step == 1
        return message


def test_a_failed_save_is_told_to_all_and_the_checkpoint_before_it_stands(tmp_path: Path) -> None:
    assert run(2, _fail_and_go_on, tmp_path) == ["the save of step 1 failed: the disk is full"] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step1", "latest"]


def _short_of_memory(folder: Path) -> str:
    """The second rank has not enough."""

    def refuse(*_args: object, **_keys: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore lines")

    with training(Setup(0)) as engine, pytest.MonkeyPatch.context() as monkeypatch:
        saver, snapshot = BackgroundSaver(Target(folder, {})), _snapshot(engine)
        if dist.get_rank() == 1:
            monkeypatch.setattr(background, "_host_memory", refuse)
        with pytest.raises(CheckpointError) as caught:
            saver.start(snapshot)
        assert saver.poll() is None
        return str(caught.value)


def test_too_little_host_memory_on_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    first, second = run(2, _short_of_memory, tmp_path)
    assert first == second
    assert first.endswith("asynchronous save (DefaultCPUAllocator: can't allocate memory); set async_save: false")
    assert list(tmp_path.iterdir()) == []
