"""safetensors files, planned as a whole and written tensor by tensor.

    names, shapes, type ──plan_shards──▶ files, headers, a slot for each tensor
                                             │
    (name, tensor) in any order ──ShardWriter┴─▶ bytes in their slots, a digest of each ──check_written──▶ read back, the same

Contract: whatever the order in which tensors come, the files are byte for byte those that safetensors.torch.save_file writes. No more than
the tensor at hand is in memory. Tensors are read back by the safetensors library, in files that the system no longer caches.

model.safetensors, or model-00001-of-00003.safetensors … with model.safetensors.index.json.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from megamesh.errors import CheckpointError, ConfigError
from megamesh.hf.tensor_files import PretrainedWeights

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DIGEST_BYTES = 16
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many more bytes are done, and how many there are in all."""

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT = 8  # of the data, in bytes


def no_progress(doing: str, num_bytes: int, total_bytes: int) -> None:
    """Shows nothing."""


def parse_size(text: str) -> int:
    """Bytes of a size such as 5GB, 500MB or 2GiB."""
    match = re.fullmatch(r"(\d{1,18}) *([A-Z]*)", text.strip().upper(), re.ASCII)
    if match is None or match[2] not in _UNITS or int(match[1]) == 0:
        raise ConfigError(
            f"{text!r} is not a size; write bytes or a number with KB, MB, GB, KiB, MiB or GiB, such as 5GB"
        )
    return int(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True)
class Slot:
    """Where a tensor's bytes belong."""

    file: str
    offset: int
    num_bytes: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ShardPlan:
    """Files of tensors of one type. `headers` are all bytes of a file before its tensors; `total_bytes` counts tensors alone."""

    dtype: torch.dtype
    headers: dict[str, bytes]
    file_bytes: dict[str, int]
    slots: dict[str, Slot]
    total_bytes: int


def plan_shards(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, max_shard_bytes: int) -> ShardPlan:
    """Divide tensors, in their order, over files of at most `max_shard_bytes` of them (a larger tensor gets one to itself)."""
    sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, num_bytes in sizes.items():
        if shards[-1] and filled + num_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += num_bytes
    headers: dict[str, bytes] = {}
    file_bytes: dict[str, int] = {}
    found: dict[str, Slot] = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        starts, end = {}, 0
        for name in sorted(names):  # as the library does with tensors of one type
            starts[name] = end
            end += sizes[name]
        headers[file] = _header({name: (shapes[name], start, sizes[name]) for name, start in starts.items()}, dtype)
        begin = len(headers[file])
        file_bytes[file] = begin + end
        found |= {name: Slot(file, begin + start, sizes[name], shapes[name]) for name, start in starts.items()}
    return ShardPlan(dtype, headers, file_bytes, {name: found[name] for name in shapes}, sum(sizes.values()))


def _header(tensors: Mapping[str, tuple[tuple[int, ...], int, int]], dtype: torch.dtype) -> bytes:
    """Length and JSON of a file's header, from (shape, start, bytes) by name in the order of the data."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, (shape, start, num_bytes) in tensors.items():
        offsets = [start, start + num_bytes]
        described[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": offsets}
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


class ShardWriter:
    """Writes the files of a plan into a folder. OSError where the disk is full."""

    def __init__(self, folder: Path, plan: ShardPlan):
        self.folder, self.plan = folder, plan
        self.digests: dict[str, bytes] = {}
        for file, header in plan.headers.items():
            (folder / file).write_bytes(header)
            os.truncate(folder / file, plan.file_bytes[file])

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor where it belongs."""
        slot, content = self.plan.slots[name], _content(tensor)
        assert (tuple(tensor.shape), tensor.dtype) == (slot.shape, self.plan.dtype), f"{name} is not as planned"
        self.digests[name] = _digest(content)
        with (self.folder / slot.file).open("r+b") as file:
            file.seek(slot.offset)
            file.write(content)

    def finish(self) -> None:
        """Bring the files to the disk and write their index. CheckpointError where a tensor never came."""
        missing = [name for name in self.plan.slots if name not in self.digests]
        if missing:
            raise CheckpointError(f"{len(missing)} tensors were never written, the first of them {missing[0]}")
        for file in self.plan.headers:
            descriptor = os.open(self.folder / file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                # What is read back comes from the disk, and leaves memory to others.
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
        if SINGLE not in self.plan.headers:
            weight_map = {name: slot.file for name, slot in self.plan.slots.items()}
            index = {"metadata": {"total_size": self.plan.total_bytes}, "weight_map": weight_map}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def check_written(folder: Path, plan: ShardPlan, digests: Mapping[str, bytes], progress: Progress) -> None:
    """Read back every tensor. CheckpointError unless all are there, and bit for bit those that were written."""
    expected = {name: (slot.shape, str(plan.dtype).removeprefix("torch.")) for name, slot in plan.slots.items()}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in PretrainedWeights(folder).stored.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise CheckpointError(f"{name} was written as {expected.get(name)} and reads back as {found.get(name)}")
    for name, slot in plan.slots.items():
        if _digest(_content(mapped_tensor(folder / slot.file, name))) != digests[name]:
            raise CheckpointError(
                f"{name} reads back from {slot.file} with other bits than were written: the disk of {folder.parent.parent} "
                "cannot be trusted; nothing was kept"
            )
        progress("reading back", slot.num_bytes, plan.total_bytes)


def mapped_tensor(file: Path, name: str) -> Tensor:
    """A tensor of a safetensors file whose bytes are those of the file: they are read where they are used."""
    with safe_open(file, framework="pt") as tensors:
        tensor: Tensor = tensors.get_tensor(name)
    return tensor


def _content(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, where they are."""
    # A tensor of one element counts as contiguous with any stride, which a view as bytes would not take.
    flat = tensor.detach().contiguous().as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data


def _digest(content: memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
