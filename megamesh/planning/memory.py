"""What one rank's device would hold, estimated from the configuration alone.

    RunConfig + batch + padded vocabulary ──▶ {weights, gradients, optimizer, buckets, activations, highway, loss, total} in bytes

With b bytes of the precision (2 or 4), P parameters on a tensor rank (exact), dp and tp ranks, T tokens in a micro-batch:

    weights      b·P                          (/dp at ZeRO 3)
    gradients    4·P, accumulated in fp32     (/dp at ZeRO 2, 3)
    optimizer    two moments 8·P, plus fp32 masters 4·P unless the weights themselves are fp32 at stage 0   (/dp at ZeRO 1, 2, 3)
    buckets      what DeepSpeed collects gradients in for their reduction: up to 2 · reduce_bucket_size elements, cut to P each
                 (config/deepspeed.py says which stage holds what)
    activations  what the blocks keep for backward at compute depth, or their inputs and one stretch with checkpointing
    highway      what the scheme keeps and blocks do not (of static, dynamic and mesh: h_emb, the prelude's output and every core's output),
                 and routing weights in fp32
    loss         one chunk of logits (b, and fp32 for the probabilities and their gradient), the gradients of the head's input (b) and
                 weight (fp32)

What tensor parallelism divides:

    P            embedding, head, qkv, attention output, both of the MLP; not norms, routers, position embedding and the biases that are
                 added after a sum
    activations  between heads and between MLP columns always; states between blocks and the norms' outputs with sequence_parallel only
    highway      by tokens, where the scheme divides them, and with sequence_parallel. This rank's part of states that are inputs of blocks
                 at the same time is counted here and not among the activations
    loss         logits and the weight's gradient, by vocabulary

With pipe_parallel_size above 1 see pipeline_memory.py, which uses the parts below.

Not included: the framework, the copies of a bucket that is being sent, NCCL's own buffers, fragmentation, what sequence_parallel gathers
for one layer at a time, the parameters that ZeRO 3 has gathered at one time, copies for torch.compile.
"""

import math
from collections.abc import Callable

from megamesh.config.batch import ResolvedBatch
from megamesh.config.deepspeed import effective_zero_stage, reduction_buckets
from megamesh.config.keys import ModelConfig
from megamesh.config.sections import RunConfig
from megamesh.model.counts import module_of, parameter_shapes
from megamesh.model.recursion.scheme import Kept, describe

BYTES_FP32 = 4
SPLIT_PARAMETERS = (
    ".embedding.weight",
    ".head.weight",
    ".attention.qkv.weight",
    ".attention.qkv.bias",
    ".attention.out.weight",
    ".mlp.up.weight",
    ".mlp.up.bias",
    ".mlp.down.weight",
)
"""Ends of the names of parameters that tensor parallelism divides; every rank holds the others whole."""


def memory_per_rank(run: RunConfig, batch: ResolvedBatch, padded_vocab_size: int) -> dict[str, int]:
    """Estimated bytes of one rank's device, by part and in total. Without a pipeline."""
    parts = {
        **parameter_bytes(run, batch, parameters_per_rank(run, padded_vocab_size)),
        "activations": _activation_bytes(run, batch),
        "highway": _highway_bytes(run, batch),
        "loss": sum(loss_bytes(run, batch, padded_vocab_size)),
    }
    return {**parts, "total": sum(parts.values())}


def parameter_bytes(run: RunConfig, batch: ResolvedBatch, num_parameters: int) -> dict[str, int]:
    """Weights, gradients, optimizer and buckets of so many parameters, on one data-parallel rank."""
    stage, dp = effective_zero_stage(run.optimizer, run.precision), batch.data_parallel_size
    masters = 0 if stage == 0 else BYTES_FP32
    weights = run.precision.bytes_per_value * num_parameters
    gradients = BYTES_FP32 * num_parameters
    optimizer = (masters + 2 * BYTES_FP32) * num_parameters
    on_ring = run.parallel.pipe_parallel_size > 1
    buckets = reduction_buckets(run.optimizer, run.precision, num_parameters, on_ring=on_ring)
    return {
        "weights": weights // dp if stage >= 3 else weights,
        "gradients": gradients // dp if stage >= 2 else gradients,
        "optimizer": optimizer // dp if stage >= 1 else optimizer,
        "buckets": buckets.num_bytes,
    }


def parameters_per_rank(
    run: RunConfig, padded_vocab_size: int, holds: Callable[[str], bool] = lambda module: True
) -> int:
    """Parameters that a tensor rank holds before ZeRO divides anything, rows of padding included.

    `holds` says of a module (core.3, routers, head …) whether the rank has it.
    """
    size = run.parallel.model_parallel_size
    shapes = parameter_shapes(run.model, run.recursion, padded_vocab_size)
    return sum(
        math.prod(shape) // (size if f".{name}".endswith(SPLIT_PARAMETERS) else 1)
        for name, shape in shapes.items()
        if holds(module_of(name))
    )


def _activation_bytes(run: RunConfig, batch: ResolvedBatch) -> int:
    """What backward needs of one micro-batch: all blocks at compute depth, or the kept inputs and the longest stretch."""
    model, training, layout = run.model, run.training, run.recursion.layout
    states, parts = block_elements(model)
    if training.checkpoint_activations:
        if training.checkpoint_activations_per == "loop" and layout is not None:
            stretch, num_kept = max(layout.num_prelude, layout.num_core, layout.num_coda), layout.num_loops + 2
        else:
            stretch = min(training.checkpoint_num_layers, model.num_layers)
            num_kept = -(-model.num_layers // stretch)
        states, parts = num_kept * model.hidden_size + stretch * states, stretch * parts
    else:
        states, parts = model.num_layers * states, model.num_layers * parts
    parts -= _num_shared_states(run) * model.hidden_size
    size = run.parallel.model_parallel_size
    elements = states // (size if run.parallel.sequence_parallel else 1) + parts // size
    return micro_batch_tokens(run, batch) * elements * run.precision.bytes_per_value


def block_elements(model: ModelConfig) -> tuple[int, int]:
    """Elements per token that one block keeps, with fused attention and no dropout: of states, and of heads and MLP columns.

    States: those that it reads, and the norms' outputs. Heads and columns: queries, keys and values (queries and keys again once
    rotated), the attention's output, the MLP before and after its activation (gated: gate and value, the activated gate, their product).
    """
    heads_width, kv_width = model.num_attention_heads * model.head_dim, model.kv_heads * model.head_dim
    states = 1 if model.gpt_j_residual else 2
    norms = 1 if model.gpt_j_residual and model.gpt_j_tied else 2
    rotated = heads_width + kv_width if model.rotary_dim else 0
    mlp = model.mlp_width * (4 if model.gated else 2)
    return (states + norms) * model.hidden_size, 2 * heads_width + 2 * kv_width + rotated + mlp


def _highway_bytes(run: RunConfig, batch: ResolvedBatch) -> int:
    """States of earlier loops, and the weights that route them, of one tensor rank's part of the tokens."""
    tokens, width = highway_tokens(run, batch), run.model.hidden_size * run.precision.bytes_per_value
    return tokens * sum(kept.num_states * width + kept.num_weights * BYTES_FP32 for kept in _kept_beside_blocks(run))


def _num_shared_states(run: RunConfig) -> int:
    """States on the highway that are inputs of blocks too: h_emb, and the prelude's output where the core starts from it."""
    return sum(kept.num_inputs for kept in _kept_beside_blocks(run))


def _kept_beside_blocks(run: RunConfig) -> list[Kept]:
    """What the scheme keeps of a micro-batch and blocks of the same process do not."""
    if run.recursion.layout is None:
        return []
    return [kept for kept in describe(run.recursion).kept() if not kept.in_blocks]


def highway_tokens(run: RunConfig, batch: ResolvedBatch) -> int:
    """Tokens of a micro-batch whose states one tensor rank keeps on the highway."""
    if run.recursion.layout is not None and describe(run.recursion).divides_tokens:
        return micro_batch_tokens(run, batch) // run.parallel.model_parallel_size
    return state_tokens(run, batch)


def loss_bytes(run: RunConfig, batch: ResolvedBatch, padded_vocab_size: int) -> tuple[int, int]:
    """Of one micro-batch: the gradients that wait for backward, and the chunk of logits beside them while they are computed."""
    tokens, width = micro_batch_tokens(run, batch), run.precision.bytes_per_value
    rows = padded_vocab_size // run.parallel.model_parallel_size
    logits = min(run.training.loss_chunk_tokens, tokens) * rows * (width + 2 * BYTES_FP32)
    return run.model.hidden_size * (tokens * width + rows * BYTES_FP32), logits


def micro_batch_tokens(run: RunConfig, batch: ResolvedBatch) -> int:
    """Tokens of one micro-batch."""
    return batch.micro_batch_size * run.model.sequence_length


def state_tokens(run: RunConfig, batch: ResolvedBatch) -> int:
    """Tokens of a micro-batch's states between blocks on one tensor rank."""
    return micro_batch_tokens(run, batch) // (run.parallel.model_parallel_size if run.parallel.sequence_parallel else 1)
