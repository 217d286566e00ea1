"""Ctrl-C while workers work: they do not answer it, and do not outlive it."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import active_children

import pytest

from megamesh.data.preprocessing.pool import Pool

LONG_SECONDS = 60.0


def sleep_long() -> Callable[[float], int]:
    def work(seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    return work


def test_workers_leave_ctrl_c_to_their_parent() -> None:
    others = set(active_children())
    with Pool(sleep_long, 2, "fork") as pool:
        first = next(pool.run([0.1]))
        for worker in set(active_children()) - others:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGINT)
        again = list(pool.run([0.1, 0.1, 0.1]))
    assert {first, *again}, "all items were done"


def test_ctrl_c_does_not_wait_for_what_workers_do() -> None:
    others, started = set(active_children()), time.monotonic()

    def interrupted() -> None:
        with Pool(sleep_long, 2, "fork") as pool:
            results = pool.run([0.1, LONG_SECONDS, LONG_SECONDS])
            next(results)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - started < LONG_SECONDS / 2
    assert set(active_children()) <= others
