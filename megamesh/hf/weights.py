"""safetensors files, one tensor at a time: no more than one shard is in memory.

(name, tensor) stream ──write_sharded──▶ model.safetensors, or model-00001-of-00003.safetensors … and their index
folder ──PretrainedWeights──▶ read(name) ──▶ tensor
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megamesh.errors import CheckpointError, ConfigError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Bytes of a size such as 5GB, 500MB or 2GiB."""
    match = re.fullmatch(r"(\d+) *([A-Z]*)", text.strip().upper())
    if match is None or match[2] not in _UNITS or int(match[1]) == 0:
        raise ConfigError(
            f"{text!r} is not a size; write bytes or a number with KB, MB, GB, KiB, MiB or GiB, such as 5GB"
        )
    return int(match[1]) * _UNITS[match[2]]


def write_sharded(folder: Path, tensors: Iterator[tuple[str, Tensor]], max_shard_bytes: int) -> int:
    """Write all tensors into files of at most `max_shard_bytes` (a larger tensor gets one to itself); returns the bytes of tensors."""
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = pending_bytes = 0
    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > max_shard_bytes:
            shards.append(_write_shard(folder, len(shards), pending))
            pending, pending_bytes = {}, 0
        pending[name] = tensor.contiguous()
        pending_bytes += tensor.nbytes
        total += tensor.nbytes
    shards.append(_write_shard(folder, len(shards), pending))
    if len(shards) == 1:
        _part(folder, 0).rename(folder / SINGLE)
        return total
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for i, file in enumerate(files):
        _part(folder, i).rename(folder / file)
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number}.safetensors"


def _write_shard(folder: Path, number: int, tensors: dict[str, Tensor]) -> list[str]:
    try:
        save_file(tensors, _part(folder, number), metadata={"format": "pt"})
    except SafetensorError as error:  # how the library reports a full disk
        raise OSError(str(error)) from error
    return list(tensors)


class PretrainedWeights:
    """The tensors of a transformers folder, read one by one; a context manager that holds the files open."""

    def __init__(self, folder: Path):
        self._folder = folder
        index = folder / INDEX
        if index.is_file():
            self._file_of: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        elif (folder / SINGLE).is_file():
            self._file_of = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        else:
            raise CheckpointError(
                f"{folder} holds neither {SINGLE} nor {INDEX}; name a folder with safetensors weights"
            )
        self._files: dict[str, Any] = {}

    def _open(self, file: str) -> Any:
        try:
            return safe_open(self._folder / file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self._folder / file}: cannot be read ({error})") from error

    def __enter__(self) -> "PretrainedWeights":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._files.clear()

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def read(self, name: str) -> Tensor:
        """One tensor in the type it is stored in. Raises KeyError where the folder has no such tensor."""
        file = self._file_of[name]
        if file not in self._files:
            self._files[file] = self._open(file)
        tensor: Tensor = self._files[file].get_tensor(name)
        return tensor
