"""What is in flight, against a count done the long way."""

from collections import Counter

import pytest

from megamesh.pipeline.in_flight import Change, fullest_moment, most_in_flight
from megamesh.pipeline.order import Action, Schedule, training_order


def most_by_hand(actions: tuple[Action, ...], stages: set[int]) -> int:
    """At every position, all forwards before it without their backward."""
    most = 0
    for position in range(len(actions) + 1):
        done = {action for action in actions[:position] if action.stage in stages}
        forwards = [action for action in done if action.kind == "forward"]
        alive = [a for a in forwards if Action("backward", a.stage, a.micro_batch) not in done]
        most = max(most, len(alive))
    return most


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "looped_bfs"])
@pytest.mark.parametrize(("num_ranks", "num_passes", "num_micro_batches"), [(2, 1, 6), (2, 4, 4), (4, 3, 8), (3, 2, 4)])
def test_most_in_flight_is_what_a_long_count_finds(
    schedule: Schedule, num_ranks: int, num_passes: int, num_micro_batches: int
) -> None:
    order = training_order(schedule, num_ranks, num_passes, num_micro_batches)
    for rank, actions in enumerate(order):
        own = set(range(rank, num_ranks * num_passes, num_ranks))
        assert most_in_flight(actions, own) == most_by_hand(actions, own)
        assert most_in_flight(actions, {rank}) == most_by_hand(actions, {rank})


def test_one_pass_keeps_as_many_micro_batches_as_the_way_to_the_last_rank_and_back() -> None:
    """Whatever M; looped_bfs keeps all."""
    for num_micro_batches in (8, 16):
        order = training_order("interleaved_1f1b", 4, 1, num_micro_batches)
        for rank, actions in enumerate(order):
            assert 4 - rank <= most_in_flight(actions, {rank}) <= 2 * (3 - rank) + 1
        bfs = training_order("looped_bfs", 4, 1, num_micro_batches)
        assert {most_in_flight(actions, {rank}) for rank, actions in enumerate(bfs)} == {num_micro_batches}


@pytest.mark.parametrize(("num_ranks", "num_passes"), [(2, 3), (4, 4), (4, 5), (3, 2)])
def test_more_rounds_keep_no_more(num_ranks: int, num_passes: int) -> None:
    """So that a plan may look at a few rounds of micro-batches instead of all."""
    few, many = (training_order("interleaved_1f1b", num_ranks, num_passes, rounds * num_ranks) for rounds in (6, 14))
    for rank in range(num_ranks):
        stages = set(range(rank, num_ranks * num_passes, num_ranks))
        assert most_in_flight(few[rank], stages) == most_in_flight(many[rank], stages)


def test_the_fullest_moment_counts_what_passes_and_what_is_freed_at_the_end() -> None:
    changes = {
        ("forward", 0): Change(takes={"kept": 5}),
        ("forward", 1): Change(takes={"kept": 3}, passes={"logits": 4}),
        ("backward", 1): Change(takes={"other": 2}, frees={"kept": 3, "other": 2}),
        ("backward", 0): Change(passes={"again": 6}, frees={"kept": 5}),
    }
    actions = [Action("forward", 0, 0), Action("forward", 1, 0), Action("backward", 1, 0), Action("backward", 0, 0)]
    seen: Counter[int] = Counter()
    for last in range(1, 5):
        found = fullest_moment(actions[:last], lambda action: changes[action.kind, action.stage])
        seen[last] = sum(found.values())
    assert seen == {1: 5, 2: 12, 3: 12, 4: 12}
    assert fullest_moment(actions, lambda action: changes[action.kind, action.stage]) == {"kept": 8, "logits": 4}
