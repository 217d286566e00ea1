"""How much memory an export takes, known before it begins.

    one parameter: whole, read from the checkpoint's chunks, converted ─┐
    the comparison: our model, then theirs, whole or a sample of them ──┴▶ the larger of the two

Tensors are counted, pages of mapped files among them, with a little for activations; the interpreter and its libraries come on top.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch

from megamesh.checkpoint.boxes import MAX_CHUNK_BYTES
from megamesh.config.keys import ModelConfig
from megamesh.hf.exporting.compare import COMPARED_LENGTH, COMPARED_SEQUENCES
from megamesh.hf.exporting.sample import sample_layers
from megamesh.hf.exporting.source import ModelSource
from megamesh.hf.memory import available_bytes
from megamesh.hf.names import Entry
from megamesh.model.counts import Shape

log = logging.getLogger(__name__)
Check = Literal["logits", "layers"]
FP32_BYTES = torch.float32.itemsize


def choose_check(source: ModelSource, table: Mapping[str, Entry], dtype: torch.dtype) -> Check:
    """`logits` where what that takes is available, else `layers`."""
    needed, available = memory_bound(source, table, dtype, "logits") / 1e9, available_bytes() / 1e9
    if needed <= available:
        log.info("checking logits of the whole model: that takes %.1f GB of the %.1f GB available", needed, available)
        return "logits"
    log.info(
        "checking a sample of layers: the whole model would take %.1f GB, %.1f GB are available", needed, available
    )
    return "layers"


def memory_bound(source: ModelSource, table: Mapping[str, Entry], dtype: torch.dtype, check: Check) -> int:
    """Most bytes of tensors that exist at a time during an export with this check."""
    writing = max(max(_reading(shape), held_bytes(table[name], shape, dtype)) for name, shape in source.shapes.items())
    return max(writing, _comparing(source, table, dtype, check))


def _comparing(source: ModelSource, table: Mapping[str, Entry], dtype: torch.dtype, check: Check) -> int:
    model, names, shapes, num_rows = source.model, list(source.shapes), list(source.shapes.values()), source.vocab_size
    if check == "layers":
        sample = sample_layers(source.model, source.recursion, source.vocab_size)
        model, names, shapes, num_rows = (
            sample.model,
            list(sample.names),
            list(sample.shapes.values()),
            len(sample.rows),
        )
    ours = _bytes(shapes) + max(
        max(_reading(source.shapes[name]), _bytes([source.shapes[name]]) + _rounding(table[name], shape, dtype))
        for name, shape in zip(names, shapes, strict=True)
    )
    # As stored, and once more where that is not fp32. What ours had goes back to the allocator, but not always to the machine.
    stored = _bytes(shapes) * dtype.itemsize // FP32_BYTES
    theirs = _bytes(shapes) + stored + (0 if dtype == torch.float32 else _bytes(shapes))
    return max(ours, theirs) + _activations(model, num_rows)


def held_bytes(entry: Entry, shape: Shape, dtype: torch.dtype) -> int:
    """Most bytes of tensors that exist while `export_tensors` converts one fp32 parameter."""
    whole = torch.empty(shape, device="meta")
    parts = entry.transform.split(whole)
    copied = sum(part.nbytes for part in parts if part is not whole and part._base is not whole)
    rounded = max(part.numel() for part in parts) * dtype.itemsize if dtype != whole.dtype else 0
    return whole.nbytes + copied + rounded


def _reading(shape: Shape) -> int:
    """A parameter and a chunk of it, the latter as bytes and as a tensor."""
    whole = _bytes([shape])
    return whole + 2 * min(whole, MAX_CHUNK_BYTES)


def _rounding(entry: Entry, shape: Shape, dtype: torch.dtype) -> int:
    """What `as_exported` makes of a parameter."""
    exact = dtype == torch.float32 and entry.transform.factor == 1
    return 0 if exact else 2 * _bytes([shape])


def _activations(model: ModelConfig, num_rows: int) -> int:
    """Of one forward pass without gradients, generously."""
    num_tokens = COMPARED_SEQUENCES * COMPARED_LENGTH
    widths = 4 * num_rows + 4 * model.mlp_width + 32 * model.hidden_size
    scores = 4 * model.num_attention_heads * COMPARED_LENGTH
    return num_tokens * (widths + scores) * FP32_BYTES


def _bytes(shapes: Iterable[Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes) * FP32_BYTES
