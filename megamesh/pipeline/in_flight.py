"""How much a pipeline rank keeps at its fullest moment, from the very list of actions that it runs.

    [receive, forward, send, …] ──what each action brings and lets go──▶ bytes alive, action by action ──▶ the largest, by part

A forward's activations stay until the same micro-batch's backward of the same stage. How many micro-batches are in flight follows from
the order alone, not from times.
"""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field

from megamesh.pipeline.order import Action


@dataclass(frozen=True)
class Change:
    """What an action does to memory, by part: what it takes at its start (negative: what becomes something else), what it needs only
    while it runs, and what it frees at its end."""

    takes: Mapping[str, int] = field(default_factory=dict)
    passes: Mapping[str, int] = field(default_factory=dict)
    frees: Mapping[str, int] = field(default_factory=dict)


def fullest_moment(actions: Iterable[Action], change: Callable[[Action], Change]) -> dict[str, int]:
    """Bytes by part when most are alive."""
    alive: Counter[str] = Counter()
    fullest: dict[str, int] = {}
    most = 0
    for action in actions:
        changed = change(action)
        alive.update(changed.takes)
        total = sum(alive.values()) + sum(changed.passes.values())
        if total > most:
            most, fullest = (
                total,
                {part: alive[part] + changed.passes.get(part, 0) for part in {*alive, *changed.passes}},
            )
        alive.subtract(changed.frees)
    return fullest


def most_in_flight(actions: Iterable[Action], stages: Container[int]) -> int:
    """Most forwards of any of the stages whose backwards did not run yet."""
    one = {"stage": 1}
    changes = {"forward": Change(takes=one), "backward": Change(frees=one)}
    counted = (action for action in actions if action.stage in stages and action.kind in changes)
    return fullest_moment(counted, lambda action: changes[action.kind]).get("stage", 0)
