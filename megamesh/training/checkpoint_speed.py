"""How fast checkpoints are written and read, how long training waits, and what memory that takes beside the run's state.

    candidate ──processes, one step──▶ rounds of: save, asynchronous save, torch's own writer, load, load unverified ──▶ seconds, bytes

All ways in turn within every round, so that what else the machine does hits all. Files are read where they have just been written:
from memory, where they fit.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from megamesh.config.batch import model_ranks
from megamesh.training.benchmark_processes import Candidate, CandidateProcesses
from megamesh.training.peak_memory import ResidentPeak

if TYPE_CHECKING:
    from megamesh.engine.engine import TrainingEngine


@dataclass(frozen=True)
class Timing:
    """One way, once, on one rank. Training waits for `waiting_seconds` of the `seconds`."""

    seconds: float
    waiting_seconds: float
    extra_bytes: int


@dataclass(frozen=True)
class WayReport:
    """One way of saving or loading over all rounds: the slowest rank's times, the largest rank's memory."""

    way: str
    seconds: list[float]
    waiting_seconds: float  # median
    extra_bytes: int
    state_bytes: int  # of all ranks together

    @property
    def bytes_per_second(self) -> float:
        return self.state_bytes / median(self.seconds)


def measure_checkpoints(
    candidate: Candidate, num_processes: int | None, num_rounds: int, folder: Path
) -> list[WayReport]:
    """Save and load in a folder of its own inside `folder`, which is removed at the end."""
    size = num_processes or model_ranks(candidate.config.parallel)
    with tempfile.TemporaryDirectory(dir=folder) as inside, CandidateProcesses(candidate, size) as processes:
        answers = processes.ask("checkpoints", inside, num_rounds)
    state_bytes = sum(own for _, own in answers)
    rounds = [by_rank for by_rank, _ in answers]
    reports = []
    for way in rounds[0][0]:
        timings = [[of_rank[number][way] for of_rank in rounds] for number in range(num_rounds)]
        reports.append(
            WayReport(
                way,
                [max(timing.seconds for timing in at_once) for at_once in timings],
                median(max(timing.waiting_seconds for timing in at_once) for at_once in timings),
                max(timing.extra_bytes for at_once in timings for timing in at_once),
                state_bytes,
            )
        )
    return reports


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
