"""What a model says over tensor and pipeline axis in one optimizer step: counted where it happens, on real processes.

    candidate ──as many processes as hold one copy, one step──▶ calls and bytes per kind, bytes of the highway, per rank

Collectives of the data-parallel axis are DeepSpeed's and are not counted.
"""

from dataclasses import dataclass

from megamesh.benchmark.processes import Candidate, CandidateProcesses
from megamesh.config.batch import model_ranks
from megamesh.errors import TrainingError
from megamesh.parallel.collectives import Kind


@dataclass(frozen=True)
class KindTotal:
    """One kind of collective over an optimizer step of one rank."""

    kind: Kind
    calls: int
    num_bytes: int
    num_ranks: int

    @property
    def wire_bytes(self) -> float:
        """What a ring sends from each rank: (n−1)/n of the tensor, twice for an all-reduce; what is sent to a neighbour, once."""
        if self.kind.operation == "send":
            return float(self.num_bytes)
        rounds = 2 if self.kind.operation == "all_reduce" else 1
        return rounds * self.num_bytes * (self.num_ranks - 1) / self.num_ranks


@dataclass(frozen=True)
class CommunicationReport:
    """One candidate's optimizer step, as the busiest rank sees it."""

    candidate: Candidate
    totals: list[KindTotal]
    highway_bytes: int  # of one micro-batch


def measure_communication(candidate: Candidate) -> CommunicationReport:
    """Run one optimizer step and count. Raises TrainingError where one process holds the model."""
    size = model_ranks(candidate.config.parallel)
    if size == 1:
        raise TrainingError(
            "model_parallel_size=1 without a pipeline says nothing to anyone; add --set model_parallel_size=2 or "
            "--set pipe_parallel_size=2"
        )
    with CandidateProcesses(candidate, size) as processes:
        answers = processes.ask("communication")
    counted, _ = max(answers, key=lambda answer: sum(answer[0].num_bytes.values()))
    tensor_ranks = candidate.config.parallel.model_parallel_size
    totals = [KindTotal(kind, calls, counted.num_bytes[kind], tensor_ranks) for kind, calls in counted.calls.items()]
    return CommunicationReport(candidate, totals, max(num_bytes for _, num_bytes in answers))
