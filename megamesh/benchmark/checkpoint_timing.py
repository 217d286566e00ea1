"""One process's part of measuring checkpoints: every way of saving and loading in turn, within every round.

Files are read where they have just been written: from memory, where they fit.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from megamesh.engine.peak_memory import ResidentPeak

if TYPE_CHECKING:
    from megamesh.engine.engine import TrainingEngine


@dataclass(frozen=True)
class Timing:
    """One way, once, on one rank. Training waits for `waiting_seconds` of the `seconds`."""

    seconds: float
    waiting_seconds: float
    extra_bytes: int


def time_checkpoints(engine: "TrainingEngine", folder: Path, num_rounds: int) -> tuple[list[dict[str, Timing]], int]:
    """One process's part: what each way took in each round, and the bytes that this rank saves. A collective."""
    from megamesh.checkpoint.background import BackgroundSaver
    from megamesh.checkpoint.load import load_checkpoint
    from megamesh.checkpoint.meta import RunState
    from megamesh.checkpoint.planner import BoxSavePlanner, BoxTable
    from megamesh.checkpoint.save import Target, take, write

    snapshot = take(engine, RunState(engine.num_steps, 0, 0), {})
    target = Target(folder, {}, keep_last=1)
    saver = BackgroundSaver(target)

    def save_beside() -> float:
        saver.start(snapshot)
        saved = saver.wait()
        assert saved is not None, "it was started"
        return saved.blocking_seconds

    def save_with_torch() -> None:
        table = BoxTable(snapshot.boxes)
        theirs = FileSystemWriter(folder / "torch", overwrite=True)
        save_tensors(table.state_dict(), storage_writer=theirs, planner=BoxSavePlanner(table))
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(folder / "torch")

    ways: dict[str, Callable[[], float | None]] = {
        "save": lambda: _nothing(write(target, snapshot)),
        "save, async_save": save_beside,
        "save, torch's FileSystemWriter": save_with_torch,
        "load": lambda: _nothing(load_checkpoint(folder, engine)),
        "load, verify_checkpoint: false": lambda: _nothing(load_checkpoint(folder, engine, verify=False)),
    }
    save_beside()  # the copy's memory is there from the second save on
    rounds = [{way: _timed(do) for way, do in ways.items()} for _ in range(num_rounds)]
    return rounds, sum(box.values.nbytes for box in snapshot.boxes)


def _nothing(_result: object) -> None:
    """All of it is waited for."""


def _timed(do: Callable[[], float | None]) -> Timing:
    dist.barrier()
    with ResidentPeak() as memory:
        started = time.perf_counter()
        waiting_seconds = do()
        seconds = time.perf_counter() - started
    return Timing(seconds, seconds if waiting_seconds is None else waiting_seconds, memory.extra_bytes)
