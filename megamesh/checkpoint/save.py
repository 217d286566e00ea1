"""Save a run: every rank writes its own boxes, rank 0 the rest, and nothing has a name before it is whole.

    engine.access ──fragments──▶ boxes ──torch.distributed.checkpoint──▶ .saving-global_stepN/ ──▶ global_stepN/ ──▶ latest

A kill at any moment leaves the checkpoint that `latest` names intact; so does a full disk, which is a CheckpointError on every
rank. The masters are written from where they are: no gather, no full tensor. Folders must be on a file system that all ranks share.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from megamesh.checkpoint import folder as folders
from megamesh.checkpoint.boxes import Box, fragment_boxes
from megamesh.checkpoint.meta import CONFIGS_FOLDER, META_FILE, CheckpointMeta, RunState
from megamesh.checkpoint.planner import BoxSavePlanner, BoxTable
from megamesh.checkpoint.together import as_checkpoint_error, on_rank_zero
from megamesh.engine.engine import TrainingEngine
from megamesh.engine.loss_scale import is_dynamic
from megamesh.engine.zero_access import STATE_KEYS, Fragment, StateKey
from megamesh.errors import CheckpointError

log = logging.getLogger(__name__)
MEND = "the previous checkpoint is untouched; free space there or set `save` to another folder"


def save_checkpoint(
    folder: str | Path,
    engine: TrainingEngine,
    state: RunState,
    *,
    config: Mapping[str, Any],
    sources: Mapping[str, str],
    keep_last: int | None = None,
) -> Path:
    """Write global_step{state.step} into a run's folder and let `latest` name it; returns its path. A collective.

    `config` is stored as JSON, `sources` are YAML texts by file name. Raises CheckpointError on every rank.
    """
    folder = Path(folder)
    engine.access.prepare_state()
    scale = engine.loss_scale if is_dynamic(engine.precision) else None
    meta = CheckpointMeta(state, engine.access.step_count(), dict(config), engine.versions(), engine.layout(), scale)
    temporary = on_rank_zero(lambda: _begin(folder, meta, sources), f"begin a checkpoint in {folder}")
    try:
        table = BoxTable(own_boxes(engine))
        with as_checkpoint_error("write", temporary, MEND):
            save(
                table.state_dict(),
                storage_writer=_Writer(temporary, overwrite=False),
                planner=BoxSavePlanner(table),
            )
        path = on_rank_zero(lambda: _finish(temporary, state.step, keep_last), f"finish the checkpoint in {folder}")
    except CheckpointError:
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


class _Writer(FileSystemWriter):
    """torch's writer, whose errors speak of the disk and not of what torch.save made of its refusal."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            reason: BaseException | None = error
            while reason is not None and not isinstance(reason, OSError):
                reason = reason.__context__
            raise CheckpointError(f"could not write {self.path}: {reason or error}; {MEND}") from None


def own_boxes(engine: TrainingEngine) -> list[Box]:
    """The boxes that this rank writes: together, those of all ranks cover every tensor once."""
    boxes: list[Box] = []
    for name, parameter in engine.named_parameters():
        spec, shape = engine.shards[name], engine.access.local_shape(parameter)
        for key in STATE_KEYS if spec.writes else ():
            fragment = engine.access.fragment(parameter, key)
            if fragment is not None and engine.access.replicated:
                fragment = _share(fragment, engine.mesh.rank("dp"), engine.mesh.size("dp"))
            if fragment is not None:
                boxes += fragment_boxes(box_key(key, spec.name), spec, shape, fragment.start, fragment.values)
    return boxes


def box_key(key: StateKey, name: str) -> str:
    """The name of a parameter's master or moment in a checkpoint."""
    return f"{key}.{name}"


def _share(fragment: Fragment, rank: int, size: int) -> Fragment | None:
    """Of a fragment that all data-parallel ranks hold, the part that this one writes."""
    count = fragment.values.numel()
    length = -(-count // size)
    first, end = min(rank * length, count), min((rank + 1) * length, count)
    return Fragment(fragment.start + first, fragment.values[first:end]) if first < end else None


def _begin(folder: Path, meta: CheckpointMeta, sources: Mapping[str, str]) -> Path:
    temporary = folders.begin(folder, meta.state.step)
    try:
        folders.write_text(temporary / META_FILE, meta.to_json())
        configs = temporary / CONFIGS_FOLDER
        configs.mkdir()
        for name, text in sources.items():
            folders.write_text(configs / Path(name).name, text)
        folders.sync_folder(configs)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"could not write {temporary}: {error}; {MEND}") from None
    return temporary


def _finish(temporary: Path, step: int, keep_last: int | None) -> Path:
    path = folders.publish(temporary, step)
    if keep_last is not None:
        try:
            folders.prune(path.parent, keep_last)
        except OSError as error:
            log.warning("could not remove old checkpoints in %s: %s", path.parent, error)
    return path
