"""The tensors of a transformers folder, read one by one: safetensors or torch's .bin, one file or shards with an index.

    folder ──PretrainedWeights──▶ stored: name ──▶ file, shape, type (headers only)
                                  read(name) ──▶ tensor, in memory of its own

Of two formats safetensors is taken, of two ways to divide it the single file, as transformers does. A file is open only while it is being
read: the pages of an open one stay in memory, in the end all of them. .bin files are unpickled without running any code of theirs.
"""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megamesh.errors import CheckpointError

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_SAFETENSORS_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is, and what its file's header says of it; `dtype` is spelled as torch does, where torch knows it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class PretrainedWeights:
    """All tensors in the weight files of a transformers folder, by name. Raises CheckpointError for a missing or damaged file."""

    def __init__(self, folder: Path):
        self.stored: dict[str, StoredTensor] = {}
        for file, expected in _weight_files(folder).items():
            found = dict(_contents(file))
            lost = sorted(expected - found.keys())
            if lost:
                raise CheckpointError(f"{file} lacks {lost[0]}, which the index beside it expects there")
            for name, tensor in found.items():
                if name in self.stored:
                    raise CheckpointError(f"{name} is both in {self.stored[name].file} and in {file}; remove one")
                self.stored[name] = tensor

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def read(self, name: str) -> Tensor:
        """One tensor in the type it is stored in. KeyError where there is none of this name, CheckpointError for a damaged file."""
        file = self.stored[name].file
        if file.suffix == ".bin":
            found = _unpickled(file)[name]
            return found.detach().clone()  # out of the mapped file
        with _opened(file) as tensors:
            tensor: Tensor = tensors.get_tensor(name).clone()
        return tensor


def _weight_files(folder: Path) -> dict[Path, set[str]]:
    """The files to read, and the names that an index expects in each."""
    for single in SINGLE_FILES:
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return {folder / single: set()}
        if index.is_file():
            return _sharded(index)
    looked_for = ", ".join((*SINGLE_FILES, *(f"{single}.index.json" for single in SINGLE_FILES)))
    raise CheckpointError(f"{folder} holds no weights (none of {looked_for}); name a folder that save_pretrained wrote")


def _sharded(index: Path) -> dict[Path, set[str]]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files: dict[Path, set[str]] = {}
        for name, file in weight_map.items():
            files.setdefault(index.parent / file, set()).add(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index} is damaged: it does not say which file holds which tensor ({error!r})"
        ) from error
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, although {index.name} names it; fetch the folder again")
    return files


def _contents(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    if file.suffix == ".bin":
        for name, tensor in _unpickled(file).items():
            yield name, StoredTensor(file, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        return
    with _opened(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a dictionary
            part = tensors.get_slice(name)
            dtype = str(part.get_dtype())
            yield name, StoredTensor(file, tuple(part.get_shape()), _SAFETENSORS_TYPES.get(dtype, dtype))


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}; fetch it again") from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    """The state dict of a .bin file; its tensors are views of the mapped file."""
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is truncated, or in the format of torch before 1.6")
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many kinds
        raise CheckpointError(
            f"{file} cannot be read: {error}; fetch it again, or save it anew as safetensors"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(f"{file} holds more than tensors by name; save the model's state_dict as safetensors")
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
            raise CheckpointError(f"{file}: {name} holds no plain values ({kind}); save the model anew as safetensors")
    return state
