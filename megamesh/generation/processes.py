"""One model over all processes that a launcher started, for tools that need no training engine.

    torchrun --nproc-per-node 2 tool …    process group, a tensor axis of 2, on each process its own GPU (or the CPU)
    python tool …                         no process group, no axis, one device

Every process does the same; what comes from outside (prompts, files) is the first one's.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from megamesh.engine.distributed import init_distributed, shut_down_distributed
from megamesh.engine.liveness import leaving_together
from megamesh.errors import ConfigError
from megamesh.launch import read_launch
from megamesh.parallel.agree import rank_zero_first
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.tensor import SINGLE, TensorParallel

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # how long processes wait for each other: a person may be typing


@contextmanager
def tensor_axis(device: str | None) -> Iterator[tuple[TensorParallel, torch.device]]:
    """The tensor axis over all processes, and this one's device; `device` as torch writes it, None for a GPU where there is one.

    Raises ConfigError for a device that cannot be used, or that several processes would share. Ends this process where another one
    ends early.
    """
    num_processes = read_launch(os.environ).world_size
    if num_processes == 1:
        yield SINGLE, _usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(
            f"--device={device} cannot be used by {num_processes} processes; use cpu or cuda (one GPU for each), or leave it out"
        )
    if device is not None:
        _usable(device)
    try:
        own = init_distributed(PATIENCE, on_gpu=None if device is None else device == "cuda")
        with leaving_together("Start it again."):
            yield TensorParallel.on(ProcessMesh.build(own.type, tensor_parallel_size=num_processes)), own
    finally:
        shut_down_distributed()


def first_then_all(tp: TensorParallel, read: Callable[[], T]) -> T:
    """`read()` on the first process, then on the others: an error is told once. A collective."""
    return read() if tp.group is None else rank_zero_first(read)


def from_first(tp: TensorParallel, read: Callable[[], T]) -> T:
    """What `read()` returns on the first process, on all of them. A collective."""
    if tp.group is None:
        return read()
    found = [read() if tp.rank == 0 else None]
    dist.broadcast_object_list(found, group=tp.group, group_src=0)
    result: T = found[0]  # type: ignore[assignment]
    return result


def _usable(device: str) -> torch.device:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device={device} cannot be used: {str(error).splitlines()[0]}") from error
    return torch.device(device)
