"""Processes of tests, forked in milliseconds from servers that have torch, DeepSpeed and MegaMesh imported.

    pytest ──pickled (function, args)──▶ fork server: tests/preload.py imported, one thread, no process group
                                              └─fork──▶ Process: an exit status, signals and a standard error of its own

A process that a launcher starts differs from these in two things. It imports for itself, which the tests of launchers show. And
its sets of strings have an order of their own: so there are two servers with different hash seeds, and neighbouring ranks come
from different ones. A collective that follows the order of a set hangs here as it would in a run.
"""

import atexit
import itertools
import multiprocessing
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from multiprocessing.popen_forkserver import Popen
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).parents[1]
QUIET = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
TIMEOUT_SECONDS = 300.0
STREAMS = ("stdin", "stdout", "stderr")

_servers = [forkserver.ForkServer() for _ in range(2)]
for _server in _servers:
    _server.set_forkserver_preload(["tests.preload"])
_environment = dict(os.environ)  # before any test has changed it


class Process(ForkServerProcess):
    """multiprocessing's Process from the server of `rank`; target and arguments are pickled."""

    def __init__(self, target: Callable[..., object], args: tuple[Any, ...] = (), rank: int = 0) -> None:
        super().__init__(target=_in_child, args=(target, args))
        self.server = rank % len(_servers)

    @staticmethod
    def _Popen(process: Any) -> Popen:
        server = _servers[process.server]
        with _as_at_first(PYTHONHASHSEED=str(process.server + 1)):
            server.ensure_running()
        with patch.object(forkserver, "connect_to_new_process", server.connect_to_new_process):
            return Popen(process)


class Forked:
    """In place of the context that multiprocessing.get_context("spawn") gives to what is tested."""

    Pipe = staticmethod(multiprocessing.Pipe)
    _ranks = itertools.count()

    @classmethod
    def Process(cls, target: Callable[..., object], args: tuple[Any, ...], daemon: bool) -> Process:
        process = Process(target, args, next(cls._ranks))
        process.daemon = daemon
        return process


class Script(Process):
    """`python script arguments…`, with files for what it prints; `environment` is added to the present one."""

    def __init__(self, script: str | Path, *arguments: object, rank: int = 0, **environment: str) -> None:
        self.words = [str(ROOT / script), *map(str, arguments)]
        self.files = {name: Path(tempfile.mkstemp(prefix=f"{name}-")[1]) for name in STREAMS}
        super().__init__(_be_script, (self.words, self.files, os.environ | QUIET | environment), rank)

    def finish(self, timeout_seconds: float = TIMEOUT_SECONDS) -> subprocess.CompletedProcess[str]:
        """How it ended. Raises TimeoutExpired."""
        self.join(timeout_seconds)
        status = self.exitcode
        if status is None:
            self.kill()
            self.join()
        _, output, errors = (file.read_text() for file in self.files.values())
        for file in self.files.values():
            file.unlink()
        if status is None:
            raise subprocess.TimeoutExpired(self.words, timeout_seconds, output, errors)
        return subprocess.CompletedProcess(self.words, status, output, errors)


def run_ranks(
    world_size: int, script: str | Path, *arguments: object, **environment: str
) -> list[subprocess.CompletedProcess[str]]:
    """One script in the processes of one group, as a launcher would start them; how each ended."""
    group = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    scripts = [
        Script(script, *arguments, rank=rank, RANK=str(rank), LOCAL_RANK=str(rank), **group, **environment)
        for rank in range(world_size)
    ]
    for each in scripts:
        each.start()
    return [each.finish() for each in scripts]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_script(script: str | Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """As subprocess.run([python, script, *arguments]) with captured output."""
    process = Script(script, *arguments, **environment)
    process.start()
    return process.finish()


@contextmanager
def _as_at_first(**environment: str) -> Iterator[None]:
    """The environment and folder in which a server starts: the session's, not those of the test that needs it first."""
    folder = Path.cwd()
    with patch.dict(os.environ, _environment | QUIET | environment, clear=True):
        os.chdir(ROOT)
        try:
            yield
        finally:
            os.chdir(folder)


def _in_child(target: Callable[..., object], args: tuple[Any, ...]) -> None:
    """Nothing that a process draws for itself may be the server's, and what it starts (data loaders) it starts as always."""
    assert "tests.preload" in sys.modules, (
        "the fork server could not import tests/preload.py: try `python -m tests.preload`"
    )
    random.seed()
    np.random.seed()
    os.environ.pop("PYTHONHASHSEED")
    multiprocessing.set_start_method("fork", force=True)
    target(*args)


def _be_script(words: list[str], files: dict[str, Path], environment: dict[str, str]) -> None:
    for number, file in enumerate(files.values()):
        os.dup2(os.open(file, os.O_RDWR | os.O_APPEND), number)
    sys.stdin = os.fdopen(0, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    try:
        runpy.run_path(words[0], run_name="__main__")
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        atexit._run_exitfuncs()


def stop_all() -> None:
    """End the servers; their processes have ended before."""
    for server in _servers:
        if server._forkserver_pid is not None:
            os.kill(server._forkserver_pid, signal.SIGTERM)
            server._stop()
