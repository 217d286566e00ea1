"""What a run would be, from its configuration alone: no process group, no device, no data, no DeepSpeed.

    RunConfig + world size ──▶ vocabulary ──▶ parameters, FLOPs, batch, memory, DeepSpeed dict ──▶ one JSON-able dict ──▶ text

Parameters, FLOPs and batch arithmetic are exact and those of the whole model; the memory is an estimate for one rank (memory.py), on a
pipeline for the fullest one (dry_run_pipeline.py).
"""

from dataclasses import asdict
from typing import Any

from megamesh.config.batch import ResolvedBatch, data_parallel_size, model_ranks, resolve_batch
from megamesh.config.deepspeed import deepspeed_config, effective_zero_stage, fit_to_rank
from megamesh.config.keys import ParallelConfig
from megamesh.config.load import LoadedConfig
from megamesh.config.resolved import resolved_optimizer, resolved_schedule
from megamesh.config.sections import RunConfig
from megamesh.config.tensor_parallel import padded_vocabulary
from megamesh.config.yaml_files import yaml_text
from megamesh.model.counts import count_parameters
from megamesh.model.flops import flops_per_token
from megamesh.model.recursion.scheme import describe as describe_scheme
from megamesh.planning.memory import memory_per_rank, parameters_per_rank
from megamesh.training.vocabulary import known_vocabulary_size

STATE_BYTES_PER_PARAMETER = 12
"""Of a checkpoint: master and two moments in fp32."""


def dry_run(loaded: LoadedConfig, world_size: int | None = None) -> dict[str, Any]:
    """Everything that can be known before a run starts; raises ConfigError (batch, layout) or DataError (tokenizer).

    `world_size` is the number of processes; by default as many as hold one copy of the model.
    """
    run = loaded.run
    model = run.model
    world_size = world_size or model_ranks(run.parallel)
    batch = resolve_batch(run.batch, data_parallel_size(run.parallel, world_size))
    vocab_size = known_vocabulary_size(model, run.tokenizer)
    padded = padded_vocabulary(run, vocab_size)
    if run.training.hooks:  # late: what hooks are made of takes seconds to import
        from megamesh.training.hooks.user import load_hooks

        load_hooks(run.training.hooks)
    counts = count_parameters(model, run.recursion, padded)
    flops = flops_per_token(model, run.recursion, padded)
    pipeline, num_parameters, memory = _per_rank(run, batch, padded)
    resolved = {**_resolved(run, batch, vocab_size, padded), "parameters_per_rank": num_parameters}
    if run.checkpoint.async_save:
        saved = STATE_BYTES_PER_PARAMETER * num_parameters / batch.data_parallel_size
        resolved["async_save_host_gib_per_process"] = round(saved / 2**30, 3)
    return {
        "settings": run.model_dump(),
        "resolved": resolved,
        "parameters": {"total": counts.total, "non_embedding": counts.non_embedding, **asdict(counts)},
        "flops_per_token": {"forward": flops.forward, "training": flops.training, "parts_forward": asdict(flops)},
        "batch": _batch(run, batch),
        "memory_bytes_per_rank": memory,
        "pipeline": pipeline,
        "deepspeed": fit_to_rank(
            deepspeed_config(run.optimizer, run.precision, batch),
            num_parameters,
            on_ring=run.parallel.pipe_parallel_size > 1,
        ),
        "ignored_keys": loaded.ignored_keys,
        "missing": loaded.missing,
    }


def _per_rank(run: RunConfig, batch: ResolvedBatch, padded: int) -> tuple[dict[str, Any] | None, int, dict[str, int]]:
    """The pipeline's report where there is one; parameters, and memory by part, of the fullest rank."""
    if run.parallel.pipe_parallel_size < 2:
        return None, parameters_per_rank(run, padded), memory_per_rank(run, batch, padded)
    # Imported late: torch's schedules are slow to load, and only a pipeline needs them.
    from megamesh.planning.dry_run_pipeline import report_pipeline

    report = report_pipeline(run, batch, padded)
    return report.table, report.fullest.num_parameters, report.fullest.report()


def _batch(run: RunConfig, batch: ResolvedBatch) -> dict[str, int | None]:
    tokens_per_step = batch.train_batch_size * run.model.sequence_length
    steps = run.training.train_iters
    return {
        **asdict(batch),
        "sequence_length": run.model.sequence_length,
        "tokens_per_step": tokens_per_step,
        "train_iters": steps,
        "tokens_total": None if steps is None else steps * tokens_per_step,
    }


def _resolved(run: RunConfig, batch: ResolvedBatch, vocab_size: int, padded: int) -> dict[str, Any]:
    """What the settings leave to be worked out."""
    model, layout = run.model, run.recursion.layout
    resolved: dict[str, Any] = {
        "ranks": _ranks(run.parallel, batch),
        "sequence_length": model.sequence_length,
        "kv_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "rotary_dim": model.rotary_dim,
        "mlp_width": model.mlp_width,
        "vocab_size": vocab_size,
        "padded_vocab_size": padded,
        "zero_stage": effective_zero_stage(run.optimizer, run.precision),
        "optimizer": resolved_optimizer(run.optimizer),
        "schedule": resolved_schedule(run.optimizer, run.training.train_iters),
        "lr_decay_iters": run.optimizer.lr_decay_iters or run.training.train_iters,
        "load": run.checkpoint.load or run.checkpoint.save,
    }
    if layout is not None:
        scheme = describe_scheme(run.recursion)
        resolved |= {
            "layers": str(layout),
            "compute_depth": layout.compute_depth,
            "scheme": "+".join(scheme.terms),
        } | scheme.resolved()
    return resolved


def _ranks(parallel: ParallelConfig, batch: ResolvedBatch) -> str:
    """`8 = 4 data × 2 tensor with sequence_parallel`: which processes share what."""
    total = batch.data_parallel_size * model_ranks(parallel)
    axes = [f"{batch.data_parallel_size} data"]
    if parallel.pipe_parallel_size > 1:
        axes.insert(0, f"{parallel.pipe_parallel_size} pipeline")
    if parallel.model_parallel_size > 1:
        axes.append(f"{parallel.model_parallel_size} tensor")
    return f"{total} = {' × '.join(axes)}" + (" with sequence_parallel" if parallel.sequence_parallel else "")


def describe(report: dict[str, Any]) -> str:
    """The dictionary of `dry_run` as text for a reader."""
    sections = {
        name: {key: value for key, value in keys.items() if value is not None}
        for name, keys in report["settings"].items()
    }
    blocks = [_block(f"settings: {name}", _as_yaml(keys)) for name, keys in sections.items() if keys]
    blocks.append(_block("resolved", _as_yaml(report["resolved"])))
    parameters = report["parameters"]
    blocks.append(_block("parameters", {key: f"{value:>16,}" for key, value in parameters.items() if value}))
    flops = report["flops_per_token"]
    parts = {f"forward: {key}": value for key, value in flops["parts_forward"].items() if value}
    blocks.append(
        _block(
            "FLOPs per token, at compute depth",
            {
                key: f"{value:>20,}"
                for key, value in ({"training": flops["training"], "forward": flops["forward"]} | parts).items()
            },
        )
    )
    blocks.append(_block("batch", {key: f"{value:,}" for key, value in report["batch"].items() if value is not None}))
    memory, pipeline = report["memory_bytes_per_rank"], report["pipeline"]
    blocks.append(
        _block(
            "memory of the fullest rank, estimated" if pipeline else "memory per rank, estimated",
            {key: f"{value / 2**30:>10.3f} GiB" for key, value in memory.items() if value},
        )
    )
    if pipeline:
        blocks.append(_describe_pipeline(pipeline))
    blocks.append(_block("DeepSpeed", _as_yaml(report["deepspeed"])))
    if report["ignored_keys"]:
        blocks.append("GPT-NeoX keys without meaning here\n  " + ", ".join(report["ignored_keys"]))
    if report["missing"]:
        blocks.append("not enough for a training run\n" + "\n".join(f"  {line}" for line in report["missing"]))
    return "\n\n".join(blocks)


def _describe_pipeline(pipeline: dict[str, Any]) -> str:
    from megamesh.planning.dry_run_pipeline import describe_pipeline

    head = (
        f"pipeline: {pipeline['schedule']}, {pipeline['num_passes']} passes of {pipeline['num_micro_batches']} micro-batches, "
        f"{pipeline['idle_share']:.1%} idle by FLOPs; pipe_partition_method: {pipeline['partition']}"
    )
    return "\n".join([head, *describe_pipeline(pipeline)])


def _as_yaml(keys: dict[str, Any]) -> dict[str, str]:
    return {key: yaml_text(value) for key, value in keys.items()}


def _block(title: str, lines: dict[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join([title, *(f"  {key:<{width}}  {text}" for key, text in lines.items())])
