"""Sends and receives between neighbours of the pipeline axis, counted like collectives.

A tensor is sent as it is, once: sender and receiver must agree on shape, type and order. Bytes are counted where they are sent.
"""

import torch.distributed as dist
from torch import Tensor

from megamesh.parallel.collectives import Direction, Kind, Running, count_call


def start_send(x: Tensor, to_rank: int, group: dist.ProcessGroup, name: str, direction: Direction) -> Running:
    """Begin to send `x` to a rank of the group; it must not change, or be let go, before the sending is done."""
    x = x.contiguous()
    count_call(Kind(name, direction, "send"), x)
    return Running(x, dist.isend(x, group=group, group_dst=to_rank))


def start_receive(into: Tensor, from_rank: int, group: dist.ProcessGroup) -> Running:
    """Begin to receive into a contiguous tensor from a rank of the group."""
    return Running(into, dist.irecv(into, group=group, group_src=from_rank))
