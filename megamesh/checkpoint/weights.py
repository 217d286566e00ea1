"""A checkpoint of weights alone, written by one process without an engine: what a conversion starts a run with.

    read(name) ──one tensor at a time──▶ chunks ──▶ save/global_step0/, save/latest

A run that loads it starts at step 0 with new moments. Beside one tensor, one chunk is in memory, twice.
"""

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.state_dict_saver import save

import megamesh
from megamesh.checkpoint.boxes import Box, pieces
from megamesh.checkpoint.files import SPACE_MEND, ChunkWriter, cut
from megamesh.checkpoint.folder import find_latest
from megamesh.checkpoint.meta import CheckpointMeta, RunState
from megamesh.checkpoint.planner import BoxSavePlanner, BoxTable
from megamesh.checkpoint.reader import WEIGHTS
from megamesh.checkpoint.save import begin, finish
from megamesh.checkpoint.together import as_checkpoint_error
from megamesh.errors import CheckpointError

NEW_FOLDER_MEND = "nothing was kept; free space there, or name another --output"
LAYOUT = {"pp_size": 1, "dp_size": 1, "tp_size": 1, "zero_stage": 0}


def save_weights(
    folder: str | Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    *,
    config: Mapping[str, Any],
    sources: Mapping[str, str],
    seed: int,
) -> Path:
    """Write weights as checkpoint global_step0 of a new run's folder, named by `latest`; returns its path. No process group is needed.

    `read` gives one whole parameter in fp32; it is called once for each name, in the order of `shapes`. `config` is RunConfig's dump
    in JSON mode, `sources` are YAML texts by file name. Raises CheckpointError where the folder already holds a checkpoint, the disk
    is full, or a tensor has another shape or type; nothing is left there then.
    """
    folder = Path(folder)
    if find_latest(folder) is not None:
        raise CheckpointError(f"{folder} already holds a checkpoint; name a folder that does not exist")
    boxes = [box for name, shape in shapes.items() for box in pieces(_whole(name, shape))]
    versions = {"megamesh": megamesh.__version__, "torch": torch.__version__}
    meta = CheckpointMeta(RunState(0, 0, seed), 0, dict(config), versions, LAYOUT)
    with _new_folder(folder):
        temporary = begin(folder, meta, sources)
        try:
            with warnings.catch_warnings(), as_checkpoint_error("write", temporary, SPACE_MEND):
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as intended
                table = BoxTable(boxes)
                planner = _ReadingPlanner(table, read)
                save(table.state_dict(), storage_writer=ChunkWriter(temporary), planner=planner, no_dist=True)
            return finish(temporary, 0)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Where the block raises, folders that it made go, if they are empty, and the error says what helps when nothing was there before."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException as error:
        for path in made:
            with suppress(OSError):
                path.rmdir()
        if isinstance(error, CheckpointError) and SPACE_MEND in str(error):
            raise CheckpointError(str(error).replace(SPACE_MEND, NEW_FOLDER_MEND)) from error.__cause__
        raise


def _whole(name: str, shape: Sequence[int]) -> Box:
    return Box(f"{WEIGHTS}{name}", tuple(shape), (0,) * len(shape), torch.empty(tuple(shape), device="meta"))


class _ReadingPlanner(BoxSavePlanner):
    """Reads each tensor when its first chunk is written; boxes come tensor by tensor."""

    def __init__(self, table: BoxTable, read: Callable[[str], Tensor]):
        super().__init__(table)
        self.read, self.name, self.tensor = read, "", torch.empty(0)
        self.shapes = {box.key: box.global_shape for box in table.boxes}

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        if self.name != index.fqn:
            self.tensor = torch.empty(0)  # the last one goes before the next comes
            self.name, self.tensor = index.fqn, self.read(index.fqn.removeprefix(WEIGHTS))
            found, expected = (tuple(self.tensor.shape), self.tensor.dtype), (self.shapes[self.name], torch.float32)
            if found != expected:
                raise CheckpointError(f"{index.fqn}: {found} was read where {expected} belongs")
        return cut(self.tensor, index.offset or (), super().lookup_object(index).shape)
