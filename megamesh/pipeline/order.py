"""The order in which a rank runs its stages, sends and receives: torch's pipeline schedules, read as data.

    torch.distributed.pipelining ScheduleInterleaved1F1B, ScheduleLoopedBFS ──▶ per rank: [F s0 m0, SEND_F, RECV_F, B …]

torch computes these lists when a schedule is built, communication included, placed so that every pair of ranks sends and receives in the
same order. Its own runtime for them needs one receive buffer per micro-batch and stage and holds all that was sent until the step ends,
and knows nothing of states that outlive a pass; so `ring.py` runs the lists, and `simulator.py` replays the very same ones. The lists
are built without process groups, from outlines of stages. This is the one file that looks into torch's schedules:
tests/pipeline/test_order.py fails when upstream moves them.

Narayanan et al. 2021 (arXiv 2104.04473, interleaved 1F1B); Lamy-Poirier 2023 (arXiv 2211.05953, looped breadth-first).
"""

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch.distributed.pipelining.schedules import _Action

Schedule = Literal["interleaved_1f1b", "looped_bfs"]
ComputeKind = Literal["forward", "backward"]
Kind = Literal["forward", "backward", "send_forward", "receive_forward", "send_backward", "receive_backward"]

_KINDS: dict[str, Kind] = {
    "FORWARD": "forward",
    "FULL_BACKWARD": "backward",
    "SEND_F": "send_forward",
    "RECV_F": "receive_forward",
    "SEND_B": "send_backward",
    "RECV_B": "receive_backward",
}


class Action(NamedTuple):
    """One thing that a rank does: `kind` of stage `stage` for micro-batch `micro_batch`."""

    kind: Kind
    stage: int
    micro_batch: int


@dataclass
class _Outline:
    """What a torch schedule asks of a stage while it is built, and gives it."""

    stage_index: int
    num_stages: int
    group_size: int
    group_rank: int = 0
    is_last: bool = False
    stage_index_to_group_rank: dict[int, int] = field(default_factory=dict)


@cache
def training_order(
    schedule: Schedule, num_ranks: int, num_passes: int, num_micro_batches: int
) -> tuple[tuple[Action, ...], ...]:
    """Every rank's actions of one optimizer step. See `micro_batches_fit`."""
    return _read(schedule, num_ranks, num_passes, num_micro_batches)


@cache
def forward_order(num_ranks: int, num_passes: int, num_micro_batches: int) -> tuple[tuple[Action, ...], ...]:
    """Every rank's actions where nothing runs backward: as many micro-batches as there are ranks at a time, pass by pass.

    That keeps every rank busy, and what is kept does not grow with the number of micro-batches.
    """
    lists: list[list[Action]] = [[] for _ in range(num_ranks)]
    for first in range(0, num_micro_batches, num_ranks):
        group = _read("looped_bfs", num_ranks, num_passes, min(num_ranks, num_micro_batches - first))
        for actions, more in zip(lists, group, strict=True):
            actions += [
                action._replace(micro_batch=first + action.micro_batch)
                for action in more
                if action.kind in ("forward", "send_forward", "receive_forward")
            ]
    return tuple(map(tuple, lists))


def micro_batches_fit(schedule: Schedule, num_ranks: int, num_passes: int, num_micro_batches: int) -> bool:
    """Whether there is an order for so many micro-batches: interleaved 1F1B of several passes runs them in rounds of equal length."""
    in_rounds = schedule == "interleaved_1f1b" and num_passes > 1
    return not in_rounds or num_micro_batches % max(1, num_micro_batches // num_ranks) == 0


def _read(
    schedule: Schedule, num_ranks: int, num_passes: int, num_micro_batches: int
) -> tuple[tuple[Action, ...], ...]:
    # Here and not above: this import takes as long as half of torch's own, and most programs have no pipeline.
    from torch.distributed.pipelining.schedules import ScheduleInterleaved1F1B, ScheduleLoopedBFS, _add_send_recv

    if schedule == "interleaved_1f1b" and num_passes == 1:
        lists = _add_send_recv(_one_pass(num_ranks, num_micro_batches), lambda stage: stage, num_ranks)
    else:
        num_stages = num_ranks * num_passes
        outlines = [_Outline(index, num_stages, num_ranks) for index in range(0, num_stages, num_ranks)]
        kind = ScheduleInterleaved1F1B if schedule == "interleaved_1f1b" else ScheduleLoopedBFS
        lists = kind(outlines, num_micro_batches).pipeline_order_with_comms  # type: ignore[arg-type]
    return tuple(
        tuple(
            Action(_KINDS[action.computation_type.name], action.stage_index, action.microbatch_index or 0)
            for action in lists[rank]
            if action.computation_type.name in _KINDS
        )
        for rank in range(num_ranks)
    )


def _one_pass(num_ranks: int, num_micro_batches: int) -> "dict[int, list[_Action]]":
    """Plain 1F1B. Interleaved 1F1B of one pass keeps nearly twice as many micro-batches in flight, for the same bubble."""
    from torch.distributed.pipelining.schedules import _Action, _ComputationType

    lists: dict[int, list[_Action]] = {}
    for rank in range(num_ranks):
        forwards = [_Action(rank, _ComputationType.FORWARD, index) for index in range(num_micro_batches)]
        backwards = [_Action(rank, _ComputationType.FULL_BACKWARD, index) for index in range(num_micro_batches)]
        ahead = min(num_ranks - 1 - rank, num_micro_batches)
        steady = [action for pair in zip(forwards[ahead:], backwards, strict=False) for action in pair]
        lists[rank] = [*forwards[:ahead], *steady, *backwards[num_micro_batches - ahead :]]
    return lists
