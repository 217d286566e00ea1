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


def largest(value: int, device: torch.device) -> int:
    """The largest of all ranks' values. A collective."""
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)
