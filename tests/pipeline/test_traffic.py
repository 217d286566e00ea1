"""Bytes between pipeline ranks, against the formula and against the sends in the lists."""

import pytest

from megamesh.config.recursion import parse_recursion
from megamesh.pipeline.order import training_order
from megamesh.pipeline.stages import Partition, lay_out
from megamesh.pipeline.traffic import p2p_bytes_per_step

TOKENS, HIDDEN, WIDTH = 12, 8, 2


def partition(num_ranks: int, tied: bool, carries: bool) -> Partition:
    counts = ((1,) * num_ranks, (2,) * num_ranks, (1,) * num_ranks)
    layout = parse_recursion(f"{num_ranks}+{2 * num_ranks}R3+{num_ranks}")
    return lay_out(layout, counts, num_ranks, tied=tied, carries=carries)


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("carries", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_bytes_are_the_docstring_s_formula(num_ranks: int, tied: bool, carries: bool) -> None:
    sent = p2p_bytes_per_step(partition(num_ranks, tied, carries), TOKENS, HIDDEN, WIDTH, 8)
    num_edges = 5 * num_ranks - (0 if tied else 1)  # prelude, three loops, coda
    edges = num_edges + (num_ranks - 1 if carries else 0)
    assert sum(sent) == 2 * TOKENS * HIDDEN * WIDTH * 8 * edges


def test_every_rank_sends_what_its_send_actions_say() -> None:
    cut = partition(4, tied=True, carries=True)
    counted = [0] * 4
    for rank, actions in enumerate(training_order("interleaved_1f1b", 4, cut.num_passes, 8)):
        for action in actions:
            if action.kind == "send_forward":
                counted[rank] += cut.stages[action.stage].num_outputs
            elif action.kind == "send_backward":
                counted[rank] += cut.stages[action.stage - 1].num_outputs
    assert p2p_bytes_per_step(cut, TOKENS, HIDDEN, WIDTH, 8) == [TOKENS * HIDDEN * WIDTH * count for count in counted]


def test_one_rank_sends_nothing() -> None:
    assert p2p_bytes_per_step(partition(1, tied=False, carries=True), TOKENS, HIDDEN, WIDTH, 8) == [0]
