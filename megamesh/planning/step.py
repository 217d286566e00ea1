"""How long an optimizer step of a layout takes, and what it keeps: an estimate whose model is written down here.

    seconds of a stage = its blocks, boundary, embedding, head   (Speed · micro-batch / tp)  +  their tensor-parallel collectives
    seconds of a step  = the pipeline's timeline (simulator.py; one rank: micro-batches one after the other)
                         + gradients of replicated parameters over tp  +  gradients and weights over dp

Collectives of the tensor and data axes are added whole: what overlaps with computing is not credited. Messages between pipeline ranks
travel while others compute, as the simulator says, at the bandwidth of the slowest wire between two neighbours. Backward of a block that
is computed again takes its forward once more. The optimizer, data loading, kernel launches and stragglers take no time.

A step is periodic in rounds of micro-batches: a timeline is simulated for up to `MAX_ROUNDS` of them, with the real lists of actions, and
continued by the length of the last one. `exact` simulates all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from megamesh.config.batch import ResolvedBatch
from megamesh.config.deepspeed import effective_zero_stage
from megamesh.config.sections import RunConfig
from megamesh.pipeline.order import Action, training_order
from megamesh.pipeline.partition import build_partition
from megamesh.pipeline.simulator import Timeline, replay
from megamesh.pipeline.stages import Partition, Stage
from megamesh.pipeline.traffic import p2p_bytes_per_step
from megamesh.planning.hardware import Cluster
from megamesh.planning.layouts import Layout
from megamesh.planning.memory import BYTES_FP32, memory_per_rank, state_tokens
from megamesh.planning.pipeline_memory import RankMemory, memory_of_ranks, parameters_of_ranks
from megamesh.planning.speed import Speed
from megamesh.planning.wires import TensorTraffic, Traffic, data_bytes, tensor_traffic

MAX_ROUNDS = 6


@dataclass(frozen=True)
class Placement:
    """A model on tp × pp × dp ranks: what does not depend on batch, ZeRO and recomputation."""

    partition: Partition
    num_parameters: Sequence[int]
    num_replicated: Sequence[int]

    @staticmethod
    def of(run: RunConfig, padded_vocab_size: int) -> "Placement":
        """Cut the model; parameters are those of one tensor rank, on every pipeline rank."""
        tp = run.parallel.model_parallel_size
        partition = build_partition(run.model, run.recursion, run.parallel, padded_vocab_size)
        one = run.model_copy(update={"parallel": run.parallel.model_copy(update={"model_parallel_size": 1})})
        own, whole = (parameters_of_ranks(config, padded_vocab_size, partition) for config in (run, one))
        # own = replicated + split / tp and whole = replicated + split
        replicated = [(tp * o - w) // (tp - 1) if tp > 1 else 0 for o, w in zip(own, whole, strict=True)]
        return Placement(partition, own, replicated)


@dataclass(frozen=True)
class Step:
    """One optimizer step of a layout. `run` is laid out so."""

    run: RunConfig
    layout: Layout
    placement: Placement
    padded_vocab_size: int
    cluster: Cluster
    speed: Speed

    @property
    def batch(self) -> ResolvedBatch:
        return self.layout.batch()

    @cached_property
    def memory(self) -> list[RankMemory]:
        """Of every pipeline rank. More rounds of micro-batches than are replayed keep no more."""
        if self.layout.pp == 1:
            (num_parameters,) = self.placement.num_parameters
            parts = memory_per_rank(self.run, self.batch, self.padded_vocab_size)
            return [RankMemory(num_parameters, {part: size for part, size in parts.items() if part != "total"})]
        return memory_of_ranks(
            self.run,
            self.batch,
            self.padded_vocab_size,
            self.placement.partition,
            self.replayed_micro_batches,
            self.placement.num_parameters,
        )

    @property
    def fullest(self) -> RankMemory:
        return max(self.memory, key=lambda rank: rank.total)

    @property
    def micro_batches_per_round(self) -> int:
        """Micro-batches after which the order repeats itself."""
        rounds = max(1, self.layout.num_micro_batches // self.layout.pp)
        return self.layout.num_micro_batches // rounds

    @property
    def replayed_micro_batches(self) -> int:
        """As many as are simulated."""
        if self.run.parallel.pipe_schedule != "interleaved_1f1b":
            return self.layout.num_micro_batches
        return min(self.layout.num_micro_batches, MAX_ROUNDS * self.micro_batches_per_round)

    def timeline(self, num_micro_batches: int) -> Timeline:
        """The pipeline's part of a step with so many micro-batches, in seconds."""
        partition, micro = self.placement.partition, self.layout.micro_batch_size / self.layout.tp
        traffic = tensor_traffic(self.run, self.batch)
        times = [_StageTimes(self, stage, micro, traffic) for stage in partition.stages]
        messages = {
            (stage.rank, to_rank): self._message_seconds(stage.rank, to_rank)
            for stage in partition.stages
            for to_rank in ((stage.rank + 1) % self.layout.pp, (stage.rank - 1) % self.layout.pp)
        }

        def seconds(action: Action) -> float:
            stage = times[action.stage]
            return stage.forward if action.kind == "forward" else stage.backward

        def message_seconds(action: Action) -> float:
            stage = partition.stages[action.stage]
            sender = stage if action.kind == "send_forward" else partition.stages[action.stage - 1]
            step = 1 if action.kind == "send_forward" else -1
            return sender.num_outputs * messages[stage.rank, (stage.rank + step) % self.layout.pp]

        order = training_order(self.run.parallel.pipe_schedule, self.layout.pp, partition.num_passes, num_micro_batches)
        return replay(order, seconds, message_seconds)

    @cached_property
    def estimate(self) -> "Estimate":
        """The step's time, its last rounds continued."""
        simulated, wanted = self.replayed_micro_batches, self.layout.num_micro_batches
        if self.layout.pp == 1:
            simulated = 1
        timeline = self.timeline(simulated)
        seconds, busy = timeline.seconds, timeline.seconds * (1 - timeline.idle_share)
        if wanted > simulated:
            per_round = 1 if self.layout.pp == 1 else self.micro_batches_per_round
            before = self.timeline(simulated - per_round).seconds if self.layout.pp > 1 else 0.0
            seconds += (wanted - simulated) / per_round * (seconds - before)
            busy *= wanted / simulated
        return Estimate(seconds, 1 - busy / seconds, self.sync_seconds)

    def exact(self) -> tuple["Estimate", Timeline]:
        """The same with every micro-batch simulated."""
        timeline = self.timeline(self.layout.num_micro_batches)
        return Estimate(timeline.seconds, timeline.idle_share, self.sync_seconds), timeline

    @property
    def tensor_bytes(self) -> float:
        """What the busiest rank puts on tensor-parallel wires in one step."""
        traffic, layout = tensor_traffic(self.run, self.batch), self.layout
        again = layout.recompute != "none"
        per_rank = [Traffic(0.0)] * layout.pp
        for stage in self.placement.partition.stages:
            forward, backward = stage_traffic(stage, traffic, again)
            per_rank[stage.rank] += (forward + backward) * layout.num_micro_batches
        return max(
            own.num_bytes + replicated.num_bytes
            for own, replicated in zip(per_rank, self._replicated_traffic(), strict=True)
        )

    @property
    def data_bytes(self) -> float:
        """What the busiest rank sends to its data-parallel peers in one step."""
        return max(data_bytes(self.run, self.batch, count) for count in self.placement.num_parameters)

    @property
    def pipeline_bytes(self) -> list[int]:
        """What every pipeline rank sends to its neighbours in one step."""
        return p2p_bytes_per_step(
            self.placement.partition,
            state_tokens(self.run, self.batch),
            self.run.model.hidden_size,
            self.run.precision.bytes_per_value,
            self.layout.num_micro_batches,
        )

    @property
    def sync_seconds(self) -> float:
        """Gradients over tp and dp, weights over dp: what follows the micro-batches, on the rank that has most."""
        tp, _, dp = self.layout.sizes
        replicated = max(traffic.num_bytes for traffic in self._replicated_traffic())
        over_tp = self.cluster.seconds(replicated, within_node=self._tensor_in_node) if tp > 1 else 0.0
        within_node = self.cluster.group_within_node(dp, tp)
        return over_tp + (self.cluster.seconds(self.data_bytes, within_node=within_node) if dp > 1 else 0.0)

    def collective_seconds(self, traffic: Traffic) -> float:
        """Of the tensor axis."""
        if traffic.calls == 0:
            return 0.0
        return self.cluster.seconds(traffic.num_bytes, within_node=self._tensor_in_node, messages=traffic.calls)

    @property
    def _tensor_in_node(self) -> bool:
        return self.cluster.group_within_node(self.layout.tp, 1)

    def _message_seconds(self, rank: int, to_rank: int) -> float:
        stride = self.layout.tp * self.layout.dp
        state = state_tokens(self.run, self.batch) * self.run.model.hidden_size * self.run.precision.bytes_per_value
        return self.cluster.seconds(state, within_node=self.cluster.wire_within_node(stride, rank, to_rank))

    def _replicated_traffic(self) -> list[Traffic]:
        tp, dp = self.layout.tp, self.layout.dp
        shards = dp if effective_zero_stage(self.run.optimizer, self.run.precision) else 1
        return [
            Traffic(2 * (tp - 1) / tp * BYTES_FP32 * count / shards, int(tp > 1))
            for count in self.placement.num_replicated
        ]


@dataclass(frozen=True)
class Estimate:
    """Predicted seconds: of the micro-batches, and of what follows them; and the idle share of the former."""

    pipeline_seconds: float
    idle_share: float
    sync_seconds: float

    @property
    def seconds(self) -> float:
        return self.pipeline_seconds + self.sync_seconds


class _StageTimes:
    """Seconds of a stage's forward and backward for one micro-batch."""

    def __init__(self, step: Step, stage: Stage, micro: float, traffic: TensorTraffic):
        speed, again = step.speed, step.layout.recompute != "none"
        boundary = stage.boundary is not None
        blocks_again = stage.num_blocks * speed.block_forward * again
        forward = stage.num_blocks * speed.block_forward + boundary * speed.boundary_forward
        backward = stage.num_blocks * speed.block_backward + boundary * speed.boundary_backward + blocks_again
        said, answered = stage_traffic(stage, traffic, again)
        self.forward = micro * (forward + stage.has_head * speed.head) + step.collective_seconds(said)
        self.backward = micro * backward + step.collective_seconds(answered)


def stage_traffic(stage: Stage, traffic: TensorTraffic, again: bool) -> tuple[Traffic, Traffic]:
    """A stage's tensor-parallel collectives for one micro-batch, forward and backward; `again`: blocks are computed again."""
    forward, backward = traffic.block_forward * stage.num_blocks, traffic.block_backward * stage.num_blocks
    if again:
        backward += forward
    if stage.embeds:
        forward, backward = forward + traffic.embedding_forward, backward + traffic.embedding_backward
    if stage.has_head:
        forward, backward = forward + traffic.head_forward, backward + traffic.head_backward
    if stage.boundary is not None and stage.boundary >= 0:
        forward, backward = forward + traffic.advance, backward + traffic.advance_backward
    elif stage.boundary is not None:
        forward, backward = forward + traffic.enter, backward + traffic.enter_backward
    return forward, backward
