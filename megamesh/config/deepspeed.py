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
"""

import logging
from typing import Any

from megamesh.config.batch import ResolvedBatch
from megamesh.config.checks.optimizer import ZERO_KEYS
from megamesh.config.keys import OptimizerConfig, PrecisionConfig

log = logging.getLogger(__name__)

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
    zero = {key: value for key, value in optimizer.zero_optimization.items() if key in ZERO_KEYS and value is not None}
    config: dict[str, Any] = {
        "train_batch_size": batch.train_batch_size,
        "train_micro_batch_size_per_gpu": batch.micro_batch_size,
        "gradient_accumulation_steps": batch.gradient_accumulation_steps,
        "gradient_clipping": 0.0,
        "zero_optimization": {**zero, "stage": stage},
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
