"""Torch's schedules as lists of actions: fails when upstream moves or changes what `order.py` reads."""

from collections import Counter

import pytest

from megamesh.pipeline.order import Action, Schedule, forward_order, micro_batches_fit, training_order

SHAPES = [(2, 1, 3), (2, 3, 4), (4, 1, 8), (4, 4, 8), (3, 2, 7)]


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "looped_bfs"])
@pytest.mark.parametrize(("num_ranks", "num_passes", "num_micro_batches"), SHAPES)
def test_every_stage_runs_every_micro_batch_once_each_way(schedule, num_ranks, num_passes, num_micro_batches):
    if not micro_batches_fit(schedule, num_ranks, num_micro_batches):
        pytest.skip("there is no such order")
    order = training_order(schedule, num_ranks, num_passes, num_micro_batches)
    for rank, actions in enumerate(order):
        counted = Counter(action for action in actions if action.kind in ("forward", "backward"))
        stages = range(rank, num_ranks * num_passes, num_ranks)
        assert counted == {
            Action(kind, stage, index): 1
            for kind in ("forward", "backward")
            for stage in stages
            for index in range(num_micro_batches)
        }


def _messages(actions: tuple[Action, ...], num_ranks: int, rank: int, peer: int, *, sends: bool) -> list[tuple]:
    """What a rank sends to, or receives from, a peer, in its order: named by who uses it."""
    found = []
    for kind, stage, index in actions:
        way = 1 if kind.endswith("forward") else -1
        if sends and kind.startswith("send") and (stage + way) % num_ranks == peer:
            found.append((way, stage + way, index))
        if not sends and kind.startswith("receive") and (stage - way) % num_ranks == peer:
            found.append((way, stage, index))
    return found


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "looped_bfs"])
@pytest.mark.parametrize(("num_ranks", "num_passes", "num_micro_batches"), SHAPES)
def test_two_ranks_send_and_receive_in_the_same_order(schedule, num_ranks, num_passes, num_micro_batches):
    """Messages between two ranks carry no names: only their order tells them apart."""
    if not micro_batches_fit(schedule, num_ranks, num_micro_batches):
        pytest.skip("there is no such order")
    for order in (
        training_order(schedule, num_ranks, num_passes, num_micro_batches),
        forward_order(num_ranks, num_passes, num_micro_batches),
    ):
        for rank in range(num_ranks):
            for peer in {(rank + 1) % num_ranks, (rank - 1) % num_ranks}:
                sent = _messages(order[rank], num_ranks, rank, peer, sends=True)
                assert sent == _messages(order[peer], num_ranks, peer, rank, sends=False)
        assert any(action.kind == "send_forward" for action in order[0])


def _most_ahead(actions: tuple[Action, ...]) -> int:
    ahead = most = 0
    for action in actions:
        ahead += {"forward": 1, "backward": -1}.get(action.kind, 0)
        most = max(most, ahead)
    return most


def test_one_pass_keeps_no_more_micro_batches_than_there_are_ranks_behind():
    order = training_order("interleaved_1f1b", 4, 1, 8)
    assert [_most_ahead(actions) for actions in order] == [4, 3, 2, 1]
    assert [_most_ahead(actions) for actions in training_order("interleaved_1f1b", 4, 1, 2)] == [2, 2, 2, 1]


def test_the_default_keeps_a_number_of_micro_batches_that_does_not_grow_with_theirs():
    few, many = (training_order("interleaved_1f1b", 2, 3, number) for number in (4, 32))
    assert [_most_ahead(actions) for actions in few] == [_most_ahead(actions) for actions in many]
    breadth: Schedule = "looped_bfs"
    assert _most_ahead(training_order(breadth, 2, 3, 32)[0]) == 3 * 32
