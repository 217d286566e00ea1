"""Continuing from a checkpoint: which one, and whether it fits this configuration.

save/latest exists ──▶ continue this run            (the same command, typed again)
else load/latest   ──▶ continue (no_load_optim: without its moments), or with finetune take the weights only and start at step 0
else               ──▶ start at step 0

A checkpoint of step 0 (a conversion, say) has weights only, and no schedule to agree with.
"""

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megamesh.checkpoint.files import Checksums
from megamesh.checkpoint.folder import LATEST, find_latest, interrupted_saves, resolve_checkpoint
from megamesh.checkpoint.load import load_checkpoint
from megamesh.checkpoint.meta import CheckpointMeta, RunState
from megamesh.checkpoint.reader import read_meta
from megamesh.config.batch import ResolvedBatch, resolve_batch
from megamesh.config.keys import BatchConfig, CheckpointConfig, ModelConfig, OptimizerConfig
from megamesh.config.schemes import keys_of_start
from megamesh.config.sections import SECTIONS, RunConfig
from megamesh.data.samples.paths import same_data
from megamesh.engine.engine import TrainingEngine
from megamesh.errors import CheckpointError

log = logging.getLogger(__name__)
ORDER_KEYS = {
    "training": ("seed", "train_epochs"),
    "data": (
        "data_path",
        "split",
        "train_data_paths",
        "train_label_data_paths",
        "train_data_weights",
        "weight_by_num_tokens",
        "weight_by_num_documents",
        "weighted_sampler_alpha",
        "weighted_document_limit",
        "pack_impl",
        "allow_chopped",
    ),
}
"""Keys that decide which samples follow the consumed ones, beside the batch size and the length of the run."""
FREE_KEYS = {
    "seq_length", "attention_config", "attention_dropout", "hidden_dropout",
    "init_method", "output_layer_init_method", "init_method_std",
    "vocab_size", "make_vocab_size_divisible_by", "num_kv_heads", "intermediate_size", "mlp_multiple_of",
}  # fmt: skip
"""Keys of the model that trained weights do not depend on, or whose resolved value shows in the weights' shapes; beside the schemes'."""


@dataclass(frozen=True)
class Start:
    """Where a run begins: at `state`, with the weights of `path` (None: freshly drawn) and, unless left out, its moments."""

    state: RunState
    path: Path | None = None
    load_optimizer: bool = True


def find_start(config: RunConfig, batch: ResolvedBatch, train_iters: int) -> Start:
    """Look for a checkpoint and at what it says; no tensor is read. Raises CheckpointError where it does not fit the configuration."""
    beginning = RunState(step=0, consumed_samples=0, seed=config.training.seed)
    checkpoint = config.checkpoint
    for left in interrupted_saves(checkpoint.save) if checkpoint.save else ():
        log.warning("%s was left by a save that was interrupted: it is not read, and the next save removes it", left)
    path, is_own = choose_checkpoint(checkpoint)
    if path is None:
        return Start(beginning)
    if checkpoint.verify_checkpoint:
        Checksums.read(path).check_files(path)
    meta = read_meta(path)
    meta.refuse_newer_keys(path)
    check_architecture(meta.config, config, path)
    if (checkpoint.finetune and not is_own) or meta.state.step == 0:
        log.info("weights of %s; starting at step 0", path)
        return Start(beginning, path)
    check_schedule(meta.config, config.optimizer, train_iters, path)
    for key, before, now in changed_order_keys(meta, config, batch, train_iters):
        log.warning(
            "%s was %s when %s was saved and is %s now: the samples that follow may not be those of one straight run",
            key, before, path, now,
        )  # fmt: skip
    log.info("continuing from %s at step %d, sample %d", path, meta.state.step, meta.state.consumed_samples)
    # A run that began without another run's moments has its own by now.
    began_elsewhere = checkpoint.load is not None and not checkpoint.loads_itself
    with_moments = not checkpoint.no_load_optim or (is_own and began_elsewhere)
    seed = config.training.seed if checkpoint.no_load_rng else meta.state.seed
    return Start(replace(meta.state, seed=seed), path, with_moments)


def load_start(engine: TrainingEngine, start: Start, *, verify: bool) -> None:
    """Read the checkpoint that the run begins with, if any, into the engine. A collective; raises CheckpointError."""
    if start.path is None:
        return
    # A run that starts at step 0 has no moments, whoever's weights it takes.
    weights_only = start.state.step == 0
    load_checkpoint(start.path, engine, weights_only=weights_only, load_optimizer=start.load_optimizer, verify=verify)


def choose_checkpoint(config: CheckpointConfig) -> tuple[Path | None, bool]:
    """The checkpoint to read, and whether this run wrote it; None to start from nothing.

    Raises CheckpointError where `load` names neither a run's folder with a checkpoint nor a checkpoint, and where it names one of
    this run, which has gone on since.
    """
    if config.save and (own := find_latest(Path(config.save))):
        load = Path(os.path.abspath(config.load or own))
        if load.parent == Path(os.path.abspath(own.parent)) and load.name != own.name:
            raise CheckpointError(
                f"load={config.load} is a checkpoint of this run, whose latest is {own.name}; "
                f"to go back to it, write {load.name} into {own.parent / LATEST} and leave load out"
            )
        return own, True
    if config.load is None or config.loads_itself:
        return None, False
    try:
        return resolve_checkpoint(config.load), False
    except CheckpointError as error:
        raise CheckpointError(f"load={config.load}: {error}; or leave load out, to start from nothing") from None


def check_architecture(saved: dict[str, Any], config: RunConfig, path: Path) -> None:
    """Raise CheckpointError where the weights belong to another model, also one whose parameters have the same shapes."""
    now = config.model_dump(mode="json")
    # Only learned positions are weights; without them a run may go on with longer sequences.
    positions: set[str] = set() if config.model.pos_emb == "learned" else {"max_position_embeddings"}
    free = FREE_KEYS | keys_of_start() | positions
    changed = [
        f"{key} was {saved[section].get(key)}, is {value}"
        for section in ("model", "recursion")
        for key, value in now[section].items()
        if key not in free and saved[section].get(key) != value
    ]
    if changed:
        raise CheckpointError(
            f"{path} is of another architecture: {'; '.join(changed)}; restore these keys, or save to another folder"
        )


def check_schedule(saved: dict[str, Any], optimizer: OptimizerConfig, train_iters: int, path: Path) -> None:
    """Raise CheckpointError where the learning-rate schedule is not the one that the checkpoint was trained with."""
    if optimizer.override_lr_scheduler:
        return
    before = schedule_keys(OptimizerConfig.model_validate(saved["optimizer"]), saved["training"]["train_iters"])
    now = schedule_keys(optimizer, train_iters)
    changed = [f"{key} was {before[key]}, is {now[key]}" for key in now if before[key] != now[key]]
    if changed:
        raise CheckpointError(
            f"{path}: the learning-rate schedule has changed: {'; '.join(changed)}; "
            "restore the old values, or set override_lr_scheduler: true to go on with the new ones"
        )


def schedule_keys(optimizer: OptimizerConfig, train_iters: int | None) -> dict[str, Any]:
    """Everything that the learning rate of a step depends on."""
    return {
        "lr": float(optimizer.optimizer["params"]["lr"]),
        "min_lr": optimizer.min_lr,
        "lr_decay_style": optimizer.lr_decay_style,
        "lr_decay_iters": optimizer.lr_decay_iters or train_iters,
        "warmup": optimizer.warmup,
    }


def changed_order_keys(
    meta: CheckpointMeta, config: RunConfig, batch: ResolvedBatch, train_iters: int
) -> list[tuple[str, Any, Any]]:
    """(key, value then, value now) of the keys that decide the order of samples and are different now."""
    saved, now = meta.config, config.model_dump(mode="json")
    pairs = [
        (key, saved[section].get(key, SECTIONS[section].model_fields[key].default), now[section][key])
        for section, keys in ORDER_KEYS.items()
        for key in keys
        if section != "data" or not same_data(saved["data"], now["data"], key)
    ]
    length = ModelConfig.model_validate(saved["model"]).sequence_length
    pairs.append(("seq_length", length, config.model.sequence_length))
    saved_batch = resolve_batch(BatchConfig.model_validate(saved["batch"]), meta.layout["dp_size"])
    pairs.append(("train_batch_size", saved_batch.train_batch_size, batch.train_batch_size))
    # Batch size and length decide together how many epochs are shuffled as one.
    pairs.append(("train_iters", saved["training"]["train_iters"], train_iters))
    return [(key, before, after) for key, before, after in pairs if before != after]
