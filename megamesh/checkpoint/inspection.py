"""What a run's folder and its checkpoints hold. The index is enough to list it; values are read piece by piece where they are asked for.

    save/ ──read_run_folder──▶ saves: step, size, complete or not, and what `latest` names
    global_stepN/ ──stored_tensors──▶ names, shapes, types, pieces       ──TensorReader──▶ pieces, whole tensors, norms

Values are compared with their checksums as they are read. Memory: one piece, or one whole tensor and a piece.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from megamesh.checkpoint.boxes import Index
from megamesh.checkpoint.files import ChunkReader, open_files
from megamesh.checkpoint.folder import COMPLETE_MARK, NAME, REMOVING, SAVING, find_latest
from megamesh.checkpoint.meta import CONFIGS_FOLDER, CheckpointMeta
from megamesh.engine.zero_access import STATE_KEYS
from megamesh.errors import CheckpointError

MODULES = ("embedding", "position_embedding", "prelude", "core", "coda", "routers", "final_norm", "head")
"""The order in which a model's parameters are listed: that of its forward pass."""
SLICE_ELEMENTS = 2**22
"""Elements that are at once in float64."""


@dataclass(frozen=True)
class Save:
    """A folder that a save made. `complete` or not: then, by its name, it is being written or removed, was interrupted, or is damaged."""

    path: Path
    step: int
    complete: bool
    num_bytes: int


@dataclass(frozen=True)
class RunFolder:
    """The saves of a run, oldest step first. `problem` says what is wrong with `latest`."""

    saves: list[Save]
    latest: Path | None
    problem: str | None


def read_run_folder(folder: str | Path) -> RunFolder:
    """What a run's `save` folder holds. Raises CheckpointError where there is no such folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist; give a run's `save` folder or a global_stepN folder in it")
    saves = []
    for path in folder.iterdir():
        name = path.name.removeprefix(SAVING).removeprefix(REMOVING)
        if (match := NAME.fullmatch(name)) and path.is_dir():
            complete = name == path.name and (path / COMPLETE_MARK).is_file()
            saves.append(Save(path, int(match[1]), complete, _size(path)))
    latest, problem = None, None
    try:
        latest = find_latest(folder)
    except CheckpointError as error:
        problem = str(error)
    return RunFolder(sorted(saves, key=lambda save: (save.step, save.path.name)), latest, problem)


def _size(folder: Path) -> int:
    """Bytes of its files, as far as they are still there: a run may be removing it right now."""
    total = 0
    with suppress(FileNotFoundError):
        for path in folder.rglob("*"):
            total += path.stat().st_size if path.is_file() else 0
    return total


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the index describes it. `key` is `kind`.`name`: fp32.head.weight, exp_avg.head.weight …"""

    key: str
    shape: Index
    dtype: str
    num_pieces: int
    num_bytes: int  # of its values

    @property
    def kind(self) -> str:
        return self.key.partition(".")[0]

    @property
    def name(self) -> str:
        return self.key.partition(".")[2]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


def stored_tensors(
    metadata: Metadata, *, kinds: Iterable[str] | None = None, pattern: str | None = None
) -> list[StoredTensor]:
    """The tensors (of these kinds) whose parameter's name fits a pattern such as `core.*.weight`, in the order of the model."""
    found, wanted = [], None if kinds is None else set(kinds)
    for key, stored in metadata.state_dict_metadata.items():
        if isinstance(stored, TensorStorageMetadata):
            dtype, num_bytes = stored.properties.dtype, stored.size.numel() * stored.properties.dtype.itemsize
            name = str(dtype).removeprefix("torch.")
            found.append(StoredTensor(key, tuple(stored.size), name, len(stored.chunks), num_bytes))
    fitting = [tensor for tensor in found if pattern is None or fnmatchcase(tensor.name, pattern)]
    fitting = [tensor for tensor in fitting if wanted is None or tensor.kind in wanted]
    return sorted(fitting, key=_in_order)


def _in_order(tensor: StoredTensor) -> list[tuple[int, str]]:
    """A key to sort by; core.2 comes before core.10."""
    module, *rest = tensor.name.split(".")
    numbered = [(int(part), "") if part.isdecimal() else (-1, part) for part in rest]
    return [_place(tensor.kind, STATE_KEYS), _place(module, MODULES), *numbered]


def _place(name: str, order: Sequence[str]) -> tuple[int, str]:
    return (order.index(name), "") if name in order else (len(order), name)


def tensor_record(metadata: Metadata, key: str) -> TensorStorageMetadata:
    """What the index says of a tensor that it has."""
    stored = metadata.state_dict_metadata[key]
    assert isinstance(stored, TensorStorageMetadata), key
    return stored


class TensorReader:
    """Values of a checkpoint's tensors, by key. Raises CheckpointError for what is missing or damaged."""

    def __init__(self, path: Path, *, verify: bool = True):
        self.path = path
        self.metadata, checksums = open_files(path, verify=verify)
        self._reader = ChunkReader(path, checksums)
        self._reader.set_up_storage_reader(self.metadata, is_coordinator=True)

    def pieces(self, key: str) -> Iterator[tuple[Index, Tensor]]:
        """The stored pieces of a tensor, each with its offset in it."""
        for chunk in tensor_record(self.metadata, key).chunks:
            yield tuple(chunk.offsets), self._reader.read_chunk(MetadataIndex(key, chunk.offsets))

    def whole(self, key: str) -> Tensor:
        """A tensor put together."""
        stored = tensor_record(self.metadata, key)
        tensor, num_read = torch.empty(stored.size, dtype=stored.properties.dtype), 0
        for offset, piece in self.pieces(key):
            place = tuple(slice(start, start + size) for start, size in zip(offset, piece.shape, strict=True))
            tensor[place] = piece
            num_read += piece.numel()
        if num_read != tensor.numel():
            raise CheckpointError(
                f"{self.path} holds {num_read:,} elements of {key}, which has {tensor.numel():,}; "
                "`inspect_checkpoint.py verify` says which"
            )
        return tensor

    def norm(self, key: str) -> float:
        """The Euclidean norm, summed up in float64."""
        slices = (part for _, piece in self.pieces(key) for part in piece.view(-1).split(SLICE_ELEMENTS))
        return math.sqrt(sum(part.double().square().sum().item() for part in slices))


def config_files(path: Path) -> dict[str, str]:
    """The YAML texts in a checkpoint by file name. Raises CheckpointError for one that cannot be read."""
    texts = {}
    for file in sorted((path / CONFIGS_FOLDER).glob("*")):
        try:
            texts[file.name] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from None
    return texts


def consumed_tokens(meta: CheckpointMeta) -> int | None:
    """Tokens that the run had read; None where its configuration does not say how long a sample is."""
    model = meta.config.get("model") or {}
    length = model.get("seq_length") or model.get("max_position_embeddings")
    return meta.state.consumed_samples * length if length else None
