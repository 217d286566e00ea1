"""Persistent gloo processes for tests: `run(world_size, function, *args)` returns the result of every rank.

    pytest ──pickled (function, args)──▶ rank 0 … n−1, forked once per world size and kept
           ◀──pickled result or traceback──

The function and its arguments are pickled by reference, so the function lives at the top of a test module. An exception, a
dead process or a hang on any rank fails the call within bounded time, names the rank, and has the pool rebuilt for the next
test, because ranks that were left inside a collective cannot be trusted again.
"""

import atexit
import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_any
from typing import Any

from tests import processes

START_TIMEOUT_SECONDS = 120.0
DEFAULT_TIMEOUT_SECONDS = 180.0
GRACE_SECONDS = 5.0  # what the other ranks get to answer in, once one has failed


class WorkerError(Exception):
    """At least one rank raised, died or hung; the message holds the rank and its traceback."""


class _Pool:
    def __init__(self, world_size: int) -> None:
        self.world_size, port = world_size, processes.free_port()
        self.connections: list[Connection] = []
        self.processes: list[processes.Process] = []
        for rank in range(world_size):
            ours, theirs = multiprocessing.Pipe()
            # Not a daemon: a run in it may start data loader workers.
            process = processes.Process(_serve, (theirs, rank, world_size, port), rank)
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)

    def call(self, payload: bytes, timeout_seconds: float) -> list[Any]:
        for rank, connection in enumerate(self.connections):
            try:
                connection.send_bytes(payload)
            except OSError:
                raise WorkerError(f"rank {rank} had died before the call") from None
        answers, failures = self._collect(time.monotonic() + timeout_seconds)
        if failures:
            raise WorkerError("\n".join(failures[rank] for rank in sorted(failures)))
        return [answers[rank] for rank in range(self.world_size)]

    def _collect(self, deadline: float) -> tuple[dict[int, Any], dict[int, str]]:
        answers: dict[int, Any] = {}
        failures: dict[int, str] = {}
        waiting = dict(enumerate(self.connections))
        while waiting:
            ready = wait_any(list(waiting.values()), max(deadline - time.monotonic(), 0))
            if not ready:
                return answers, {rank: f"rank {rank} did not answer in time" for rank in waiting} | failures
            for rank in [rank for rank, connection in waiting.items() if connection in ready]:
                try:
                    succeeded, value = pickle.loads(waiting.pop(rank).recv_bytes())
                except (EOFError, OSError):
                    self.processes[rank].join(GRACE_SECONDS)
                    succeeded, value = False, f"died with exit code {self.processes[rank].exitcode}"
                if succeeded:
                    answers[rank] = value
                else:
                    failures[rank] = f"rank {rank} {value}"
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        return answers, failures

    def stop(self) -> None:
        for connection in self.connections:
            connection.close()  # a worker that waits for work leaves on its own
        for process in self.processes:
            process.join(0.5)
            if process.is_alive():
                process.kill()
                process.join()


_pools: dict[int, _Pool] = {}


def run(
    world_size: int, function: Callable[..., Any], *args: Any, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
) -> list[Any]:
    """Call function(*args) on `world_size` processes of one gloo group; the results by rank. Raises WorkerError."""
    payload = pickle.dumps((function, args))
    if world_size not in _pools:
        _pools[world_size] = _Pool(world_size)
        timeout_seconds += START_TIMEOUT_SECONDS
    try:
        return _pools[world_size].call(payload, timeout_seconds)
    except BaseException:
        _pools.pop(world_size).stop()
        raise


def stop_all() -> None:
    """End all workers."""
    while _pools:
        _pools.popitem()[1].stop()
    processes.stop_all()


def _serve(connection: Connection, rank: int, world_size: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    from megamesh.engine.distributed import init_distributed

    init_distributed()
    while True:
        try:
            function, args = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        except Exception:  # the test module does not import here
            connection.send_bytes(pickle.dumps((False, f"could not unpickle the call\n{traceback.format_exc()}")))
            continue
        try:
            answer = pickle.dumps((True, function(*args)))
        except BaseException:
            answer = pickle.dumps((False, f"raised\n{traceback.format_exc()}"))
        connection.send_bytes(answer)


atexit.register(stop_all)
