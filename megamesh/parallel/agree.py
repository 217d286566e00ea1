"""Ranks that must agree: on an error, on a number."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

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


def largest(value: int, device: torch.device) -> int:
    """The largest of all ranks' values. A collective."""
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)
