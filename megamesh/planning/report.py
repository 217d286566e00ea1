"""A plan as one JSON-able dictionary, and the dictionary as text.

Bytes of a layout are those of its fullest rank, by part as in memory.py; the highway's those of the rank that keeps it; on wires those of
the rank that sends most.
"""

from dataclasses import asdict
from typing import Any

from megamesh.config.sections import RunConfig
from megamesh.model.counts import count_parameters
from megamesh.model.flops import flops_per_token
from megamesh.planning.dry_run_pipeline import partition_text
from megamesh.planning.hardware import Cluster
from megamesh.planning.memory import state_tokens
from megamesh.planning.search import Plan, Ranked, grouped
from megamesh.planning.speed import Speed
from megamesh.planning.step import Step
from megamesh.planning.straight import straight_pipelines
from megamesh.tables import aligned

GIB = 2**30
Rows = list[tuple[str, ...]]


def report_plan(run: RunConfig, plan: Plan, cluster: Cluster, speed: Speed, speed_source: str) -> dict[str, Any]:
    """Everything that a plan says."""
    pipelines = [entry for entry in plan.best if entry.step.layout.pp > 1]
    recursion = run.recursion.recursion
    vocab_size = plan.best[0].step.padded_vocab_size
    return {
        "model": {
            "layers": recursion or str(run.model.num_layers),
            "scheme": run.recursion.recursion_scheme if recursion else None,
            "compute_depth": run.model.num_layers,
            "hidden_size": run.model.hidden_size,
            "sequence_length": run.model.sequence_length,
            "parameters": count_parameters(run.model, run.recursion, vocab_size).total,
            "train_batch_size": run.batch.train_batch_size,
        },
        "cluster": asdict(cluster),
        "seconds_per_sequence": {**asdict(speed), "source": speed_source},
        "num_possible": plan.num_possible,
        "layouts": [_layout(run, entry) for entry in plan.best],
        "ruled_out": grouped(plan.ruled_out),
        "straight": _straight(pipelines[0]) if pipelines else None,
    }


def _layout(run: RunConfig, entry: Ranked) -> dict[str, Any]:
    step, estimate = entry.step, entry.estimate
    layout, fullest = step.layout, step.fullest
    samples = step.batch.train_batch_size
    tokens_per_second = samples * step.run.model.sequence_length / estimate.seconds
    flops = flops_per_token(step.run.model, step.run.recursion, step.padded_vocab_size).training
    return {
        **asdict(layout),
        "seconds_per_step": estimate.seconds,
        "pipeline_seconds": estimate.pipeline_seconds,
        "reduction_seconds": estimate.sync_seconds,
        "idle_share": estimate.idle_share,
        "tokens_per_second": tokens_per_second,
        "tflops_per_gpu": tokens_per_second * flops / step.cluster.num_gpus / 1e12,
        "parameters_per_rank": max(rank.num_parameters for rank in step.memory),
        "memory_bytes": {**fullest.parts, "total": fullest.total},
        "highway_bytes": max(rank.parts["highway"] for rank in step.memory),
        "wire_bytes_per_step": {
            "tensor": round(step.tensor_bytes),
            "pipeline": max(step.pipeline_bytes),
            "data": round(step.data_bytes),
        },
        "pipe_partition_method": partition_text(step.placement.partition) if layout.pp > 1 else None,
        "keys": layout.keys(run),
    }


def _straight(entry: Ranked) -> dict[str, Any] | None:
    step = entry.step
    found = straight_pipelines(step)
    if not found:
        return None
    num_parameters = list(step.placement.num_parameters)
    ring = {
        "num_passes": step.placement.partition.num_passes,
        "num_parameters": num_parameters,
        "num_copied_parameters": 0,
        "tie_bytes": 0,
        "highway_bytes": _ring_highway_bytes(step),
        "pipeline_seconds": entry.estimate.pipeline_seconds,
        "idle_share": entry.estimate.idle_share,
        "tie_seconds": 0.0,
    }
    return {"layout": step.layout.sizes, "ring": ring, "straight": [asdict(pipeline) for pipeline in found]}


def _ring_highway_bytes(step: Step) -> int:
    """h_emb on its way to the last rank, and its gradient back."""
    edges = sum(stage.sends_embeddings for stage in step.placement.partition.stages)
    state = state_tokens(step.run, step.batch) * step.run.model.hidden_size * step.run.precision.bytes_per_value
    return 2 * edges * state * step.layout.num_micro_batches


def describe_plan(report: dict[str, Any]) -> str:
    """The dictionary of `report_plan` as text for a reader."""
    model, cluster, speed = report["model"], report["cluster"], report["seconds_per_sequence"]
    scheme = f" {model['scheme']}" if model["scheme"] else ""
    batch = f"{model['train_batch_size']} × {model['sequence_length']:,} tokens a step"
    gpus = f"{cluster['num_gpus']} GPUs of {cluster['memory_gib']:g} GiB in nodes of {cluster['gpus_per_node']}"
    block = (
        f"{1e3 * speed['block_forward']:.3g} ms forward, {1e3 * speed['block_backward']:.3g} ms backward per sequence"
    )
    head = (
        f"{model['layers']}{scheme}, {model['parameters']:,} parameters, {batch}, on {gpus}\n"
        f"a block: {block}, {speed['source']}"
    )
    best = report["layouts"][0]
    keys = " ".join(f"--set {key}={str(value).lower()}" for key, value in best["keys"].items())
    blocks = [head, _layouts_table(report), f"the first one's keys\n  {keys}"]
    if report["straight"]:
        blocks.append(_straight_table(report["straight"]))
    if report["ruled_out"]:
        blocks.append(_ruled_out_text(report["ruled_out"]))
    return "\n\n".join(blocks)


def _layouts_table(report: dict[str, Any]) -> str:
    rows: Rows = [
        ("", "", "", "", "micro-", "recom-", "million", "GiB on the fullest rank", "", "", "", "", "GiB sent per step", "", "", "", "s per",
         "tokens", "TFLOP/s"),
        ("tp", "pp", "dp", "ZeRO", "batches", "putation", "parameters", "optimizer", "buckets", "activations", "highway", "all", "tp",
         "pp", "dp", "idle", "step", "per s", "per GPU"),
    ]  # fmt: skip
    rows += [_layout_row(layout) for layout in report["layouts"]]
    title = f"{len(report['layouts'])} of {report['num_possible']} possible layouts, fastest first"
    return "\n".join([title, aligned(rows, free=(7, 12), indent="  ")])


def _layout_row(layout: dict[str, Any]) -> tuple[str, ...]:
    memory, wires = layout["memory_bytes"], layout["wire_bytes_per_step"]
    passes = f" ({layout['num_passes']} passes)" if layout["num_passes"] else ""
    return (
        str(layout["tp"]),
        f"{layout['pp']}{passes}",
        str(layout["dp"]),
        str(layout["zero_stage"]),
        f"{layout['num_micro_batches']} × {layout['micro_batch_size']}",
        layout["recompute"],
        f"{layout['parameters_per_rank'] / 1e6:,.1f}",
        f"{memory['optimizer'] / GIB:.2f}",
        f"{memory['buckets'] / GIB:.2f}",
        f"{memory['activations'] / GIB:.2f}",
        f"{layout['highway_bytes'] / GIB:.2f}",
        f"{memory['total'] / GIB:.2f}",
        *(f"{wires[axis] / GIB:.2f}" if wires[axis] else "–" for axis in ("tensor", "pipeline", "data")),
        f"{layout['idle_share']:.1%}",
        f"{layout['seconds_per_step']:.3f}",
        f"{layout['tokens_per_second']:,.0f}",
        f"{layout['tflops_per_gpu']:.0f}",
    )


def _straight_table(straight: dict[str, Any]) -> str:
    tp, pp, dp = straight["layout"]
    rows: Rows = [
        ("", "million parameters", "", "", "MiB sent to", "GiB of states", "", "s per step,"),
        ("", "fullest rank", "all ranks", "copies", "sum copies", "beside h", "idle", "without dp"),
        _straight_row("the ring", straight["ring"]),
    ]
    for pipeline in straight["straight"]:
        passes = pipeline["num_passes"]
        rows.append(
            _straight_row("straight, 1F1B" if passes == 1 else f"straight, {passes} passes interleaved", pipeline)
        )
    title = (
        f"tp {tp} pp {pp} dp {dp} beside straight pipelines of the unrolled model, with copies of the core "
        "(for comparison: MegaMesh does not run them)"
    )
    return "\n".join([title, aligned(rows, free=(1,), indent="  ")])


def _straight_row(name: str, pipeline: dict[str, Any]) -> tuple[str, ...]:
    counts = pipeline["num_parameters"]
    return (
        name,
        f"{max(counts) / 1e6:,.1f}",
        f"{sum(counts) / 1e6:,.1f}",
        f"{pipeline['num_copied_parameters'] / 1e6:,.1f}",
        f"{pipeline['tie_bytes'] / 2**20:,.0f}",
        f"{pipeline['highway_bytes'] / GIB:.2f}",
        f"{pipeline['idle_share']:.1%}",
        f"{pipeline['pipeline_seconds'] + pipeline['tie_seconds']:.3f}",
    )


def _ruled_out_text(ruled_out: dict[str, dict[str, list[str]]]) -> str:
    lines = ["ruled out"]
    for kind, reasons in ruled_out.items():
        for reason, concerned in reasons.items():
            shown = concerned if len(concerned) <= 4 else [*concerned[:3], f"{len(concerned) - 3} more"]
            lines.append(f"  {kind}: {', '.join(shown)}: {reason}")
    return "\n".join(lines)
