"""What a pipeline step costs in time, from the very lists of actions that `ring.py` runs.

    Partition, Costs, order.py's lists ──▶ every stage's start and end on every rank ──▶ seconds of the step, idle share

A rank takes its actions in order. Computing takes the stage's cost, backward a multiple of it, but the head does all its work in forward,
gradients included (parallel/cross_entropy.py). Sending takes the sender no time, and what is sent arrives after its time on the wire, one
message after the other on each wire. Receiving waits for it. What is not modelled: the optimizer, data-parallel reduction, jitter, a sender
that waits for its receiver.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from megamesh.model.flops import TRAINING_TO_FORWARD
from megamesh.pipeline.order import Action, Schedule, training_order
from megamesh.pipeline.stages import Costs, Partition, Stage


@dataclass(frozen=True)
class Busy:
    """A stretch of computing: `action` on `rank` from `start` to `end`, in the unit of the costs."""

    rank: int
    action: Action
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """One step of all ranks. `seconds` is its length in the unit of the costs, seconds where they are."""

    num_ranks: int
    busy: tuple[Busy, ...]

    @property
    def start(self) -> float:
        return min(stretch.start for stretch in self.busy)

    @property
    def seconds(self) -> float:
        return max(stretch.end for stretch in self.busy) - self.start

    @property
    def idle_share(self) -> float:
        """The bubble: how much of all ranks' time between the first start and the last end nothing is computed."""
        return sum(self.idle_shares) / self.num_ranks

    @property
    def idle_shares(self) -> list[float]:
        """The same for every rank by itself."""
        computing = [0.0] * self.num_ranks
        for stretch in self.busy:
            computing[stretch.rank] += stretch.end - stretch.start
        return [1 - own / self.seconds for own in computing]


def simulate_step(
    partition: Partition,
    costs: Costs,
    num_micro_batches: int,
    *,
    schedule: Schedule = "interleaved_1f1b",
    backward_ratio: float = 2.0,
    message_seconds: float = 0.0,
) -> Timeline:
    """One optimizer step of a partition. `message_seconds`: from the end of a stage to the arrival of its states at the next.

    `backward_ratio`: of everything but the head; 3 where activations are computed again.
    """
    order = training_order(schedule, partition.num_ranks, partition.num_passes, num_micro_batches)
    forward = [forward_cost(stage, costs) for stage in partition.stages]
    backward = [backward_ratio * body_cost(stage, costs) for stage in partition.stages]
    return replay(
        order,
        lambda action: (forward if action.kind == "forward" else backward)[action.stage],
        lambda action: message_seconds,
    )


def body_cost(stage: Stage, costs: Costs) -> float:
    """The forward cost of all that a stage does, the head left out."""
    return stage.cost(Costs(costs.block, 0.0, costs.boundary, costs.embedding))


def forward_cost(stage: Stage, costs: Costs) -> float:
    """The cost of a stage's forward in training; the head computes its gradients in it."""
    return body_cost(stage, costs) + (TRAINING_TO_FORWARD * costs.head if stage.has_head else 0.0)


def replay(
    order: tuple[tuple[Action, ...], ...],
    seconds: Callable[[Action], float],
    message_seconds: Callable[[Action], float] = lambda action: 0.0,
) -> Timeline:
    """Run every rank's list, each action as soon as its rank and its input are ready.

    `seconds`: what a forward or backward takes; `message_seconds`: how long what a send action sends is on its wire.
    """
    clocks, positions = [0.0] * len(order), [0] * len(order)
    # Keyed by the action that uses what arrives.
    awaited = [
        {_used_by(action) for action in actions if action.kind in ("receive_forward", "receive_backward")}
        for actions in order
    ]
    wires: dict[tuple[int, int], float] = defaultdict(float)
    arrivals: dict[Action, float] = {}
    busy: list[Busy] = []
    progress = True
    while progress:
        progress = False
        for rank, actions in enumerate(order):
            while positions[rank] < len(actions):
                action = actions[positions[rank]]
                if action.kind in ("forward", "backward"):
                    if action in awaited[rank] and action not in arrivals:
                        break
                    start = max(clocks[rank], arrivals.get(action, 0.0))
                    clocks[rank] = start + seconds(action)
                    busy.append(Busy(rank, action, start, clocks[rank]))
                elif action.kind in ("send_forward", "send_backward"):
                    user = _used_by(action)
                    wire = (rank, user.stage % len(order))
                    wires[wire] = max(wires[wire], clocks[rank]) + message_seconds(action)
                    arrivals[user] = wires[wire]
                positions[rank] += 1
                progress = True
    assert all(position == len(actions) for position, actions in zip(positions, order, strict=True)), "a deadlock"
    return Timeline(len(order), tuple(busy))


def _used_by(action: Action) -> Action:
    """The forward or backward that needs what `action` sends or receives."""
    if action.kind == "receive_forward":
        return Action("forward", action.stage, action.micro_batch)
    if action.kind == "receive_backward":
        return Action("backward", action.stage, action.micro_batch)
    if action.kind == "send_forward":
        return Action("forward", action.stage + 1, action.micro_batch)
    return Action("backward", action.stage - 1, action.micro_batch)
