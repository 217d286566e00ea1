"""The dictionary that DeepSpeed is initialised with, from the sections that it concerns.

    precision   ZeRO asked   what DeepSpeed runs
    fp32        0            plain data parallelism
    fp32        1, 2, 3      that stage
    bfloat16    0            stage 1's machinery (said in one line): same numbers, less memory
    bfloat16    1, 2, 3      that stage, with fp32 masters
    fp16        as bfloat16; the engine scales the loss itself, so that DeepSpeed's scale is a constant 1

Gradients accumulate, over micro-batches and over ranks, in fp32 always: sums of 16-bit numbers lose what many ranks add, and in fp16
overflow. DeepSpeed 0.19.8 cannot do that in bfloat16 at stage 0, where it also takes an optimizer step
at construction; so nothing is built on it. AdamW and clipping are the engine's own (the optimizer section), so there is no
`optimizer` block here and DeepSpeed's clipping is off: its norm does not cover every layout.

Buckets, of reduce_bucket_size elements, in which DeepSpeed 0.19.8 collects gradients for their reduction (with contiguous_gradients, the
default):

    what runs                  buckets on every rank, whatever their number        held
    fp32 1, fp16 1             one of fp32, two with overlap_comm                  from the first backward to the reduction at the last
    fp32 2                     one of fp32, two with overlap_comm                  in every backward
    bfloat16 2, fp16 2         one of 16 bits, two with overlap_comm               in every backward
    fp32, bfloat16, fp16 3     one of fp32                                         always
    fp32 0, bfloat16 1         none

A bucket that is larger than all parameters of the rank is never full, and gives the same numbers as one that just holds them: it is cut to
that (`fit_to_rank`). Nothing is held for allgather_bucket_size (weights are gathered in place), nor for stage3_prefetch_bucket_size (a
limit to what is gathered ahead).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megamesh.config.batch import ResolvedBatch
from megamesh.config.checks.optimizer import MAX_ZERO_STAGE, ZERO_KEYS
from megamesh.config.keys import OptimizerConfig, PrecisionConfig

log = logging.getLogger(__name__)

DEFAULT_BUCKET_SIZE = 500_000_000
"""DeepSpeed's own, in elements."""

GRADIENTS_DIVIDED = 2
"""The ZeRO stage that reduces the gradients of every micro-batch, in the precision of the weights."""

NEVER = 10**9
"""Steps between DeepSpeed's own progress lines; ours are written by the training hooks."""


def effective_zero_stage(optimizer: OptimizerConfig, precision: PrecisionConfig) -> int:
    """The ZeRO stage that runs: the one asked for, but at least 1 in 16 bits."""
    return optimizer.zero_stage if precision.precision == "fp32" else max(optimizer.zero_stage, 1)


def deepspeed_config(optimizer: OptimizerConfig, precision: PrecisionConfig, batch: ResolvedBatch) -> dict[str, Any]:
    """DeepSpeed's configuration; keys of the user's zero_optimization block are passed on as they are."""
    stage = effective_zero_stage(optimizer, precision)
    if stage != optimizer.zero_stage:
        log.info("%s with ZeRO %d runs on ZeRO 1: same numbers, less memory", precision.precision, optimizer.zero_stage)
    config: dict[str, Any] = {
        "train_batch_size": batch.train_batch_size,
        "train_micro_batch_size_per_gpu": batch.micro_batch_size,
        "gradient_accumulation_steps": batch.gradient_accumulation_steps,
        "gradient_clipping": 0.0,
        "zero_optimization": _zero_block(optimizer, precision),
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": NEVER,
        "wall_clock_breakdown": False,
    }
    if precision.precision == "bfloat16":
        config["bf16"] = {"enabled": True, "immediate_grad_update": True}
    if precision.precision == "fp16":
        config["fp16"] = {"enabled": True, "loss_scale": 1.0}
    return config


def fit_to_rank(config: Mapping[str, Any], num_parameters: int, *, on_ring: bool) -> dict[str, Any]:
    """The dictionary for a rank with so many parameters: no bucket is larger, and on a pipeline reduction does not overlap backward."""
    return {**config, "zero_optimization": _fitted(config["zero_optimization"], num_parameters, on_ring=on_ring)}


def _zero_block(optimizer: OptimizerConfig, precision: PrecisionConfig) -> dict[str, Any]:
    given = {key: value for key, value in optimizer.zero_optimization.items() if key in ZERO_KEYS and value is not None}
    return {**given, "stage": effective_zero_stage(optimizer, precision)}


def _fitted(zero: Mapping[str, Any], num_parameters: int, *, on_ring: bool) -> dict[str, Any]:
    size = min(int(zero.get("reduce_bucket_size", DEFAULT_BUCKET_SIZE)), num_parameters)
    fitted = {**zero, "reduce_bucket_size": size}
    return {**fitted, "overlap_comm": False} if on_ring and zero.get("overlap_comm") else fitted


@dataclass(frozen=True)
class Buckets:
    """Buffers that DeepSpeed collects gradients in on one rank."""

    count: int
    num_elements: int
    bytes_per_element: int

    @property
    def num_bytes(self) -> int:
        return self.count * self.num_elements * self.bytes_per_element


def reduction_buckets(
    optimizer: OptimizerConfig, precision: PrecisionConfig, num_parameters: int, *, on_ring: bool
) -> Buckets:
    """The buckets of a rank with so many parameters: the table above."""
    zero, name = _fitted(_zero_block(optimizer, precision), num_parameters, on_ring=on_ring), precision.precision
    stage = zero["stage"]
    unbucketed = stage == 0 or (stage == 1 and name == "bfloat16") or not zero.get("contiguous_gradients", True)
    count = 0 if unbucketed else 2 if zero.get("overlap_comm") and stage < MAX_ZERO_STAGE else 1
    return Buckets(count, zero["reduce_bucket_size"], precision.bytes_per_value if stage == GRADIENTS_DIVIDED else 4)
