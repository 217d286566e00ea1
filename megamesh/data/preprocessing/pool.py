"""The worker processes of one rank.

    items ─▶ work, in this process (one worker) or in several ─▶ results in the order of the items

Workers on one machine are forked, so that they share what has been loaded. Under MPI they are started afresh: a fork would share the
connections of the job. Ctrl-C, which a terminal sends to all of them, is the parent's to answer: it ends its workers.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from typing import Any, Literal, TypeVar

from megamesh.child_signals import children_without
from megamesh.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
QUEUED = 4  # items under way per worker


class _Worker:
    """What a worker process keeps between items."""

    work: Callable[[Any], Any]


class Pool:
    """`workers` processes that do `make_work()(item)`; with one worker, this process does it.

    `make_work` is called once in each process; with `start="spawn"` it must be picklable. Use as a context manager.
    """

    def __init__(self, make_work: Callable[[], Callable[[Any], Any]], workers: int, start: Literal["fork", "spawn"]):
        self._workers = workers
        if workers == 1:
            self._work = make_work()
            self._executor = None
            return
        self._executor = ProcessPoolExecutor(
            workers, mp_context=get_context(start), initializer=_start_worker, initargs=(make_work,)
        )
        self._others = set(active_children())
        with children_without({signal.SIGINT}):
            self._executor.submit(
                os.getpid
            )  # the first task forks all workers: before this process has threads of its own

    def run(self, items: Sequence[Item]) -> Iterator[Any]:
        """Results in the order of `items`; what `work` raised is raised here, the first in this order first."""
        if self._executor is None:
            yield from map(self._work, items)
            return
        executor = self._executor
        waiting = iter(items)
        try:
            pending: deque[Future[Any]] = deque(
                executor.submit(_do, item) for item in islice(waiting, QUEUED * self._workers)
            )
            while pending:
                result = pending.popleft().result()
                pending.extend(executor.submit(_do, item) for item in islice(waiting, 1))
                yield result
        except BrokenProcessPool as error:
            raise DataError(
                f"a worker process died ({error}); if memory ran out, use fewer --workers. The same command continues with the "
                "shards that are complete"
            ) from error

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._executor is None:
            return
        if kind is not None and not issubclass(kind, Exception):  # Ctrl-C: nobody waits for items that nobody wants
            for worker in set(active_children()) - self._others:
                worker.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(make_work: Callable[[], Callable[[Any], Any]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # spawned workers may have been started later
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _Worker.work = make_work()


def _do(item: Any) -> Any:
    return _Worker.work(item)


def _leave_with_parent() -> None:
    """End a worker whose parent was killed; it would wait for work for ever."""
    parent = parent_process()
    assert parent is not None, "runs in a worker"
    parent.join()
    os._exit(1)
