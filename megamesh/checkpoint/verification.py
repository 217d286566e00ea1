"""Is a checkpoint what was saved, and is it all there? Every byte is read.

    checksums.json ──▶ meta.json, YAMLs, .metadata as they were? ──▶ index: each element of each tensor covered exactly once?
                                                                 ──▶ every piece: there, its checksum, shape, type, finite values?
                                                                 ──▶ every parameter with both moments, or none of them with any?

Nothing stops at the first problem: all are listed. Memory: one piece. (To say where a tensor has a gap: a byte for each of its elements.)
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from megamesh.checkpoint.boxes import Index
from megamesh.checkpoint.files import (
    CHECKSUMS_FILE,
    Checksums,
    ChunkReader,
    DamageError,
    file_checksum,
    open_files,
    read_index,
)
from megamesh.checkpoint.folder import COMPLETE_MARK, LATEST, REMOVING, SAVING
from megamesh.checkpoint.inspection import RunFolder, StoredTensor, config_files, stored_tensors, tensor_record
from megamesh.checkpoint.meta import CONFIGS_FOLDER, META_FILE
from megamesh.checkpoint.reader import read_meta
from megamesh.engine.zero_access import STATE_KEYS
from megamesh.errors import CheckpointError

Extent = tuple[Index, Index]
"""Offset and size of a piece in its tensor."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, or with a piece of a tensor in it (`box`, as a slice)."""

    file: str
    reason: str
    tensor: str | None = None
    box: str | None = None

    def __str__(self) -> str:
        piece = f"{self.tensor}{self.box or ''}: " if self.tensor else ""
        return f"{self.file}: {piece}{self.reason}"


def verify_folder(folder: RunFolder) -> list[Problem]:
    """Whether `latest` of a run's folder names a complete checkpoint, where there is one, and all that were once complete are."""
    complete = [save.path.name for save in folder.saves if save.complete]
    problems = [
        Problem(save.path.name, f"{COMPLETE_MARK} is missing, which every finished checkpoint has")
        for save in folder.saves
        if not save.complete and not save.path.name.startswith((SAVING, REMOVING))
    ]
    if folder.problem is not None:
        return [Problem(LATEST, folder.problem), *problems]
    if folder.latest is None and complete:
        problems.append(Problem(LATEST, f"is missing, so that a run would start anew; write {complete[-1]} into it"))
    return problems


def verify_checkpoint(
    path: Path, *, finite: bool = False, on_read: Callable[[int], object] = lambda num_bytes: None
) -> list[Problem]:
    """All problems of a checkpoint's folder. `finite`: values must be numbers. `on_read` is told of each piece's bytes."""
    problems, checksums = _small_files(path)
    if any(problem.file == COMPLETE_MARK for problem in problems):
        return problems
    try:
        metadata = read_index(path)
    except CheckpointError as error:
        return [*problems, Problem(COMPLETE_MARK, _reason(error))]
    tensors = stored_tensors(metadata)
    for tensor in tensors:
        problems += _coverage(metadata, tensor)
    problems += _completeness(tensors)
    problems += _pieces(path, metadata, checksums, finite, on_read)
    return problems


def num_stored_bytes(path: Path) -> int:
    """Bytes of all pieces, as the index says; 0 where it cannot be read, or is not what was written."""
    try:
        return sum(stored.length for stored in open_files(path)[0].storage_data.values())
    except CheckpointError:
        return 0


def _small_files(path: Path) -> tuple[list[Problem], Checksums | None]:
    """Problems of everything but the pieces. What has another checksum is not looked into."""
    problems, checksums = [], None
    try:
        checksums = Checksums.read(path)
    except CheckpointError as error:
        problems.append(Problem(CHECKSUMS_FILE, _reason(error)))
    for name, expected in checksums.files.items() if checksums else ():
        try:
            if file_checksum(path, name) != expected:
                problems.append(Problem(name, "has changed since it was saved"))
        except CheckpointError as error:
            problems.append(Problem(name, _reason(error)))
    damaged = {problem.file for problem in problems}
    readers: dict[str, Callable[[], object]] = {
        META_FILE: lambda: read_meta(path),
        CONFIGS_FOLDER: lambda: _parse_yaml(path),
    }
    for name, read in readers.items():
        # Without its index the folder is no checkpoint, and nothing in it is read.
        if COMPLETE_MARK not in damaged and not any(file.split("/")[0] == name for file in damaged):
            try:
                read()
            except CheckpointError as error:
                problems.append(Problem(name, _reason(error)))
    return problems, checksums


def _parse_yaml(path: Path) -> None:
    for name, text in config_files(path).items():
        try:
            yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise CheckpointError(f"{name} is not YAML: {' '.join(str(error).split())}") from None


def _coverage(metadata: Metadata, tensor: StoredTensor) -> Iterator[Problem]:
    """Whether the pieces of a tensor cover each of its elements exactly once."""
    extents = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in tensor_record(metadata, tensor.key).chunks]
    outside = [
        extent for extent in extents if any(o + s > end for o, s, end in zip(*extent, tensor.shape, strict=True))
    ]
    for extent in outside:
        yield Problem(
            COMPLETE_MARK, f"reaches beyond the tensor's shape {list(tensor.shape)}", tensor.key, _box(*extent)
        )
    overlaps = list(_overlaps(extents))
    for first, second in overlaps:
        yield Problem(COMPLETE_MARK, f"is stored again by {_box(*second)}", tensor.key, _box(*first))
    if sum(math.prod(size) for _, size in extents) < tensor.num_elements or outside or overlaps:
        missing = torch.ones(tensor.shape, dtype=torch.bool)
        for extent in extents:
            missing[_slices(*extent)] = False
        count = int(missing.sum())
        if count:
            where = _box(*_bounds(missing))
            yield Problem(
                COMPLETE_MARK, f"{count:,} elements are stored nowhere, all within this box", tensor.key, where
            )


def _overlaps(extents: Sequence[Extent]) -> Iterator[tuple[Extent, Extent]]:
    """Pairs of extents that share an element."""
    active: list[Extent] = []
    for extent in sorted(extents):
        start = extent[0][:1]
        active = [other for other in active if _end(other)[:1] > start or not start]
        for other in active:
            if all(
                max(a, b) < min(c, d) for a, b, c, d in zip(other[0], extent[0], _end(other), _end(extent), strict=True)
            ):
                yield other, extent
        active.append(extent)


def _completeness(tensors: Sequence[StoredTensor]) -> Iterator[Problem]:
    """Every parameter has a master and, unless no parameter has any, both moments, all in one shape and in fp32."""
    kinds: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    for tensor in tensors:
        if tensor.kind in STATE_KEYS:
            kinds[tensor.name][tensor.kind] = tensor
    if not kinds:
        yield Problem(COMPLETE_MARK, "the checkpoint holds no tensor")
    with_moments = any(len(found) > 1 for found in kinds.values())
    for name, found in kinds.items():
        for kind in STATE_KEYS if with_moments else ("fp32",):
            if kind not in found:
                yield Problem(COMPLETE_MARK, "is missing", f"{kind}.{name}")
        if len({tensor.shape for tensor in found.values()}) > 1:
            shapes = ", ".join(f"{kind} {list(tensor.shape)}" for kind, tensor in found.items())
            yield Problem(COMPLETE_MARK, f"master and moments differ in shape: {shapes}", name)
        for tensor in found.values():
            if tensor.dtype != "float32":
                yield Problem(COMPLETE_MARK, f"is {tensor.dtype} instead of float32", tensor.key)


def _pieces(
    path: Path, metadata: Metadata, checksums: Checksums | None, finite: bool, on_read: Callable[[int], object]
) -> Iterator[Problem]:
    """Problems of stored values, in the order in which they lie in the files."""
    reader = ChunkReader(path, checksums)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    expected = {}
    for key, stored in metadata.state_dict_metadata.items():
        for chunk in stored.chunks if isinstance(stored, TensorStorageMetadata) else ():
            index, extent = MetadataIndex(key, chunk.offsets), (tuple(chunk.offsets), tuple(chunk.sizes))
            expected[index] = extent
            if index not in metadata.storage_data:
                yield Problem(COMPLETE_MARK, "no file holds this piece", key, _box(*extent))
    placed = [(info.relative_path, info.offset, index) for index, info in metadata.storage_data.items()]
    for file, _, index in sorted(placed, key=lambda place: place[:2]):
        if index in expected:
            reason = _piece_problem(reader, path, metadata, index, expected[index], finite)
            if reason is not None:
                yield Problem(file, reason, index.fqn, _box(*expected[index]))
            on_read(metadata.storage_data[index].length)


def _piece_problem(
    reader: ChunkReader, path: Path, metadata: Metadata, index: MetadataIndex, extent: Extent, finite: bool
) -> str | None:
    info, stored = metadata.storage_data[index], tensor_record(metadata, index.fqn)
    file = path / info.relative_path
    if not file.is_file():
        return "the file is missing"
    if file.stat().st_size < info.offset + info.length:
        return f"the file is truncated: it ends at byte {file.stat().st_size:,}, this piece at {info.offset + info.length:,}"
    try:
        piece = reader.read_chunk(index)
    except CheckpointError as error:
        return _reason(error)
    if tuple(piece.shape) != extent[1] or piece.dtype != stored.properties.dtype:
        return f"is {list(piece.shape)} of {piece.dtype}, the index says {list(extent[1])} of {stored.properties.dtype}"
    if finite and (count := int((~piece.isfinite()).sum())):
        return f"{count:,} values are not finite"
    return None


def _reason(error: CheckpointError) -> str:
    """Without the mend: the list of problems is for who wants to know what is damaged."""
    return error.damage if isinstance(error, DamageError) else str(error)


def _end(extent: Extent) -> Index:
    return tuple(offset + size for offset, size in zip(*extent, strict=True))


def _slices(offset: Index, size: Index) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) for start, length in zip(offset, size, strict=True))


def _box(offset: Index, size: Index) -> str:
    return f"[{', '.join(f'{start}:{start + length}' for start, length in zip(offset, size, strict=True))}]"


def _bounds(mask: torch.Tensor) -> Extent:
    """The smallest box around the elements that are set."""
    offset, size = [], []
    for dim in range(mask.dim()):
        others = [other for other in range(mask.dim()) if other != dim]
        places = (mask.any(dim=others) if others else mask).nonzero()[:, 0]
        offset.append(int(places[0]))
        size.append(int(places[-1]) - int(places[0]) + 1)
    return tuple(offset), tuple(size)
