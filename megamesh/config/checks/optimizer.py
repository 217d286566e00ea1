"""Rules of the optimizer block, ZeRO, the learning-rate schedule and the loss scale."""

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from megamesh.config.other_spellings import IN_PARAMS
from megamesh.config.rule import Given, Rule, rule, show_value

OPTIMIZERS = ("adam", "adamw")
PARAMETERS = ("lr", "betas", "eps")
NUM_BETAS = 2
MAX_ZERO_STAGE = 3
MAX_SCALE_POWER = 64
"""Of initial_scale_power; min_loss_scale is at most 2 to this power."""

MOVED_PARAMETERS = {
    "weight_decay": "write the key weight_decay",
    "max_grad_norm": "write the key gradient_clipping",
    "torch_adam": "the implementation is chosen for the device; remove it",
    "adam_w_mode": "the decay is always decoupled; remove it",
}

_SWITCHES = """
    contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions overlap_comm
    stage3_gather_16bit_weights_on_model_save stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential
    ignore_unused_parameters memory_efficient_linear override_module_apply log_trace_cache_warnings enable_sanity_checks
"""
_SIZES = """
    reduce_bucket_size allgather_bucket_size sub_group_size stage3_prefetch_bucket_size stage3_param_persistence_threshold
    stage3_model_persistence_threshold stage3_max_live_parameters stage3_max_reuse_distance stage3_module_granularity_threshold
"""
ZERO_SWITCHES, ZERO_SIZES = frozenset(_SWITCHES.split()), frozenset(_SIZES.split())
ZERO_LEAST = {"reduce_bucket_size": 1, "allgather_bucket_size": 2}
ZERO_KEYS = ZERO_SWITCHES | ZERO_SIZES | {"stage"}
"""What DeepSpeed's zero_optimization block may hold here: passed on as it is."""

_OFFLOAD = "offloading is not supported: checkpoints read masters and moments on the device"
_OTHER_LAYOUT = "is not supported: checkpoints could not tell which rank holds which piece"

ZERO_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "cpu_offload": ((False,), _OFFLOAD),
    "cpu_offload_params": ((False,), _OFFLOAD),
    "cpu_offload_param": ((False,), _OFFLOAD),
    "cpu_offload_use_pin_memory": ((False,), _OFFLOAD),
    "offload_optimizer": (({"device": "none"},), _OFFLOAD),
    "offload_param": (({"device": "none"},), _OFFLOAD),
    "zenflow": ((), _OFFLOAD),
    "elastic_checkpoint": ((False,), "has no meaning: every checkpoint loads on any number of ranks"),
    "load_from_fp32_weights": ((True,), "has no meaning: checkpoints always hold fp32 weights"),
    "pipeline_loading_checkpoint": ((False,), "has no meaning for MegaMesh's checkpoints"),
    "stage3_gather_fp16_weights_on_model_save": ((False,), "has no meaning for MegaMesh's checkpoints"),
    "legacy_stage1": ((False,), "is DeepSpeed's old implementation; stage 1 is the present one"),
    "round_robin_gradients": ((False,), _OTHER_LAYOUT),
    "parameter_alignment": ((False,), _OTHER_LAYOUT),
    "zero_hpz_partition_size": ((1,), _OTHER_LAYOUT),
    "mics_shard_size": ((-1,), _OTHER_LAYOUT),
    "mics_hierarchical_params_gather": ((False,), _OTHER_LAYOUT),
    "zero_quantized_weights": ((False,), "would change the numbers; it is not supported"),
    "zero_quantized_nontrainable_weights": ((False,), "would change the numbers; it is not supported"),
    "zero_quantized_gradients": ((False,), "would change the numbers; it is not supported"),
    "compute_grad_norm": ((True,), "must stay on: the gradient norm is clipped and logged"),
}
"""ZeRO keys that are accepted (and dropped) at the listed values, with the reason why they are refused at others."""


@rule("optimizer")
def optimizer_is_adam(given: Given) -> Iterator[str]:
    block, place = given.run.optimizer.optimizer, given.places.get("optimizer", "default")
    for key in block.keys() - {"type", "params"}:
        known = "write it in params" if key in PARAMETERS else MOVED_PARAMETERS.get(key)
        mend = known or IN_PARAMS.get(key, "remove it")
        yield f"{place}: optimizer.{key} is not known; {mend}; the block is {{type: AdamW, params: {{lr: …}}}}"
    name = block.get("type", "AdamW")
    if str(name).lower() not in OPTIMIZERS:
        yield f"{place}: optimizer.type={show_value(name)} is not supported; use AdamW (or Adam, which is the same here)"
        return
    params = block.get("params") or {}
    if not isinstance(params, Mapping):
        yield f"{place}: optimizer.params={show_value(params)} is not a block such as {{lr: 1e-3}}"
        return
    for key, value in params.items():
        if problem := _parameter_problem(str(key), value):
            yield f"{place}: optimizer.params.{key}={show_value(value)} {problem}"
    if "lr" not in params:
        yield f"{place}: optimizer.params.lr is missing; write the peak learning rate, such as params: {{lr: 3e-4}}"


def _parameter_problem(key: str, value: Any) -> str | None:
    if key == "lr":
        return None if _is_number(value) and value > 0 else "is not a positive number"
    if key == "eps":
        return None if _is_number(value) and value > 0 else "is not a positive number"
    if key == "betas":
        pair = (
            isinstance(value, list | tuple)
            and len(value) == NUM_BETAS
            and all(_is_number(beta) and 0 <= beta < 1 for beta in value)
        )
        return None if pair else "is not two numbers from 0 up to, not including, 1; write [0.9, 0.95]"
    return f"is not supported; {MOVED_PARAMETERS.get(key) or IN_PARAMS.get(key, 'use lr, betas and eps')}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@rule("optimizer", "min_lr")
def min_lr_is_below_peak(given: Given) -> Iterator[str]:
    params = given.run.optimizer.optimizer.get("params")
    peak = params.get("lr") if isinstance(params, Mapping) else None
    if isinstance(peak, int | float) and given.run.optimizer.min_lr > peak:
        yield f"{given.show('min_lr')} is above the peak learning rate, optimizer.params.lr={peak}; use at most {peak}"


@rule("zero_optimization")
def zero_block_is_supported(given: Given) -> Iterator[str]:
    block, place = given.run.optimizer.zero_optimization, given.places.get("zero_optimization", "default")
    stage = block.get("stage", 0)
    if isinstance(stage, bool) or not isinstance(stage, int) or not 0 <= stage <= MAX_ZERO_STAGE:
        yield f"{place}: zero_optimization.stage={show_value(stage)} is not a ZeRO stage; use 0, 1, 2 or 3"
    for key, value in block.items():
        if key in ZERO_REFUSED:
            accepted, reason = ZERO_REFUSED[key]
            if value is not None and value not in accepted:
                yield f"{place}: zero_optimization.{key}={show_value(value)}: {reason}; remove it"
        elif key not in ZERO_KEYS:
            nearest = difflib.get_close_matches(str(key), ZERO_KEYS, n=1, cutoff=0.7)
            mend = f"did you mean {nearest[0]}?" if nearest else "remove it"
            yield f"{place}: zero_optimization.{key} is not known to MegaMesh; {mend}"
        elif key in ZERO_SWITCHES and not isinstance(value, bool | None):
            yield f"{place}: zero_optimization.{key}={show_value(value)} is not true or false"
        elif key in ZERO_SIZES and not (value is None or (_is_number(value) and value >= 0 and value == int(value))):
            yield f"{place}: zero_optimization.{key}={show_value(value)} is not a whole number of at least {ZERO_LEAST.get(key, 0)}"
        elif key == "reduce_bucket_size" and value == 0:
            yield f"{place}: zero_optimization.{key}=0 holds no gradient; use a whole number of at least 1, or remove it"
        elif key == "allgather_bucket_size" and value is not None and (value == 0 or value % 2):
            yield (
                f"{place}: zero_optimization.{key}={show_value(value)} is not an even number of at least 2, as DeepSpeed needs; "
                f"use {max(int(value) + 1, 2)}, or remove it"
            )


@rule("precision", "loss_scale", "initial_scale_power", "min_loss_scale")
def loss_scale_starts_above_its_minimum(given: Given) -> Iterator[str]:
    precision = given.run.precision
    if (
        precision.precision != "fp16"
        or precision.loss_scale
        or 2**precision.initial_scale_power >= precision.min_loss_scale
    ):
        return
    enough = next(power for power in range(MAX_SCALE_POWER + 1) if 2**power >= precision.min_loss_scale)
    yield (
        f"{given.show('initial_scale_power')} starts the loss scale at {2**precision.initial_scale_power}, below "
        f"{given.show('min_loss_scale')}; use initial_scale_power: {enough}, or a smaller minimum"
    )


OPTIMIZER_RULES: tuple[Rule, ...] = (
    optimizer_is_adam,
    min_lr_is_below_peak,
    zero_block_is_supported,
    loss_scale_starts_above_its_minimum,
)
