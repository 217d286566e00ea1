"""Load a run into an engine of any layout: every rank reads the boxes that it needs, in place.

    global_stepN/ ──whatever chunks cover them──▶ boxes = views of this rank's masters and moments ──▶ the model's weights

Exact: the same layout continues bit for bit; another one holds the same numbers in other places.
"""

import logging
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict_loader import load

from megamesh.checkpoint.boxes import Box, fragment_boxes
from megamesh.checkpoint.files import Checksums, ChunkReader, open_files
from megamesh.checkpoint.folder import resolve_checkpoint
from megamesh.checkpoint.meta import CheckpointMeta, RunState
from megamesh.checkpoint.planner import BoxLoadPlanner, BoxTable
from megamesh.checkpoint.reader import read_meta
from megamesh.checkpoint.save import box_key
from megamesh.checkpoint.together import as_checkpoint_error, on_rank_zero
from megamesh.engine.engine import TrainingEngine
from megamesh.engine.loss_scale import is_dynamic
from megamesh.engine.zero_access import STATE_KEYS, StateKey

log = logging.getLogger(__name__)
MEND = "the checkpoint may be damaged: tools/inspect_checkpoint.py verify tells"


def load_checkpoint(
    path: str | Path,
    engine: TrainingEngine,
    *,
    weights_only: bool = False,
    load_optimizer: bool = True,
    verify: bool = True,
) -> RunState:
    """Read a checkpoint (or the latest of a run's folder) into the engine; returns what it recorded. A collective.

    weights_only: masters alone; moments, Adam's step count, loss scale and engine.num_steps start anew (a fine-tuning run).
    load_optimizer False: moments and Adam's step count start anew, engine.num_steps and a dynamic loss scale continue.
    verify: compare every chunk that is read with its checksum.
    Raises CheckpointError, on every rank, for a missing or damaged file or another architecture.
    """
    path, meta, checksums = on_rank_zero(lambda: _open(Path(path), verify), f"read {path}")
    keys: tuple[StateKey, ...] = STATE_KEYS if load_optimizer and not weights_only else ("fp32",)
    with_moments = len(keys) > 1
    engine.access.prepare_state()
    table = BoxTable(wanted_boxes(engine, keys))
    with as_checkpoint_error("read", path, MEND):
        load(
            table.state_dict(),
            storage_reader=ChunkReader(path, checksums),
            planner=BoxLoadPlanner(table, path, tuple(f"{key}." for key in keys)),
        )
    engine.access.prepare_state(step=meta.optimizer_step if with_moments else 0)
    if not with_moments:
        _clear_moments(engine)
    engine.access.publish_weights()
    engine.num_steps = 0 if weights_only else meta.state.step
    if meta.loss_scale is not None and is_dynamic(engine.precision) and not weights_only:
        engine.loss_scale = meta.loss_scale
    log.info("loaded the weights%s of %s", " and moments" if with_moments else "", path)
    return meta.state


def wanted_boxes(engine: TrainingEngine, keys: tuple[StateKey, ...]) -> list[Box]:
    """The boxes that this rank reads: all that it holds, also where another rank holds the same."""
    boxes: list[Box] = []
    for name, parameter in engine.named_parameters():
        spec, shape = engine.shards[name], engine.access.local_shape(parameter)
        for key in keys:
            fragment = engine.access.fragment(parameter, key)
            if fragment is not None:
                boxes += fragment_boxes(box_key(key, spec.name), spec, shape, fragment.start, fragment.values)
    return boxes


def _open(path: Path, verify: bool) -> tuple[Path, CheckpointMeta, Checksums | None]:
    path = resolve_checkpoint(path)
    _, checksums = open_files(path, verify=verify)
    return path, read_meta(path), checksums


@torch.no_grad()
def _clear_moments(engine: TrainingEngine) -> None:
    for master in engine.access.masters():
        engine.access.adam.state[master]["exp_avg"].zero_()
        engine.access.adam.state[master]["exp_avg_sq"].zero_()
