"""The files of a checkpoint, each stored piece with a checksum. The one file that knows how torch.distributed.checkpoint stores tensors.

    box ──torch.save──▶ bytes ──crc32──▶ __R_0.distcp of rank R ──▶ .metadata ──▶ checksums.json           (ChunkWriter)
    checksums.json ──▶ bytes of a chunk, as they were? ──torch.load──▶ the part of it that is wanted        (ChunkReader)

The result is an ordinary folder of torch.distributed.checkpoint, which stock tools read; checksums.json is MegaMesh's own addition.
Beside what is saved or loaded, one chunk (at most MAX_CHUNK_BYTES as saved by MegaMesh) is in memory, when loading twice.
tests/checkpoint/test_files.py fails when upstream moves any of this.
"""

import io
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import (
    DEFAULT_SUFFIX,
    FileSystemReader,
    FileSystemWriter,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from megamesh.checkpoint.folder import COMPLETE_MARK, LATEST, earlier_checkpoints, write_text
from megamesh.checkpoint.meta import META_FILE
from megamesh.errors import CheckpointError

CHECKSUMS_FILE = "checksums.json"
SPACE_MEND = "the previous checkpoint is untouched; free space there or set `save` to another folder"


class DamageError(CheckpointError):
    """Part of a checkpoint is not as it was saved: `damage` says what, the message also what to do about it."""

    def __init__(self, damage: str, mend: str):
        super().__init__(damage, mend)
        self.damage = damage

    def __str__(self) -> str:
        return "; ".join(self.args)


def damaged(path: Path, damage: str) -> DamageError:
    """The error for a damaged checkpoint, which tells how to go on from an earlier one of the run."""
    others = [other.name for other in earlier_checkpoints(path)]
    if not others:
        return DamageError(damage, "there is no earlier checkpoint beside it")
    return DamageError(
        damage, f"to go on from an earlier one ({', '.join(others[-3:])}), write its name into {path.parent / LATEST}"
    )


@dataclass
class Checksums:
    """checksums.json: CRC-32 of every stored chunk, by file and offset, and of the other files, whole."""

    chunks: dict[str, dict[str, int]] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Checksums":
        """Those of a checkpoint. Raises CheckpointError."""
        file = path / CHECKSUMS_FILE
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            found = cls({name: dict(chunks) for name, chunks in values["chunks"].items()}, dict(values["files"]))
            absent = {META_FILE, COMPLETE_MARK} - found.files.keys()
            if absent:
                raise ValueError(f"it does not speak of {', '.join(sorted(absent))}")
            return found
        except FileNotFoundError:
            raise damaged(
                path, f"{file} is missing, so nothing can be verified (verify_checkpoint: false trains without)"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(path, f"{file} is damaged ({error}; verify_checkpoint: false trains without)") from None

    def write(self, path: Path) -> None:
        write_text(path / CHECKSUMS_FILE, json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    def check_chunk(self, path: Path, name: str, offset: int, content: bytes, what: str) -> None:
        """Raise CheckpointError where a chunk is not what was written; `what` says what it holds."""
        expected = self.chunks.get(name, {}).get(str(offset))
        if expected is None:
            raise damaged(path, f"{path / CHECKSUMS_FILE} knows no checksum of {what} in {name}")
        if zlib.crc32(content) != expected:
            raise damaged(path, f"{path / name} is damaged: {what} has another checksum than when saved")

    def check_files(self, path: Path) -> None:
        """Raise CheckpointError where a file beside the chunks is missing or not what was written."""
        for name, expected in self.files.items():
            if file_checksum(path, name) != expected:
                raise damaged(path, f"{path / name} is damaged: it has changed since it was saved")


def file_checksum(path: Path, name: str) -> int:
    """CRC-32 of a small file of a checkpoint. Raises CheckpointError where it cannot be read."""
    try:
        return zlib.crc32((path / name).read_bytes())
    except OSError as error:
        raise damaged(path, f"{path / name} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class _CheckedResult(WriteResult):
    """What a rank tells rank 0 about a chunk that it wrote."""

    crc32: int = 0


class ChunkWriter(FileSystemWriter):
    """Writes one file per rank; errors speak of the disk. Rank 0 adds the checksums of all of them, and of what is there already."""

    def __init__(self, path: Path):
        super().__init__(path, overwrite=False)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        name = f"{plan.storage_data.prefix}0{DEFAULT_SUFFIX}"
        results: list[WriteResult] = []
        stream: _CheckedStream | None = None
        try:
            with (Path(self.path) / name).open("wb") as file:
                for item in plan.items:
                    stream, offset = _CheckedStream(file), file.tell()
                    torch.save(_own_storage(planner.resolve_data(item)), cast(BinaryIO, stream))
                    length = file.tell() - offset
                    info = _StorageInfo(name, offset, length)
                    results.append(_CheckedResult(item.index, length, info, stream.crc32))
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            reason = (stream and stream.error) or error  # torch.save hides why writing failed
            raise CheckpointError(f"could not write {self.path}: {reason}; {SPACE_MEND}") from None
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        path, checksums = Path(self.path), Checksums()
        try:
            super().finish(metadata, results)
            for result in (result for of_rank in results for result in of_rank):
                assert isinstance(result, _CheckedResult), "every rank writes with ChunkWriter"
                info = result.storage_data
                checksums.chunks.setdefault(info.relative_path, {})[str(info.offset)] = result.crc32
            others = [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
            checksums.files = {name: file_checksum(path, name) for name in others if name not in checksums.chunks}
            checksums.write(path)
        except OSError as error:
            raise CheckpointError(f"could not write {path}: {error}; {SPACE_MEND}") from None


class _CheckedStream(io.RawIOBase):
    """Passes on what is written to a file, adds up its checksum, and remembers what went wrong."""

    def __init__(self, file: BinaryIO):
        self.file, self.crc32 = file, 0
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        self.crc32 = zlib.crc32(content, self.crc32)
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise


def _own_storage(tensor: Tensor | io.BytesIO) -> Tensor:
    """The tensor on the CPU, as one that torch.save does not save together with all that it is a view of."""
    assert isinstance(tensor, Tensor), "boxes are tensors"
    return torch.from_numpy(tensor.detach().cpu().contiguous().numpy())


class ChunkReader(FileSystemReader):
    """Reads each chunk once, compares it with its checksum (unless `checksums` is None), and hands out the parts that are wanted."""

    def __init__(self, path: Path, checksums: Checksums | None):
        super().__init__(path)
        self.checksums = checksums

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        def place(index: MetadataIndex) -> tuple[str, int]:
            info = self.storage_data[index]
            return info.relative_path, info.offset

        last, chunk = None, torch.empty(0)
        for item in sorted(plan.items, key=lambda item: place(item.storage_index)):
            if item.storage_index != last:
                last, chunk = item.storage_index, self.read_chunk(item.storage_index)
            target = planner.resolve_tensor(item).detach()
            target.copy_(cut(chunk, item.storage_offsets, item.lengths))
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def read_chunk(self, index: MetadataIndex) -> Tensor:
        """One stored chunk, on the CPU. Raises CheckpointError where it is damaged."""
        info, path = self.storage_data[index], Path(self.path)
        what = f"{index.fqn} from {list(index.offset or ())} on"
        try:
            with (path / info.relative_path).open("rb") as file:
                file.seek(info.offset)
                content = file.read(info.length)
        except OSError as error:
            raise damaged(path, f"{path / info.relative_path} cannot be read ({error})") from None
        if self.checksums is not None:
            self.checksums.check_chunk(path, info.relative_path, info.offset, content, what)
        try:
            tensor: Tensor = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds for damaged bytes
            raise damaged(path, f"{path / info.relative_path} is damaged: {what} cannot be read ({error})") from None
        return tensor


def cut(tensor: Tensor, offset: Sequence[int], size: Sequence[int]) -> Tensor:
    """The box of a tensor that begins at `offset`; a view."""
    for dim, (start, length) in enumerate(zip(offset, size, strict=True)):
        tensor = tensor.narrow(dim, start, length)
    return tensor


def read_index(path: Path) -> Metadata:
    """What a checkpoint holds and where: .metadata. Raises CheckpointError."""
    try:
        metadata = FileSystemReader(path).read_metadata()
    except Exception as error:  # unpickling damaged bytes raises any kind
        raise damaged(path, f"{path / COMPLETE_MARK} is damaged: {error or type(error).__name__}") from None
    if not isinstance(metadata, Metadata) or metadata.storage_data is None:
        raise damaged(path, f"{path / COMPLETE_MARK} is damaged: it is not the index of a checkpoint")
    return metadata


def open_files(path: Path, *, verify: bool = True) -> tuple[Metadata, Checksums | None]:
    """The index of a checkpoint and its checksums, after making sure that every file it speaks of is there in full.

    With `verify` the small files are compared with their checksums now; chunks are when they are read. Raises CheckpointError.
    """
    checksums = Checksums.read(path) if verify else None
    if checksums is not None:
        checksums.check_files(path)
    metadata = read_index(path)
    for name, num_bytes in _needed(metadata).items():
        file = path / name
        if not file.is_file():
            raise damaged(path, f"{file} is missing")
        if file.stat().st_size < num_bytes:
            raise damaged(path, f"{file} is truncated: {file.stat().st_size:,} bytes of {num_bytes:,}")
    return metadata, checksums


def _needed(metadata: Metadata) -> dict[str, int]:
    """Bytes of each file, up to the end of its last chunk."""
    needed: dict[str, int] = {}
    for stored in metadata.storage_data.values():
        needed[stored.relative_path] = max(needed.get(stored.relative_path, 0), stored.offset + stored.length)
    return needed
