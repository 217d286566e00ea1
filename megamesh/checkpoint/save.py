"""Save a run: every rank writes its own boxes, rank 0 the rest, and nothing has a name before it is whole.

    engine ──take──▶ Snapshot: meta, boxes ──write──▶ .saving-global_stepN/ ──▶ global_stepN/ ──▶ latest

A snapshot's boxes are views of the engine's masters and moments (no gather, no full tensor); checkpoint/background.py copies them to the
host and writes while training goes on. A kill at any moment leaves the checkpoint that `latest` names intact; so does a full disk, which
is a CheckpointError on every rank. Folders must be on a file system that all ranks share.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import save

from megamesh.checkpoint import folder as folders
from megamesh.checkpoint.boxes import Box, fragment_boxes, pieces
from megamesh.checkpoint.files import SPACE_MEND, ChunkWriter
from megamesh.checkpoint.meta import CONFIGS_FOLDER, META_FILE, CheckpointMeta, RunState
from megamesh.checkpoint.planner import BoxSavePlanner, BoxTable
from megamesh.checkpoint.together import as_checkpoint_error, on_rank_zero
from megamesh.engine.engine import TrainingEngine
from megamesh.engine.loss_scale import is_dynamic
from megamesh.engine.zero_access import STATE_KEYS, Fragment, StateKey
from megamesh.errors import CheckpointError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """What one rank saves of a run at one moment."""

    meta: CheckpointMeta
    boxes: Sequence[Box]


@dataclass(frozen=True)
class Target:
    """Where a run's checkpoints go, and what goes into all of them: YAML texts by file name. `keep_last` None keeps all."""

    folder: Path
    sources: Mapping[str, str]
    keep_last: int | None = None


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
    return write(Target(Path(folder), sources, keep_last), take(engine, state, config))


def take(engine: TrainingEngine, state: RunState, config: Mapping[str, Any], *, until_next: bool = False) -> Snapshot:
    """What this rank has to write. Its boxes are views: they change with the next step. `until_next` as in CheckpointMeta."""
    engine.access.prepare_state()
    scale = engine.loss_scale if is_dynamic(engine.precision) else None
    meta = CheckpointMeta(
        state, engine.access.step_count(), dict(config), engine.versions(), engine.layout(), scale, until_next
    )
    return Snapshot(meta, own_boxes(engine))


def write(target: Target, snapshot: Snapshot, group: dist.ProcessGroup | None = None) -> Path:
    """Write a snapshot, with the ranks of `group` (None: all). A collective; raises CheckpointError on every rank."""
    folder, table = target.folder, BoxTable(snapshot.boxes)
    temporary = on_rank_zero(
        lambda: begin(folder, snapshot.meta, target.sources), f"begin a checkpoint in {folder}", group
    )
    try:
        with as_checkpoint_error("write", temporary, SPACE_MEND):
            save(
                table.state_dict(),
                storage_writer=ChunkWriter(temporary),
                planner=BoxSavePlanner(table),
                process_group=group,
            )
        return on_rank_zero(
            lambda: finish(temporary, snapshot.meta.state.step, target.keep_last),
            f"finish the checkpoint in {folder}",
            group,
        )
    except CheckpointError:
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


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
                for box in fragment_boxes(box_key(key, spec.name), spec, shape, fragment.start, fragment.values):
                    boxes += pieces(box)
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


def begin(folder: Path, meta: CheckpointMeta, sources: Mapping[str, str]) -> Path:
    """A hidden folder for a checkpoint, with meta.json and the YAML files in it. Raises CheckpointError."""
    temporary = folders.unfinished(folder, meta.state.step)
    try:
        folders.begin(temporary)
        folders.write_text(temporary / META_FILE, meta.to_json())
        configs = temporary / CONFIGS_FOLDER
        configs.mkdir()
        for name, text in sources.items():
            folders.write_text(configs / Path(name).name, text)
        folders.sync_folder(configs)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"could not write {temporary}: {error}; {SPACE_MEND}") from None
    return temporary


def finish(temporary: Path, step: int, keep_last: int | None = None) -> Path:
    """Give a written checkpoint its name, let `latest` name it, and remove those beyond `keep_last`, or, where that is None, those that
    were to stay until the next one. Raises CheckpointError."""
    try:
        path = folders.publish(temporary, step)
    except OSError as error:
        raise CheckpointError(f"could not finish {temporary}: {error}; {SPACE_MEND}") from None
    if keep_last is not None:
        folders.prune(path.parent, keep_last)
    else:
        folders.remove([other for other in folders.earlier_checkpoints(path) if _was_until_next(other)])
    return path


def _was_until_next(path: Path) -> bool:
    try:
        return CheckpointMeta.from_json((path / META_FILE).read_text(encoding="utf-8"), path / META_FILE).until_next
    except (OSError, UnicodeDecodeError, CheckpointError):  # damaged: whoever reads it is told so
        return False
