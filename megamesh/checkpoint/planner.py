"""Boxes as plans of torch.distributed.checkpoint: nothing is gathered, and stock tools read the result.

    Box(key, global shape, offset, view)  ──BoxSavePlanner──▶  chunks of the global tensor `key`
                                          ◀──BoxLoadPlanner──  whatever chunks the checkpoint has, cut to fit

The load planner accounts for every element: torch.distributed.checkpoint itself does not notice what is missing.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megamesh.checkpoint.boxes import Box, Index
from megamesh.errors import CheckpointError

MEND = "use the model settings that the checkpoint was written with (its configs/ folder)"


class BoxTable:
    """The boxes of one rank, found by key and offset."""

    def __init__(self, boxes: Sequence[Box]):
        self.boxes = boxes
        self._views = {(box.key, box.offset): box.values for box in boxes}
        assert len(self._views) == len(boxes), "two boxes of one tensor begin at the same place"

    def state_dict(self) -> dict[str, Any]:
        """A dict for torch.distributed.checkpoint, which asks for one; the planners look the views up themselves."""
        return {f"{box.key}@{','.join(map(str, box.offset))}": box.values for box in self.boxes}

    def view(self, index: MetadataIndex) -> Tensor:
        return self._views[index.fqn, tuple(index.offset or ())]

    def by_key(self) -> dict[str, list[Box]]:
        grouped: dict[str, list[Box]] = {}
        for box in self.boxes:
            grouped.setdefault(box.key, []).append(box)
        return grouped


class BoxSavePlanner(DefaultSavePlanner):
    """Writes each box as one chunk."""

    def __init__(self, table: BoxTable):
        super().__init__()
        self.table = table

    def create_local_plan(self) -> SavePlan:
        items = [
            WriteItem(
                MetadataIndex(box.key, torch.Size(box.offset)),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    _chunk(box), TensorProperties(dtype=box.values.dtype), torch.Size(box.global_shape)
                ),
            )
            for box in self.table.boxes
        ]
        # Where stock tools put a tensor when they make nested dicts: {"fp32": {name: tensor}, …}
        self.plan = SavePlan(items, planner_data={key: tuple(key.split(".", 1)) for key in self.table.by_key()})
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.table.view(index)


class BoxLoadPlanner(DefaultLoadPlanner):
    """Reads every element of every box, or raises CheckpointError naming tensor, shapes and mend."""

    def __init__(self, table: BoxTable, path: Path, prefixes: tuple[str, ...]):
        super().__init__()
        self.table, self.path, self.prefixes = table, path, prefixes

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None, "set_up_planner comes first"
        items: list[ReadItem] = []
        for key, boxes in self.table.by_key().items():
            stored = stored_tensor(self.metadata, key, boxes[0].global_shape, self.path)
            read = create_read_items_for_chunk_list(key, stored, [_chunk(box) for box in boxes])
            wanted, found = sum(box.values.numel() for box in boxes), sum(math.prod(item.lengths) for item in read)
            if found != wanted:
                raise CheckpointError(
                    f"{self.path} holds only {found:,} of the {wanted:,} elements needed of {key}: it is damaged"
                )
            items += read
        return LoadPlan(items)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        assert self.metadata is not None, "set_up_planner comes first"
        read = {item.dest_index.fqn for plan in global_plan for item in plan.items}
        stored = [key for key in self.metadata.state_dict_metadata if key.startswith(self.prefixes)]
        extra = sorted(set(stored) - read)
        if extra:
            raise CheckpointError(
                f"{self.path} holds {_listed(extra)}, which this model does not have ({len(extra)} tensors too many); {MEND}"
            )
        return super().create_global_plan(global_plan)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.table.view(index)


def stored_tensor(metadata: Metadata, key: str, shape: Index, path: Path) -> TensorStorageMetadata:
    """The checkpoint's record of a tensor, which must exist in this global shape. Raises CheckpointError."""
    stored = metadata.state_dict_metadata.get(key)
    if not isinstance(stored, TensorStorageMetadata):
        raise CheckpointError(f"{path} does not hold {key} (shape {list(shape)} in this model); {MEND}")
    if tuple(stored.size) != tuple(shape):
        raise CheckpointError(f"{key} has shape {list(stored.size)} in {path} and {list(shape)} in this model; {MEND}")
    return stored


def _chunk(box: Box) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(box.offset), box.values.size())


def _listed(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (" …" if len(names) > limit else "")
