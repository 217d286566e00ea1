"""Batch arithmetic: train batch = micro-batch × accumulation steps × data-parallel size; any two of the first three give the third."""

import math
from dataclasses import dataclass

from megamesh.config.keys import BatchConfig, ParallelConfig
from megamesh.errors import ConfigError


@dataclass(frozen=True)
class ResolvedBatch:
    """Batch sizes that agree: train_batch_size = micro_batch_size · gradient_accumulation_steps · data_parallel_size (in samples)."""

    train_batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    data_parallel_size: int

    def samples_per_step(self, given: BatchConfig) -> int | None:
        """Of a train batch that is written down, the samples for each accumulation step; None where it follows from the others."""
        return None if given.train_batch_size is None else self.micro_batch_size * self.data_parallel_size


def model_ranks(parallel: ParallelConfig) -> int:
    """Ranks that hold one copy of the model together."""
    return max(parallel.pipe_parallel_size, 1) * parallel.model_parallel_size


def data_parallel_size(parallel: ParallelConfig, world_size: int) -> int:
    """Ranks that hold a copy of the model each, of `world_size` processes; ConfigError where it does not divide."""
    ranks = model_ranks(parallel)
    if world_size % ranks:
        sizes = f"model_parallel_size={parallel.model_parallel_size}"
        if parallel.pipe_parallel_size > 1:
            sizes = f"pipe_parallel_size={parallel.pipe_parallel_size} × {sizes} = {ranks}"
        processes = "1 process" if world_size == 1 else f"{world_size} processes"
        raise ConfigError(f"{processes} cannot be divided into copies of {sizes} ranks; start a multiple of {ranks}")
    return world_size // ranks


def resolve_batch(batch: BatchConfig, data_parallel_size: int) -> ResolvedBatch:
    """Complete the batch sizes for a data-parallel size; ConfigError names all three and the size where they contradict.

    With only the train batch given, the micro-batch takes all of it (one accumulation step); with one of the others, the
    remaining one is 1.
    """
    total, micro, steps = (
        batch.train_batch_size,
        batch.train_micro_batch_size_per_gpu,
        batch.gradient_accumulation_steps,
    )
    if total is None:
        total = (micro or 1) * (steps or 1) * data_parallel_size
    if micro is None and steps is None:
        micro, steps = total // data_parallel_size, 1
    elif micro is None:
        micro = total // (data_parallel_size * (steps or 1))
    elif steps is None:
        steps = total // (data_parallel_size * micro)
    assert micro is not None and steps is not None, "one of the branches above sets both"
    if micro * steps * data_parallel_size != total:
        raise ConfigError(_contradiction(batch, data_parallel_size))
    return ResolvedBatch(total, micro, steps, data_parallel_size)


def _contradiction(batch: BatchConfig, data_parallel_size: int) -> str:
    """All three sizes, as far as they are given, and what their product would have to be."""
    sizes = batch.model_dump()
    total = sizes.pop("train_batch_size")
    known = [value for value in sizes.values() if value is not None]
    unit = math.prod([*known, data_parallel_size])
    nearest = max(round(total / unit), 1) * unit if len(known) < len(sizes) else unit
    factors = " × ".join(key if value is None else f"{key}={value}" for key, value in sizes.items())
    multiple = "is not" if len(known) == len(sizes) else "cannot be"
    product = f" = {unit}" if len(known) == len(sizes) else f", which is a multiple of {unit}"
    return (
        f"train_batch_size={total} {multiple} {factors} × data-parallel size {data_parallel_size}{product}; "
        f"use train_batch_size: {nearest}{', or leave it out' if known else ''}"
    )
