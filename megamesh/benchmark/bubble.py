"""How idle pipeline ranks really are, beside what the simulator says of the same order with the same times.

    candidate ──pipe_parallel_size processes, some steps──▶ start and end of every forward and backward ──▶ measured idle share
                                                            mean time of every stage ──replay──▶ simulated idle share

With `layer_seconds` every block sleeps, that long in forward and twice in backward, instead of computing: then processes that share
a machine's cores measure the schedule and not the machine. The simulator is given these times, or those measured.
"""

from collections import defaultdict
from dataclasses import dataclass
from statistics import mean, median

from megamesh.benchmark.processes import BACKWARD_SLEEPS, Candidate, CandidateProcesses
from megamesh.errors import TrainingError
from megamesh.pipeline.order import training_order
from megamesh.pipeline.simulator import Busy, Timeline, replay
from megamesh.pipeline.stages import Partition
from megamesh.training.build import cut_over_pipeline


@dataclass(frozen=True)
class BubbleReport:
    """One candidate's steps, measured and simulated."""

    candidate: Candidate
    partition: Partition
    num_micro_batches: int
    measured: list[Timeline]
    simulated: Timeline

    @property
    def measured_idle_share(self) -> float:
        """Median over the steps."""
        return median(timeline.idle_share for timeline in self.measured)


def measure_bubble(candidate: Candidate, *, num_steps: int, layer_seconds: float | None) -> BubbleReport:
    """Run a warm-up step and `num_steps` more. Raises TrainingError where there is no pipeline, or ranks beside it."""
    parallel = candidate.config.parallel
    size = parallel.pipe_parallel_size
    if size < 2 or parallel.model_parallel_size > 1:
        raise TrainingError(
            f"pipe_parallel_size={size}, model_parallel_size={parallel.model_parallel_size}: the pipeline is measured by itself; "
            "use pipe_parallel_size of 2 or more and model_parallel_size: 1"
        )
    with CandidateProcesses(candidate, size) as processes:
        batch = processes.batch
        partition = cut_over_pipeline(candidate.config, batch, candidate.padded_vocab_size)
        assert partition is not None, "there are pipeline ranks"
        steps = [processes.ask("watch_step", layer_seconds) for _ in range(1 + num_steps)][1:]
    measured = [
        Timeline(size, tuple(Busy(rank, *told) for rank, own in enumerate(by_rank) for told in own))
        for by_rank in steps
    ]
    num_micro_batches = batch.gradient_accumulation_steps
    order = training_order(parallel.pipe_schedule, size, partition.num_passes, num_micro_batches)
    times = _slept(partition, layer_seconds) if layer_seconds is not None else _means(measured)
    simulated = replay(order, lambda action: times[action.kind, action.stage])
    return BubbleReport(candidate, partition, num_micro_batches, measured, simulated)


def _slept(partition: Partition, layer_seconds: float) -> dict[tuple[str, int], float]:
    forward = {("forward", stage.index): stage.num_blocks * layer_seconds for stage in partition.stages}
    return forward | {("backward", index): BACKWARD_SLEEPS * seconds for (_, index), seconds in forward.items()}


def _means(measured: list[Timeline]) -> dict[tuple[str, int], float]:
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for timeline in measured:
        for stretch in timeline.busy:
            found[stretch.action.kind, stretch.action.stage].append(stretch.end - stretch.start)
    return {key: mean(seconds) for key, seconds in found.items()}
