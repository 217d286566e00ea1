"""Read a checkpoint without an engine or a process group: for export, generation and inspection.

Chunks are compared with their checksums as they are read.

global_stepN/ ──read_meta──▶ CheckpointMeta        ──read_weights──▶ (name, fp32 master), one whole tensor at a time
                                                   ──read_parts────▶ this rank's parts, in place: a model divided over processes
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megamesh.checkpoint.boxes import Box, fragment_boxes
from megamesh.checkpoint.files import Checksums, ChunkReader, damaged, open_files
from megamesh.checkpoint.folder import resolve_checkpoint
from megamesh.checkpoint.meta import META_FILE, CheckpointMeta
from megamesh.checkpoint.planner import BoxLoadPlanner, BoxTable
from megamesh.errors import CheckpointError
from megamesh.parallel.shards import ShardSpec

WEIGHTS = "fp32."


def read_meta(path: str | Path) -> CheckpointMeta:
    """meta.json of a checkpoint, or of the latest one of a run's folder. Raises CheckpointError."""
    path = resolve_checkpoint(path)
    file = path / META_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, f"{file} cannot be read: {error}") from None
    return CheckpointMeta.from_json(text, file)


def weight_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Global shapes of all parameters by name, without reading any tensor."""
    metadata, _ = open_files(resolve_checkpoint(path))
    return {
        key.removeprefix(WEIGHTS): tuple(stored.size) for key, stored in _tensors(metadata) if key.startswith(WEIGHTS)
    }


def read_weights(path: str | Path, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Names and fp32 masters, whole, on the CPU, one after the other; all parameters, or `names` in their order.

    Raises CheckpointError for a name that the checkpoint does not hold, and for missing or damaged files.
    """
    path = resolve_checkpoint(path)
    metadata, checksums = open_files(path)
    shapes = {key: stored.size for key, stored in _tensors(metadata)}
    for name in (
        names if names is not None else [key.removeprefix(WEIGHTS) for key in shapes if key.startswith(WEIGHTS)]
    ):
        key = f"{WEIGHTS}{name}"
        if key not in shapes:
            raise CheckpointError(f"{path} holds no parameter {name}")
        tensor = torch.empty(shapes[key], dtype=torch.float32)
        _read_boxes(path, metadata, checksums, [Box(key, tuple(tensor.shape), (0,) * tensor.dim(), tensor)])
        yield name, tensor
        del tensor  # before the next one is made


@torch.no_grad()
def read_parts(path: str | Path, parts: Iterable[tuple[ShardSpec, Tensor]]) -> None:
    """Fill local tensors, of any type and on any device, with their parts of the fp32 masters; what no part covers is left alone.

    Of each parameter only the stored chunks that overlap are read, and one of them is in memory at a time. Raises CheckpointError.
    """
    path = resolve_checkpoint(path)
    metadata, checksums = open_files(path)
    for spec, tensor in parts:
        key, flat = f"{WEIGHTS}{spec.name}", tensor.detach().view(-1)
        _read_boxes(path, metadata, checksums, list(fragment_boxes(key, spec, tuple(tensor.shape), 0, flat)))


def _tensors(metadata: Metadata) -> Iterator[tuple[str, TensorStorageMetadata]]:
    for key, stored in metadata.state_dict_metadata.items():
        if isinstance(stored, TensorStorageMetadata):
            yield key, stored


def _read_boxes(path: Path, metadata: Metadata, checksums: Checksums | None, boxes: list[Box]) -> None:
    """Fill boxes of one tensor."""
    table = BoxTable(boxes)
    reader, planner = ChunkReader(path, checksums), BoxLoadPlanner(table, path, (WEIGHTS,))
    planner.set_up_planner(table.state_dict(), metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    reader.read_data(planner.finish_plan(planner.create_local_plan()), planner).wait()
