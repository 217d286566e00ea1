"""How two checkpoints differ: tensor by tensor, in their configuration, in their YAML files.

    A, B ──same key──▶ bits alike?  else max |a − b|, ‖a − b‖ / ‖b‖       configuration ──key by key──▶ values       YAML ──▶ unified diff

How either was laid out over processes plays no part. Memory: one tensor of each, and one piece.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megamesh.checkpoint.boxes import Index
from megamesh.checkpoint.inspection import SLICE_ELEMENTS, TensorReader, config_files, stored_tensors


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that both checkpoints hold in one shape, with other bits. Sizes are in float64; NaN where either holds one."""

    key: str
    shape: Index
    largest: float  # max |a − b|
    relative: float  # ‖a − b‖ / ‖b‖


@dataclass(frozen=True)
class TensorComparison:
    """What became of every tensor; `different` has the largest relative difference first."""

    identical: list[str]
    different: list[TensorDifference]
    other_shape: list[tuple[str, Index, Index]]
    only_in_a: list[str]
    only_in_b: list[str]

    @property
    def all_identical(self) -> bool:
        return not (self.different or self.other_shape or self.only_in_a or self.only_in_b)


def compare_tensors(
    a: TensorReader,
    b: TensorReader,
    *,
    kinds: Iterable[str] | None = None,
    pattern: str | None = None,
    on_read: Callable[[int], object] = lambda num_bytes: None,
) -> TensorComparison:
    """Compare the tensors of these kinds that fit the pattern (see `stored_tensors`). Raises CheckpointError for damaged files."""
    in_a = {tensor.key: tensor for tensor in stored_tensors(a.metadata, kinds=kinds, pattern=pattern)}
    in_b = {tensor.key: tensor for tensor in stored_tensors(b.metadata, kinds=kinds, pattern=pattern)}
    identical, different, other_shape = [], [], []
    for key, tensor in in_a.items():
        if key not in in_b:
            continue
        if tensor.shape != in_b[key].shape:
            other_shape.append((key, tensor.shape, in_b[key].shape))
            continue
        found = _difference(a.whole(key), b.whole(key))
        if found is None:
            identical.append(key)
        else:
            different.append(TensorDifference(key, tensor.shape, *found))
        on_read(tensor.num_bytes)
    different.sort(key=lambda found: -math.inf if math.isnan(found.relative) else -found.relative)
    return TensorComparison(
        identical,
        different,
        other_shape,
        [key for key in in_a if key not in in_b],
        [key for key in in_b if key not in in_a],
    )


def _difference(a: Tensor, b: Tensor) -> tuple[float, float] | None:
    """Largest absolute and relative difference; None where all bits are alike."""
    if a.dtype == b.dtype and torch.equal(_bits(a), _bits(b)):
        return None
    largest, squares, squares_of_b = [], 0.0, 0.0
    for part_a, part_b in zip(a.view(-1).split(SLICE_ELEMENTS), b.view(-1).split(SLICE_ELEMENTS), strict=True):
        expected = part_b.double()
        error = part_a.double() - expected
        largest.append(error.abs().max())
        squares += error.square().sum().item()
        squares_of_b += expected.square().sum().item()
    norm_of_b = math.sqrt(squares_of_b)
    relative = math.sqrt(squares) / norm_of_b if norm_of_b else math.inf if squares else 0.0
    return torch.stack(largest).max().item(), relative


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


def config_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys of the recorded configurations whose values differ, with both; None where a key is missing."""
    flat_a, flat_b = dict(_flat(a)), dict(_flat(b))
    keys = [*flat_a, *(key for key in flat_b if key not in flat_a)]
    return {key: (flat_a.get(key), flat_b.get(key)) for key in keys if flat_a.get(key) != flat_b.get(key)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def yaml_differences(a: Path, b: Path) -> dict[str, list[str]]:
    """Lines of a unified diff of each YAML file that differs, or that one checkpoint alone has."""
    texts_a, texts_b = config_files(a), config_files(b)
    found = {}
    for name in sorted({*texts_a, *texts_b}):
        lines_a, lines_b = texts_a.get(name, "").splitlines(), texts_b.get(name, "").splitlines()
        diff = list(difflib.unified_diff(lines_a, lines_b, f"A/{name}", f"B/{name}", lineterm="", n=1))
        if diff or (name in texts_a) != (name in texts_b):
            found[name] = diff
    return found
