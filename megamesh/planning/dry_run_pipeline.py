"""The pipeline's part of a dry run: who holds what, what is sent, how much time is idle.

    RunConfig + batch + padded vocabulary ──▶ Partition ──▶ {stages, parameters, memory, bytes sent, bubble} ──▶ text

Layers, parameters and bytes sent are exact; memory and bubble are estimates. The bubble's unit of time is the FLOP: only ratios count.
"""

from dataclasses import dataclass
from typing import Any

from megamesh.config.batch import ResolvedBatch
from megamesh.config.keys import ParallelConfig
from megamesh.config.sections import RunConfig
from megamesh.pipeline.checks import check_micro_batches
from megamesh.pipeline.in_flight import most_in_flight
from megamesh.pipeline.order import training_order
from megamesh.pipeline.partition import build_partition, forward_costs
from megamesh.pipeline.simulator import simulate_step
from megamesh.pipeline.stages import Partition, Stage
from megamesh.pipeline.traffic import p2p_bytes_per_step
from megamesh.planning.memory import state_tokens
from megamesh.planning.pipeline_memory import RankMemory, memory_of_ranks


@dataclass(frozen=True)
class PipelineReport:
    """What a dry run says of a pipeline: `table` for its reader, `ranks` for its memory."""

    table: dict[str, Any]
    ranks: list[RankMemory]

    @property
    def fullest(self) -> RankMemory:
        """The rank that needs the most memory."""
        return max(self.ranks, key=lambda rank: rank.total)


def report_pipeline(run: RunConfig, batch: ResolvedBatch, padded_vocab_size: int) -> PipelineReport:
    """Everything about the pipeline axis; ConfigError where the schedule has no order for so many micro-batches."""
    parallel, num_micro_batches = run.parallel, batch.gradient_accumulation_steps
    partition = build_partition(run.model, run.recursion, parallel, padded_vocab_size)
    check_micro_batches(parallel, partition.num_passes, num_micro_batches, batch.samples_per_step(run.batch))
    ranks = memory_of_ranks(run, batch, padded_vocab_size, partition, num_micro_batches)
    sent = p2p_bytes_per_step(
        partition,
        state_tokens(run, batch),
        run.model.hidden_size,
        run.precision.bytes_per_value,
        num_micro_batches,
    )
    timeline = simulate_step(
        partition,
        forward_costs(run.model, run.recursion, padded_vocab_size),
        num_micro_batches,
        schedule=parallel.pipe_schedule,
        backward_ratio=3.0 if run.training.checkpoint_activations else 2.0,
    )
    table = {
        "schedule": parallel.pipe_schedule,
        "num_passes": partition.num_passes,
        "num_micro_batches": num_micro_batches,
        "partition": partition_text(partition),
        "stages": [_stage(stage) for stage in partition.stages],
        "ranks": [
            {
                "parameters": memory.num_parameters,
                "memory_bytes": memory.total,
                "most_in_flight": in_flight,
                "sent_bytes_per_step": num_bytes,
                "idle_share": round(idle_share, 4),
            }
            for memory, in_flight, num_bytes, idle_share in zip(
                ranks, _in_flight(parallel, partition, num_micro_batches), sent, timeline.idle_shares, strict=True
            )
        ],
        "idle_share": round(timeline.idle_share, 4),
    }
    return PipelineReport(table, ranks)


def _in_flight(parallel: ParallelConfig, partition: Partition, num_micro_batches: int) -> list[int]:
    """Most forwards that wait for their backward at one time, of all stages of every rank."""
    order = training_order(parallel.pipe_schedule, partition.num_ranks, partition.num_passes, num_micro_batches)
    return [
        most_in_flight(actions, {stage.index for stage in partition.of_rank(rank)})
        for rank, actions in enumerate(order)
    ]


def partition_text(partition: Partition) -> str:
    """Layers per pass and rank as pipe_partition_method takes them: 1,3+4,4+3,1."""
    passes = [partition.stages[first : first + partition.num_ranks] for first in _first_stages(partition)]
    return "+".join(",".join(str(stage.num_blocks) for stage in stages) for stages in passes)


def _first_stages(partition: Partition) -> list[int]:
    """The first stage of every part that is cut: of all loops, the first."""
    firsts = [stage for stage in partition.of_rank(0) if not (stage.has_head and partition.stages[-1].after_head)]
    loops = [stage.index for stage in firsts if stage.stack == "core"][1:]
    return [stage.index for stage in firsts if stage.index not in loops]


def _stage(stage: Stage) -> dict[str, Any]:
    return {
        "pass": stage.pass_index,
        "rank": stage.rank,
        "stack": stage.stack,
        "first_layer": stage.first_block,
        "num_layers": stage.num_blocks,
        "holds": _modules(stage),
    }


def _modules(stage: Stage) -> list[str]:
    """What a stage runs beside layers."""
    boundary = stage.boundary is not None
    found = {"embedding": stage.embeds, "loop boundary": boundary, "head": stage.has_head}
    return [name for name, present in found.items() if present]


def describe_pipeline(table: dict[str, Any]) -> list[str]:
    """The table as lines of text: one per pass, then one per figure, a column per rank."""
    stages, ranks = table["stages"], table["ranks"]
    rows: list[tuple[str, ...]] = [("pass", *(f"rank {rank}" for rank in range(len(ranks))))]
    for first in range(0, len(stages), len(ranks)):
        of_pass = stages[first : first + len(ranks)]
        rows.append((_pass_name(of_pass[0]), *map(_cell, of_pass)))
    rows.append(("parameters", *(f"{rank['parameters']:,}" for rank in ranks)))
    rows.append(("memory, GiB", *(f"{rank['memory_bytes'] / 2**30:.3f}" for rank in ranks)))
    rows.append(("stages in flight", *(f"{rank['most_in_flight']}" for rank in ranks)))
    rows.append(("sent per step, MiB", *(f"{rank['sent_bytes_per_step'] / 2**20:,.1f}" for rank in ranks)))
    rows.append(("idle", *(f"{rank['idle_share']:.1%}" for rank in ranks)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _pass_name(stage: dict[str, Any]) -> str:
    return f"{stage['pass']} {stage['stack']}"


def _cell(stage: dict[str, Any]) -> str:
    first, count = stage["first_layer"], stage["num_layers"]
    layers = [] if count == 0 else [f"{first}"] if count == 1 else [f"{first}–{first + count - 1}"]
    return ", ".join([*layers, *stage["holds"]]) or "–"
