"""Real processes of one group, each with its own exit status, all with one standard error: for tests in which some of them die.

    pytest ──▶ fork servers ──▶ rank 0 … n−1, each runs `function(*args)` inside leaving_together

Unlike the pool in tests/distributed.py, nothing is told to the processes from outside, and none is expected to survive.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megamesh.engine import liveness
from megamesh.engine.distributed import init_distributed, shut_down_distributed
from tests.processes import Process, free_port

HANG_SECONDS = 120.0
MEND = "Start it again."


@dataclass(frozen=True)
class Outcome:
    """Exit statuses by rank (negative: the signal; None: it hung and was ended) and all that was written to standard error."""

    statuses: list[int | None]
    stderr: str

    @property
    def messages(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if MEND in line]


def live(folder: Path, world_size: int, function: Callable[..., None], *args: Any, **constants: float) -> Outcome:
    """How `world_size` processes end; `constants` of megamesh.engine.liveness are changed in all of them."""
    port = free_port()
    stderr = folder / f"stderr-{port}"
    processes = [
        Process(_be_a_rank, (rank, world_size, port, stderr, function, args, constants), rank)
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + HANG_SECONDS
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    statuses = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return Outcome(statuses, stderr.read_text())


def _be_a_rank(
    rank: int,
    world_size: int,
    port: int,
    stderr: Path,
    function: Callable[..., None],
    args: tuple[Any, ...],
    constants: dict[str, float],
) -> None:
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    for name, value in constants.items():
        setattr(liveness, name, value)
    init_distributed(on_gpu=False)
    try:
        with liveness.leaving_together(MEND):
            function(*args)
    finally:
        shut_down_distributed()
