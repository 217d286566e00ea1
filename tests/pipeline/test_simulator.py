"""The simulator against closed forms, and against what no schedule may do."""

from itertools import pairwise

import pytest

from megamesh.config.recursion import parse_recursion
from megamesh.pipeline.order import Schedule, micro_batches_fit, training_order
from megamesh.pipeline.simulator import simulate_step
from megamesh.pipeline.stages import Costs, Partition, lay_out

BLOCK = Costs(block=1.0, head=0.0)


def ring(num_ranks: int, num_loops: int, tied: bool = False) -> Partition:
    """One layer per rank in every pass."""
    counts = ((1,) * num_ranks,) * 3
    layout = parse_recursion(f"{num_ranks}+{num_ranks}R{num_loops}+{num_ranks}")
    return lay_out(layout, counts, num_ranks, tied=tied, carries=True)


def plain(num_ranks: int, num_passes: int, layers: int = 1) -> Partition:
    return lay_out(None, ((layers,) * num_ranks,) * num_passes, num_ranks, tied=False, carries=False)


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "looped_bfs"])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("backward_ratio", [1.0, 2.0, 3.0])
def test_the_bubble_of_uniform_passes_is_the_closed_form(
    schedule: Schedule, num_ranks: int, backward_ratio: float
) -> None:
    """(P − 1) / (passes · M + P − 1), for every number of micro-batches that the schedule has an order for."""
    for num_passes, partition in [(1, plain(num_ranks, 1)), (2, plain(num_ranks, 2)), (5, ring(num_ranks, 3))]:
        for num_micro_batches in (num_ranks, num_ranks + 1, 4 * num_ranks):
            if not micro_batches_fit(schedule, num_ranks, num_passes, num_micro_batches):
                continue
            timeline = simulate_step(
                partition, BLOCK, num_micro_batches, schedule=schedule, backward_ratio=backward_ratio
            )
            expected = (num_ranks - 1) / (num_passes * num_micro_batches + num_ranks - 1)
            assert timeline.idle_share == pytest.approx(expected, abs=1e-12)
            assert timeline.seconds == pytest.approx(
                (num_passes * num_micro_batches + num_ranks - 1) * (1 + backward_ratio)
            )


def idle(counts: tuple[tuple[int, ...], ...]) -> float:
    partition = lay_out(parse_recursion("4+12R3+4"), counts, 4, tied=False, carries=True)
    return simulate_step(partition, BLOCK, 16).idle_share


def test_the_bubbles_of_the_design() -> None:
    """4+12R3+4 on four ranks with 16 micro-batches of equal layers, no head."""
    around = idle(((1, 1, 1, 1), (3, 3, 3, 3), (1, 1, 1, 1)))
    ends = idle(((4, 0, 0, 0), (3, 3, 3, 3), (0, 0, 0, 4)))
    straight = simulate_step(plain(4, 1, layers=11), BLOCK, 16).idle_share
    assert around == pytest.approx(0.079, abs=5e-4) and around < 0.1
    assert ends == pytest.approx(0.29, abs=5e-4)
    assert straight == pytest.approx(3 / 19) and straight > 0.157


@pytest.mark.parametrize("schedule", ["interleaved_1f1b", "looped_bfs"])
@pytest.mark.parametrize("message_seconds", [0.0, 0.3])
def test_a_timeline_obeys_ranks_inputs_and_wires(schedule: Schedule, message_seconds: float) -> None:
    """Every action once, no rank does two things at a time, nothing starts before its input has arrived."""
    partition = lay_out(parse_recursion("3+5R2+2"), ((2, 1), (1, 4), (2, 0)), 2, tied=True, carries=True)
    costs = Costs(block=1.0, head=2.5, boundary=0.25)
    timeline = simulate_step(partition, costs, 6, schedule=schedule, message_seconds=message_seconds)
    ran = {stretch.action: stretch for stretch in timeline.busy}
    listed = [
        action
        for actions in training_order(schedule, 2, partition.num_passes, 6)
        for action in actions
        if action.kind in ("forward", "backward")
    ]
    assert sorted(ran) == sorted(listed) and len(timeline.busy) == 2 * len(partition.stages) * 6
    for rank in range(2):
        own = sorted((stretch.start, stretch.end) for stretch in timeline.busy if stretch.rank == rank)
        assert all(later[0] >= earlier[1] - 1e-9 for earlier, later in pairwise(own))
    for (kind, stage, micro_batch), stretch in ran.items():
        before = stage - 1 if kind == "forward" else stage + 1
        if 0 <= before < len(partition.stages):
            assert stretch.start >= ran[kind, before, micro_batch].end + message_seconds - 1e-9  # type: ignore[index]
        if kind == "backward":
            assert stretch.start >= ran["forward", stage, micro_batch].end - 1e-9  # type: ignore[index]


def test_the_head_does_all_its_work_in_forward() -> None:
    partition = plain(2, 1)
    timeline = simulate_step(partition, Costs(block=1.0, head=2.0), 4)
    lengths = {(stretch.action.kind, stretch.action.stage): stretch.end - stretch.start for stretch in timeline.busy}
    assert lengths["forward", 1] == pytest.approx(1 + 3 * 2) and lengths["backward", 1] == pytest.approx(2)
    assert lengths["forward", 0] == pytest.approx(1) and lengths["backward", 0] == pytest.approx(2)


def test_idle_shares_are_those_of_the_ranks() -> None:
    """Rank 0 has three layers of four, and what is after the last of its micro-batches counts as idle."""
    partition = lay_out(None, ((3, 1),), 2, tied=False, carries=False)
    timeline = simulate_step(partition, BLOCK, 8)
    busy = [8 * 3 * layers for layers in (3, 1)]
    assert timeline.idle_shares == pytest.approx([1 - own / timeline.seconds for own in busy])
    assert timeline.idle_share == pytest.approx(sum(timeline.idle_shares) / 2)


def test_messages_travel_while_others_compute() -> None:
    """Interleaved passes have a micro-batch more at hand than they need: messages delay the step's ends, not each micro-batch."""
    partition = plain(2, 2)
    times = [simulate_step(partition, BLOCK, count, message_seconds=0.1).seconds for count in (8, 16)]
    without = [simulate_step(partition, BLOCK, count).seconds for count in (8, 16)]
    delays = [slow - fast for slow, fast in zip(times, without, strict=True)]
    assert 0.2 - 1e-9 <= delays[0] == pytest.approx(delays[1])


def test_one_pass_waits_for_every_message() -> None:
    """1F1B has nothing else to do: what a micro-batch less in memory costs."""
    slow, fast = (simulate_step(plain(2, 1), BLOCK, 16, message_seconds=seconds).seconds for seconds in (0.1, 0.0))
    assert slow - fast == pytest.approx(16 * 0.1)
