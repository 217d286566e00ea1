"""How fast a model trains, beside others of the same compute depth: tokens/s, TFLOP/s, MFU and peak memory.

    processes of A, B, C … (benchmark_processes.py) ──timed in turn, round after round: A B C, A B C, …──▶ Measurement of each

While one is timed the others wait. Memory is what the device's allocator held at most, or on a CPU the process's largest resident set.
Figures are medians over rounds, ratios are taken within each round, so that a machine whose speed drifts changes both sides alike.
"""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from megamesh.benchmark.processes import Candidate, CandidateProcesses


@dataclass(frozen=True)
class Measurement:
    """What one candidate did. Seconds per optimizer step by round; memory is the largest of its processes."""

    candidate: Candidate
    num_parameters: int
    tokens_per_step: int
    num_devices: int
    seconds_per_step: list[float]
    peak_bytes: int
    peak_tflops: float | None

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds_per_step)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.median_seconds

    @property
    def tflops_per_device(self) -> float:
        return self.tokens_per_second * self.candidate.flops_per_token / self.num_devices / 1e12

    def ratio_to(self, other: "Measurement") -> float:
        """Speed as a multiple of another candidate's: the median of the ratios of each round."""
        pairs = zip(other.seconds_per_step, self.seconds_per_step, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def benchmark(
    candidates: Sequence[Candidate], *, num_processes: int, num_rounds: int, steps_per_round: int, num_warmup_steps: int
) -> list[Measurement]:
    """Time every candidate `num_rounds` times, in turn. Raises TrainingError with the text of a process that failed."""
    with ExitStack() as stack:
        groups = []
        for candidate in candidates:
            groups.append(stack.enter_context(CandidateProcesses(candidate, num_processes)))
            groups[-1].ask("steps", num_warmup_steps)
        seconds: list[list[float]] = [[] for _ in groups]
        for _ in range(num_rounds):
            for group, times in zip(groups, seconds, strict=True):
                times.append(max(group.ask("steps", steps_per_round)) / steps_per_round)
        return [_measurement(group, times) for group, times in zip(groups, seconds, strict=True)]


def _measurement(group: CandidateProcesses, seconds_per_step: list[float]) -> Measurement:
    return Measurement(
        group.candidate,
        group.facts.num_parameters,
        group.facts.tokens_per_step,
        group.num_processes,
        seconds_per_step,
        max(group.ask("peak_bytes")),
        group.facts.peak_tflops,
    )
