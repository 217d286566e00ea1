"""Ranks that must agree: on an error, on a number."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from megamesh.errors import ConfigError

T = TypeVar("T")


def rank_zero_first(build: Callable[[], T]) -> T:
    """Call `build` on rank 0, then on all other ranks, which find the files that the first call wrote.

    Where rank 0 fails, it raises that error and the other ranks leave with status 1, silently: one error is told once. A collective.
    """
    if dist.get_rank() == 0:
        succeeded = [False]
        try:
            result = build()
            succeeded = [True]
        finally:
            dist.broadcast_object_list(succeeded, src=0)
        return result
    succeeded = [False]
    dist.broadcast_object_list(succeeded, src=0)
    if not succeeded[0]:
        raise SystemExit(1)
    return build()


def node_by_node(build: Callable[[], T], local_rank: int) -> T:
    """Call `build` on rank 0, then on the first rank of every node, then on all others: one process of a node writes the files that the
    others find, whether nodes share a disk or not.

    Where a call fails, it raises its error there and the other ranks leave with status 1, silently. A collective.
    """
    turn = 0 if dist.get_rank() == 0 else 1 if local_rank == 0 else 2
    results: list[T] = []
    for current in range(3):
        error: BaseException | None = None
        if current == turn:
            try:
                results.append(build())
            except BaseException as caught:  # raised below, once all ranks know
                error = caught
        succeeded = [False] * dist.get_world_size()
        dist.all_gather_object(succeeded, error is None)
        if error is not None:
            raise error
        if not all(succeeded):
            raise SystemExit(1)
    return results[0]


def on_every_rank(build: Callable[[], T]) -> T:
    """Call `build` on every rank; where it raises ConfigError on any, all raise the first of them. A collective."""
    error: ConfigError | None = None
    results: list[T] = []
    try:
        results.append(build())
    except ConfigError as raised:
        error = raised
    errors: list[ConfigError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    if first := next((found for found in errors if found is not None), None):
        raise first from error
    return results[0]


def first_to_say(subject: str) -> bool:
    """Whether no rank has asked this before; without waiting for any. Of ranks that fail, alone or together, one tells it."""
    store = distributed_c10d._get_default_store()
    return int(store.add(f"megamesh/{subject}", 1)) == 1


def largest(value: int, device: torch.device) -> int:
    """The largest of all ranks' values. A collective."""
    return largest_of_each([value], device)[0]


def largest_of_each(values: Sequence[int], device: torch.device) -> list[int]:
    """The largest of all ranks' first values, of their second ones, and so on. A collective."""
    tensor = torch.tensor([int(value) for value in values], device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    largest_values: list[int] = tensor.tolist()
    return largest_values
