"""What a run would be, from its configuration alone: no process group, no device, no data, no DeepSpeed.

    RunConfig + world size ──▶ vocabulary ──▶ parameters, FLOPs, batch, memory, DeepSpeed dict ──▶ one JSON-able dict ──▶ text

Parameters, FLOPs and batch arithmetic are exact; the memory is an estimate (see `memory_per_rank`).
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from megamesh.config.batch import ResolvedBatch, data_parallel_size, resolve_batch
from megamesh.config.deepspeed import deepspeed_config, effective_zero_stage
from megamesh.config.load import LoadedConfig
from megamesh.config.recursion import parse_scheme
from megamesh.config.sections import ModelConfig, RunConfig
from megamesh.config.yaml_files import yaml_text
from megamesh.model.counts import ParameterCounts, count_parameters
from megamesh.model.flops import flops_per_token
from megamesh.training.vocabulary import vocabulary_size

BYTES_FP32 = 4


def dry_run(loaded: LoadedConfig, world_size: int = 1) -> dict[str, Any]:
    """Everything that can be known before a run starts; raises ConfigError (batch, layout) or DataError (tokenizer)."""
    run = loaded.run
    model = run.model
    dp = data_parallel_size(run.parallel, world_size)
    batch = resolve_batch(run.batch, dp)
    vocab_size = _vocab_size(run)
    padded = model.padded_vocab_size(vocab_size, run.parallel.model_parallel_size)
    counts = count_parameters(model, run.recursion, padded)
    flops = flops_per_token(model, run.recursion, padded)
    return {
        "settings": run.model_dump(),
        "resolved": _resolved(run, vocab_size, padded),
        "parameters": {"total": counts.total, "non_embedding": counts.non_embedding, **asdict(counts)},
        "flops_per_token": {"forward": flops.forward, "training": flops.training, "parts_forward": asdict(flops)},
        "batch": _batch(run, batch),
        "memory_bytes_per_rank": memory_per_rank(run, counts, batch, padded),
        "deepspeed": deepspeed_config(run.optimizer, run.precision, batch),
        "ignored_keys": loaded.ignored_keys,
        "missing": loaded.missing,
    }


def _vocab_size(run: RunConfig) -> int:
    """The unpadded vocabulary, as training will find it; a tokenizer that is not there yet is not needed beside vocab_size."""
    vocab_file = run.tokenizer.vocab_file
    if run.model.vocab_size is not None and not (vocab_file and Path(vocab_file).exists()):
        return run.model.vocab_size
    return vocabulary_size(run.model, run.tokenizer)


def memory_per_rank(run: RunConfig, counts: ParameterCounts, batch: ResolvedBatch, vocab_size: int) -> dict[str, int]:
    """Estimated bytes of one rank's device: P parameters, dp data-parallel ranks, b bytes of the precision (2 or 4).

    weights      b·P                          (/dp at ZeRO 3)
    gradients    4·P, accumulated in fp32     (/dp at ZeRO 2, 3)
    optimizer    two moments 8·P, plus fp32 masters 4·P unless the weights themselves are fp32 at stage 0   (/dp at ZeRO 1, 2, 3)
    activations  what the blocks keep for backward at compute depth, or their inputs and one stretch with checkpointing
    loss         one chunk of logits: b, and fp32 for the probabilities and their gradient

    Not included: the framework, communication buffers, fragmentation, the parameters that ZeRO 3 has gathered at one time.
    """
    stage, dp = effective_zero_stage(run.optimizer, run.precision), batch.data_parallel_size
    width = _precision_bytes(run)
    masters = 0 if stage == 0 else BYTES_FP32
    weights, gradients, optimizer = (
        width * counts.total,
        BYTES_FP32 * counts.total,
        (masters + 2 * BYTES_FP32) * counts.total,
    )
    parts = {
        "weights": weights // dp if stage >= 3 else weights,
        "gradients": gradients // dp if stage >= 2 else gradients,
        "optimizer": optimizer // dp if stage >= 1 else optimizer,
        "activations": _activation_bytes(run, batch),
        "loss": min(run.training.loss_chunk_tokens, _tokens(run, batch)) * vocab_size * (width + 2 * BYTES_FP32),
    }
    return {**parts, "total": sum(parts.values())}


def _activation_bytes(run: RunConfig, batch: ResolvedBatch) -> int:
    """What backward needs of one micro-batch: all blocks at compute depth, or the kept inputs and the longest stretch."""
    model, training, layout = run.model, run.training, run.recursion.layout
    elements = model.num_layers * _block_elements(model)
    if training.checkpoint_activations:
        if training.checkpoint_activations_per == "loop" and layout is not None:
            stretch, num_kept = max(layout.num_prelude, layout.num_core, layout.num_coda), layout.num_loops + 2
        else:
            stretch = min(training.checkpoint_num_layers, model.num_layers)
            num_kept = -(-model.num_layers // stretch)
        elements = num_kept * model.hidden_size + stretch * _block_elements(model)
    routing = 0
    if layout is not None and parse_scheme(run.recursion.recursion_scheme) == ("mesh",):
        routing = (layout.num_loops + 1) * 2 * run.recursion.num_slots * BYTES_FP32
    return _tokens(run, batch) * (elements * _precision_bytes(run) + routing)


def _block_elements(model: ModelConfig) -> int:
    """Elements per token that one block keeps, with fused attention and no dropout.

    The states it reads, the norms' outputs, queries, keys and values (queries and keys again once rotated), the attention's output,
    the MLP before and after its activation (gated: gate and value, the activated gate, their product).
    """
    heads_width, kv_width = model.num_attention_heads * model.head_dim, model.kv_heads * model.head_dim
    states = 1 if model.gpt_j_residual else 2
    norms = 1 if model.gpt_j_residual and model.gpt_j_tied else 2
    rotated = heads_width + kv_width if model.rotary_dim else 0
    mlp = model.mlp_width * (4 if model.gated else 2)
    return (states + norms) * model.hidden_size + 2 * heads_width + 2 * kv_width + rotated + mlp


def _precision_bytes(run: RunConfig) -> int:
    return 2 if run.precision.precision == "bfloat16" else BYTES_FP32


def _tokens(run: RunConfig, batch: ResolvedBatch) -> int:
    """Tokens of one micro-batch."""
    return batch.micro_batch_size * run.model.sequence_length


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


def _resolved(run: RunConfig, vocab_size: int, padded: int) -> dict[str, Any]:
    """What the settings leave to be worked out."""
    model, layout = run.model, run.recursion.layout
    resolved: dict[str, Any] = {
        "sequence_length": model.sequence_length,
        "kv_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "rotary_dim": model.rotary_dim,
        "mlp_width": model.mlp_width,
        "vocab_size": vocab_size,
        "padded_vocab_size": padded,
        "zero_stage": effective_zero_stage(run.optimizer, run.precision),
        "lr_decay_iters": run.optimizer.lr_decay_iters or run.training.train_iters,
        "load": run.checkpoint.load or run.checkpoint.save,
    }
    if layout is not None:
        terms = parse_scheme(run.recursion.recursion_scheme)
        resolved |= {
            "layers": str(layout),
            "compute_depth": layout.compute_depth,
            "scheme": "+".join(terms),
        }
        resolved |= {"num_slots": run.recursion.num_slots} if terms == ("mesh",) else {}
    return resolved


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
    memory = report["memory_bytes_per_rank"]
    blocks.append(
        _block("memory per rank, estimated", {key: f"{value / 2**30:>10.3f} GiB" for key, value in memory.items()})
    )
    blocks.append(_block("DeepSpeed", _as_yaml(report["deepspeed"])))
    if report["ignored_keys"]:
        blocks.append("GPT-NeoX keys without meaning here\n  " + ", ".join(report["ignored_keys"]))
    if report["missing"]:
        blocks.append("not enough for a training run\n" + "\n".join(f"  {line}" for line in report["missing"]))
    return "\n\n".join(blocks)


def _as_yaml(keys: dict[str, Any]) -> dict[str, str]:
    return {key: yaml_text(value) for key, value in keys.items()}


def _block(title: str, lines: dict[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join([title, *(f"  {key:<{width}}  {text}" for key, text in lines.items())])
