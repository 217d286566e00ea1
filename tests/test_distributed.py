"""The worker pool returns what ranks return, and turns every way to fail into an error that names the rank."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed import WorkerError, run


def _sum_of_ranks(offset: int) -> tuple[int, float, int]:
    value = torch.tensor(float(dist.get_rank() + offset))
    dist.all_reduce(value)
    return dist.get_rank(), value.item(), os.getpid()


def _raise_on_rank_one() -> None:
    if dist.get_rank() == 1:
        raise ZeroDivisionError("on purpose")
    dist.barrier()  # would wait for ever


def _die_on_rank_one() -> None:
    if dist.get_rank() == 1:
        os._exit(7)
    dist.barrier()


def _hang_on_rank_zero() -> None:
    if dist.get_rank() == 0:
        time.sleep(600)


def test_results_come_back_by_rank_and_processes_are_reused() -> None:
    first, second = run(2, _sum_of_ranks, 10), run(2, _sum_of_ranks, 20)
    assert [answer[:2] for answer in first] == [(0, 21.0), (1, 21.0)]
    assert [answer[:2] for answer in second] == [(0, 41.0), (1, 41.0)]
    assert [answer[2] for answer in first] == [answer[2] for answer in second]
    assert os.getpid() not in {answer[2] for answer in first}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (_raise_on_rank_one, r"rank 1 raised\n(.|\n)*ZeroDivisionError: on purpose"),
        (_die_on_rank_one, r"rank 1 died with exit code 7"),
        (_hang_on_rank_zero, r"rank 0 did not answer in time"),
    ],
)
def test_failure_names_the_rank_in_bounded_time_and_the_pool_recovers(function, expected: str) -> None:
    run(2, _sum_of_ranks, 0)
    start = time.monotonic()
    with pytest.raises(WorkerError, match=expected):
        run(2, function, timeout_seconds=5)
    assert time.monotonic() - start < 120
    assert [answer[1] for answer in run(2, _sum_of_ranks, 0)] == [1.0, 1.0]
