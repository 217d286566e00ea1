"""GPT-NeoX's `fp16` and `bf16` blocks → `precision` and the keys of loss scaling.

    fp16: {enabled: true, loss_scale: 0, initial_scale_power: 12}  ──▶  precision: fp16, loss_scale: 0, initial_scale_power: 12
    fp16: {enabled: true, type: bfloat16}, bf16: {enabled: true}   ──▶  precision: bfloat16
    fp16: {enabled: false, …} and nothing else                     ──▶  precision: fp32, which is what NeoX trains in then

A key of loss scaling may stand in the block or beside it; two different values are a contradiction, and the command line has the last
word. In another precision than fp16 these keys have no effect: in a block they are passed over with it, beside it they are named in the
notice of ignored keys.
"""

import difflib
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from megamesh.config.keys import PrecisionConfig
from megamesh.config.rule import show_value
from megamesh.config.yaml_files import COMMAND_LINE, FlatKeys

PRECISION_BLOCKS = ("fp16", "bf16")
LOSS_SCALE_KEYS = tuple(key for key in PrecisionConfig.model_fields if key != "precision")

_SWITCH = (False, True)
_MASTERS = "masters, moments and accumulated gradients are fp32 always; remove it"

OTHER_KEYS: dict[str, tuple[tuple[Any, ...], str]] = {
    "enabled": (_SWITCH, "is not true or false"),
    "type": (("fp16", "bfloat16"), "is not one of fp16, bfloat16"),
    "fp16": (_SWITCH, "is not true or false"),
    "bf16": (_SWITCH, "is not true or false"),
    "auto_cast": (_SWITCH, "is not true or false"),
    "consecutive_hysteresis": ((False,), "is not supported: only a growing scale refills hysteresis; remove it"),
    "fp16_master_weights_and_grads": ((False,), _MASTERS),
    "bf16_master_weights_and_grads": ((False,), _MASTERS),
    "bf16_optimizer_states": ((False,), _MASTERS),
    "immediate_grad_update": (_SWITCH, "is not true or false"),
    "check_grad_overflow": ((True,), "must stay on: a step with non-finite gradients is skipped"),
}
"""What else such a block may hold, at which values, and what is said of others."""


def choose_precision(flat: FlatKeys, overridden: AbstractSet[str]) -> None:
    """Replace the blocks by the keys that they mean; a `precision` among the `overridden` keys supersedes what they ask for."""
    blocks = _take_blocks(flat)
    if "precision" not in overridden:
        _choose(flat, blocks)
    if flat.values.get("precision") == "fp16" and "fp16" in blocks:
        for key in LOSS_SCALE_KEYS:
            _take_loss_scale(flat, key, blocks["fp16"].get(key))


def keys_without_effect(flat: FlatKeys) -> list[str]:
    """Keys of loss scaling that are given and that another precision than fp16 does not use."""
    if flat.values.get("precision") == "fp16":
        return []
    return [key for key in LOSS_SCALE_KEYS if flat.values.get(key) is not None]


def _take_blocks(flat: FlatKeys) -> dict[str, Mapping[str, Any]]:
    """The blocks that are given, out of the flat keys; what is wrong with them becomes a problem."""
    blocks: dict[str, Mapping[str, Any]] = {}
    for name in PRECISION_BLOCKS:
        block = flat.values.pop(name, None)
        if isinstance(block, Mapping):
            problems = [f"{flat.places[name]}: {name}.{problem}" for problem in _block_problems(block)]
            flat.problems += problems
            blocks |= {} if problems else {name: block}
        elif block is not None:
            flat.problems.append(
                f"{flat.places[name]}: {name}={show_value(block)} is not a block such as {{enabled: true}}; "
                "write precision: fp16, bfloat16 or fp32"
            )
    return blocks


def _block_problems(block: Mapping[str, Any]) -> Iterator[str]:
    known = [*LOSS_SCALE_KEYS, *OTHER_KEYS]
    for key, value in block.items():
        if key in OTHER_KEYS:
            accepted, reason = OTHER_KEYS[key]
            if value is not None and not any(type(value) is type(one) and value == one for one in accepted):
                yield f"{key}={show_value(value)} {reason}"
        elif key not in LOSS_SCALE_KEYS:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            yield f"{key} is not a known key; " + (f"did you mean {nearest[0]}?" if nearest else "remove it")


def _choose(flat: FlatKeys, blocks: Mapping[str, Mapping[str, Any]]) -> None:
    """Set `precision` to what the enabled blocks ask for; where that is not what is said elsewhere, it is a problem."""
    for name, block in blocks.items():
        if not block.get("enabled"):
            continue
        wanted = "fp16" if name == "fp16" and block.get("type") != "bfloat16" else "bfloat16"
        if flat.values.get("precision") is None:
            flat.values["precision"], flat.places["precision"] = wanted, flat.places[name]
        elif flat.values["precision"] != wanted:
            _contradiction(flat, name, f"asks for {wanted}")
    off = blocks.get("fp16", {}).get("enabled") is False
    if off and flat.values.get("precision") == "fp16":
        _contradiction(flat, "fp16", "is not enabled")
    elif "fp16" in blocks and flat.values.get("precision") is None:
        flat.values["precision"], flat.places["precision"] = "fp32", flat.places["fp16"]


def _contradiction(flat: FlatKeys, name: str, says: str) -> None:
    flat.problems.append(
        f"{flat.places[name]}: the {name} block {says}, but {flat.places['precision']} says "
        f"precision={flat.values['precision']}; keep one of them"
    )


def _take_loss_scale(flat: FlatKeys, key: str, value: Any) -> None:
    """Take one key out of the fp16 block, where it is not given beside it too."""
    beside = flat.values.get(key)
    if value is None or flat.places.get(key) == COMMAND_LINE:
        return
    if beside is None:
        flat.values[key], flat.places[key] = value, flat.places["fp16"]
    elif beside != value:
        flat.problems.append(
            f"{flat.places['fp16']}: the fp16 block says {key}={show_value(value)}, but {flat.places[key]} says "
            f"{key}={show_value(beside)}; keep one of them"
        )
