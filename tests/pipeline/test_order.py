"""Torch's schedules as lists of actions: fails when upstream moves or changes what `order.py` reads."""

from collections import Counter

import pytest

from megamesh.pipeline.order import Action, Schedule, forward_order, micro_batches_fit, training_order

SHAPES = [(2, 1, 3), (2, 3, 4), (4, 1, 8), (4, 4, 8), (3, 2, 7)]


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "looped_bfs"])
@pytest.mark.parametrize(("num_ranks", "num_passes", "num_micro_batches"), SHAPES)
def test_every_stage_runs_every_micro_batch_once_each_way(
    schedule: str, num_ranks, num_passes, num_micro_batches
) -> None:
    if not micro_batches_fit(schedule, num_ranks, num_passes, num_micro_batches):
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
def test_two_ranks_send_and_receive_in_the_same_order(schedule: str, num_ranks, num_passes, num_micro_batches) -> None:
    """Messages between two ranks carry no names: only their order tells them apart."""
    if not micro_batches_fit(schedule, num_ranks, num_passes, num_micro_batches):
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


def test_one_pass_keeps_no_more_micro_batches_than_there_are_ranks_behind() -> None:
    order = training_order("interleaved_1f1b", 4, 1, 8)
    assert [_most_ahead(actions) for actions in order] == [4, 3, 2, 1]
    assert [_most_ahead(actions) for actions in training_order("interleaved_1f1b", 4, 1, 2)] == [2, 2, 2, 1]


def test_the_default_keeps_a_number_of_micro_batches_that_does_not_grow_with_theirs() -> None:
    few, many = (training_order("interleaved_1f1b", 2, 3, number) for number in (4, 32))
    assert [_most_ahead(actions) for actions in few] == [_most_ahead(actions) for actions in many]
    breadth: Schedule = "looped_bfs"
    assert _most_ahead(training_order(breadth, 2, 3, 32)[0]) == 3 * 32


Message = tuple[str, int, int]


def _message(action: Action) -> tuple[Message, int]:
    """What a send or receive moves, named alike on both sides; and the step along the ring to the other side."""
    kind, stage, index = action
    if kind == "send_forward":
        return ("forward", stage, index), 1
    if kind == "receive_forward":
        return ("forward", stage - 1, index), -1
    return ("backward", stage, index) if kind == "send_backward" else ("backward", stage + 1, index), (
        -1 if kind == "send_backward" else 1
    )


def _runs_by_rendezvous(order: tuple[tuple[Action, ...], ...]) -> bool:
    """Whether all ends where a send waits for its receive, one after the other on one stream per pair of ranks, as NCCL may have it.

    Computing has a stream of its own, waits for what it receives, and goes first where it was given out first.
    """
    computing: list[list[Action]] = [[] for _ in order]
    streams: dict[tuple[int, int], list[tuple[Message, int]]] = {}
    needed: dict[Action, Message] = {}
    for rank, actions in enumerate(order):
        for action in actions:
            if action.kind in ("forward", "backward"):
                computing[rank].append(action)
                continue
            message, step = _message(action)
            streams.setdefault((rank, (rank + step) % len(order)), []).append((message, len(computing[rank])))
            if action.kind.startswith("receive"):
                needed[Action(action.kind.removeprefix("receive_"), action.stage, action.micro_batch)] = message  # type: ignore[arg-type]
    arrived: set[Message] = set()
    computed, moved, progress = [0] * len(order), dict.fromkeys(streams, 0), True
    while progress:
        progress = False
        for rank, own in enumerate(computing):
            while computed[rank] < len(own) and needed.get(own[computed[rank]]) in {None, *arrived}:
                computed[rank] += 1
                progress = True
        for (rank, peer), messages in streams.items():
            there, back = moved[rank, peer], moved[peer, rank]
            if there == len(messages) or back == len(streams[peer, rank]):
                continue
            (message, after), (answer, after_too) = messages[there], streams[peer, rank][back]
            if message == answer and computed[rank] >= after and computed[peer] >= after_too:
                arrived.add(message)
                moved[rank, peer] += 1
                moved[peer, rank] += peer != rank
                progress = True
    return all(moved[key] == len(messages) for key, messages in streams.items())


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("num_passes", [1, 2, 4])
def test_nobody_waits_for_ever_where_sends_wait_for_receives(num_ranks: int, num_passes: int) -> None:
    for num_micro_batches in (1, 2, num_ranks, num_ranks + 1, 2 * num_ranks):
        orders = [forward_order(num_ranks, num_passes, num_micro_batches)]
        for schedule in ("interleaved_1f1b", "looped_bfs"):
            if micro_batches_fit(schedule, num_ranks, num_passes, num_micro_batches):
                orders.append(training_order(schedule, num_ranks, num_passes, num_micro_batches))
        assert all(map(_runs_by_rendezvous, orders))


def test_the_rendezvous_sees_a_wrong_order() -> None:
    """Rank 0 sends two messages to rank 1 the other way round."""
    order = [list(actions) for actions in training_order("interleaved_1f1b", 2, 2, 4)]
    sends = [place for place, action in enumerate(order[0]) if action.kind == "send_forward"][:2]
    first, second = sends
    order[0][first], order[0][second] = order[0][second], order[0][first]
    assert not _runs_by_rendezvous(tuple(map(tuple, order)))


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_an_evaluation_has_no_more_in_flight_than_there_are_ranks(num_ranks: int) -> None:
    for actions in forward_order(num_ranks, 3, 11):
        started: set[int] = set()
        last = max(stage for kind, stage, _ in actions if kind == "forward")
        for kind, stage, index in actions:
            if kind == "forward":
                started.add(index)
                assert len(started) <= num_ranks
                started -= {index} if stage == last else set()
