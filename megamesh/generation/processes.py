"""One model over all processes that a launcher started, for tools that need no training engine.

    torchrun --nproc-per-node 4 tool …    process group, a mesh of pipeline × tensor ranks, on each process its own GPU (or the CPU)
    python tool …                         no process group, no mesh, one device

Every process does the same; what comes from outside (prompts, files) is the first one's.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist

from megamesh.checkpoint.inference import OpenCheckpoint, load_model
from megamesh.config.keys import ParallelConfig
from megamesh.config.rule import divisors, either
from megamesh.engine.distributed import init_distributed, shut_down_distributed
from megamesh.engine.liveness import leaving_together
from megamesh.errors import ConfigError
from megamesh.generation.generate import LanguageModel
from megamesh.launch import read_launch
from megamesh.parallel.agree import rank_zero_first
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.tensor import TensorParallel
from megamesh.pipeline.partition import build_partition
from megamesh.pipeline.ring import Ring

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # how long processes wait for each other: a person may be typing


@contextmanager
def one_model(device: str | None, pipe_parallel_size: int = 1) -> Iterator[tuple[ProcessMesh | None, torch.device]]:
    """The mesh that all processes make up (None for one), its tensor axis what `pipe_parallel_size` leaves, and this process's device.

    `device` as torch writes it, None for a GPU where there is one. Raises ConfigError for a device that cannot be used, or that several
    processes would share, and for processes that do not divide over pipeline ranks. Ends this process where another one ends early.
    """
    num_processes = read_launch(os.environ).world_size
    if pipe_parallel_size < 1 or num_processes % pipe_parallel_size:
        raise ConfigError(
            f"--pipe-parallel-size={pipe_parallel_size} does not divide {num_processes} processes; use {either(divisors(num_processes))}"
        )
    if num_processes == 1:
        yield None, _usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
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
            sizes = {
                "pipeline_parallel_size": pipe_parallel_size,
                "tensor_parallel_size": num_processes // pipe_parallel_size,
            }
            yield ProcessMesh.build(own.type, **sizes), own
    finally:
        shut_down_distributed()


def load_over(
    mesh: ProcessMesh | None, opened: OpenCheckpoint, device: torch.device, dtype: torch.dtype
) -> LanguageModel:
    """A checkpoint's model over the mesh, with its weights and in evaluation mode. A collective; raises what `load_model` does."""
    if mesh is None:
        return load_model(opened, device, dtype)
    tp, num_ranks = TensorParallel.on(mesh), mesh.size("pp")
    if num_ranks == 1:
        return load_model(opened, device, dtype, tp)
    run = opened.run
    asked = ParallelConfig(pipe_parallel_size=num_ranks, pipe_num_passes=run.parallel.pipe_num_passes)
    partition = build_partition(run.model, run.recursion, asked, opened.vocab_size)
    model = load_model(opened, device, dtype, tp, partial(partition.holds, mesh.rank("pp")))
    return Ring(model, partition, mesh, "interleaved_1f1b")


def first_then_all(read: Callable[[], T]) -> T:
    """`read()` on the first process, then on the others: an error is told once. A collective."""
    return rank_zero_first(read) if dist.is_initialized() else read()


def from_first(read: Callable[[], T]) -> T:
    """What `read()` returns on the first process, on all of them. A collective."""
    if not dist.is_initialized():
        return read()
    found = [read() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    result: T = found[0]  # type: ignore[assignment]
    return result


def _usable(device: str) -> torch.device:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device={device} cannot be used: {str(error).splitlines()[0]}") from error
    return torch.device(device)
