"""Ranks that must agree: on an error, on a number."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from megamesh.errors import MegaMeshError

T = TypeVar("T")


def rank_zero_first(build: Callable[[], T]) -> T:
    """Call `build` on rank 0, then on all other ranks, which find the files that the first call wrote.

    Where rank 0 fails with a message for the user, it raises that error and the other ranks leave with status 1, silently:
    one error is told once. A collective.
    """
    error: list[MegaMeshError | None] = [None]
    result: T | None = None
    is_first = dist.get_rank() == 0
    if is_first:
        try:
            result = build()
        except MegaMeshError as caught:
            error[0] = caught
    dist.broadcast_object_list(error, src=0)
    if error[0] is not None:
        raise error[0] if is_first else SystemExit(1)
    return result if result is not None else build()


def largest(value: int, device: torch.device) -> int:
    """The largest of all ranks' values. A collective."""
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)
