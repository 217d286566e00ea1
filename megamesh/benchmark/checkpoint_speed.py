"""How fast checkpoints are written and read, how long training waits, and what memory that takes beside the run's state.

    candidate ──processes, one step──▶ rounds of: save, asynchronous save, torch's own writer, load, load unverified ──▶ seconds, bytes

All ways in turn within every round, so that what else the machine does hits all. Files are read where they have just been written:
from memory, where they fit.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from megamesh.benchmark.processes import Candidate, CandidateProcesses
from megamesh.config.batch import model_ranks


@dataclass(frozen=True)
class WayReport:
    """One way of saving or loading over all rounds: the slowest rank's times, the largest rank's memory."""

    way: str
    seconds: list[float]
    waiting_seconds: float  # median
    extra_bytes: int
    state_bytes: int  # of all ranks together

    @property
    def bytes_per_second(self) -> float:
        return self.state_bytes / median(self.seconds)


def measure_checkpoints(
    candidate: Candidate, num_processes: int | None, num_rounds: int, folder: Path
) -> list[WayReport]:
    """Save and load in a folder of its own inside `folder`, which is removed at the end."""
    size = num_processes or model_ranks(candidate.config.parallel)
    with tempfile.TemporaryDirectory(dir=folder) as inside, CandidateProcesses(candidate, size) as processes:
        answers = processes.ask("checkpoints", inside, num_rounds)
    state_bytes = sum(own for _, own in answers)
    rounds = [by_rank for by_rank, _ in answers]
    reports = []
    for way in rounds[0][0]:
        timings = [[of_rank[number][way] for of_rank in rounds] for number in range(num_rounds)]
        reports.append(
            WayReport(
                way,
                [max(timing.seconds for timing in at_once) for at_once in timings],
                median(max(timing.waiting_seconds for timing in at_once) for at_once in timings),
                max(timing.extra_bytes for at_once in timings for timing in at_once),
                state_bytes,
            )
        )
    return reports
