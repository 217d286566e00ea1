"""Saves beside training: it stops for a copy to host memory, a thread does the rest.

    snapshot (views) ──copy──▶ host memory ──thread, process group of its own──▶ global_stepN/, latest
    └─── training waits ─────┘ └────────────── training goes on ─────────────┘

One save at a time: the next one waits for it. A save that fails leaves the checkpoint before it as it was, and is an error of whoever asks
next. The host memory (12 bytes per parameter that this rank saves, pinned where the run is on GPUs) is kept from save to save.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megamesh.checkpoint.boxes import Box
from megamesh.checkpoint.save import Snapshot, Target, write
from megamesh.checkpoint.together import on_every_rank
from megamesh.errors import CheckpointError
from megamesh.parallel.agree import largest


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is complete. Training stood still for `blocking_seconds` of the `total_seconds`."""

    path: Path
    blocking_seconds: float
    total_seconds: float


class BackgroundSaver:
    """Writes snapshots of a run, one after the other. All methods are collectives of all ranks, for the main thread."""

    def __init__(self, target: Target):
        self.target = target
        self._group = _own_group(dist.group.WORLD)
        self._host: list[Tensor] = []
        self._running: _Write | None = None

    def start(self, snapshot: Snapshot) -> None:
        """Copy the snapshot and begin to write it. `wait` comes before. CheckpointError on all ranks where one's memory is short."""
        assert self._running is None, "one save at a time"
        started = time.perf_counter()
        boxes = on_every_rank(lambda: self._on_host(snapshot.boxes), self._group)
        copied = replace(snapshot, boxes=boxes)
        save = _Write(self.target, copied, self._group, started)
        save.start()
        self._running = save

    def poll(self) -> Saved | None:
        """The save in progress, if it has ended on every rank by now. Raises CheckpointError where it failed."""
        if self._running is None or largest(int(self._running.is_alive()), torch.device("cpu")):
            return None
        return self.wait()

    def wait(self) -> Saved | None:
        """The end of the save in progress; None where there is none. Raises CheckpointError where it failed."""
        if self._running is None:
            return None
        self._running.join()
        ended, self._running = self._running, None
        return ended.result()

    def _on_host(self, boxes: Sequence[Box]) -> list[Box]:
        on_gpu = any(box.values.is_cuda for box in boxes)
        try:
            for box in boxes[len(self._host) :]:
                self._host.append(_host_memory(box.values, pinned=on_gpu))
        except RuntimeError as error:
            gib, reason = sum(box.values.nbytes for box in boxes) / 2**30, str(error).splitlines()[0]
            raise CheckpointError(
                f"no {gib:.1f} GiB of host memory for an asynchronous save ({reason}); set async_save: false"
            ) from None
        for host, box in zip(self._host, boxes, strict=True):
            host.copy_(box.values, non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize()
        return [replace(box, values=host) for host, box in zip(self._host, boxes, strict=True)]


def _host_memory(like: Tensor, *, pinned: bool) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=pinned)


class _Write(threading.Thread):
    """One save. A daemon: a process that is about to end does not wait for it, unless `wait` does."""

    def __init__(self, target: Target, snapshot: Snapshot, group: dist.ProcessGroup, started: float):
        super().__init__(name="checkpoint", daemon=True)
        self._arguments, self._began = (target, snapshot, group), started
        self._blocking_seconds = time.perf_counter() - started
        self._outcome: Path | Exception | None = None

    def run(self) -> None:
        try:
            self._outcome = write(*self._arguments)
        except Exception as error:
            self._outcome = error
        self._total_seconds = time.perf_counter() - self._began

    def result(self) -> Saved:
        step = self._arguments[1].meta.state.step
        if isinstance(self._outcome, Exception):
            raise CheckpointError(f"the save of step {step} failed: {self._outcome}") from self._outcome
        assert self._outcome is not None, "joined before"
        return Saved(self._outcome, self._blocking_seconds, self._total_seconds)


@cache
def _own_group(_world: Any) -> dist.ProcessGroup:
    """All ranks once more, over gloo: on a group that training uses too, its collectives and those of the thread would meet."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo")
    return group
