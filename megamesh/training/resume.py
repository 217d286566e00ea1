"""Continuing from a checkpoint: which one, and whether it fits this configuration.

save/latest exists ──▶ continue this run            (the same command, typed again)
else load/latest   ──▶ continue, or with finetune take the weights only and start at step 0
else               ──▶ start at step 0
"""

import logging
from pathlib import Path
from typing import Any

from megamesh.checkpoint.folder import find_latest
from megamesh.checkpoint.load import load_checkpoint
from megamesh.checkpoint.meta import RunState
from megamesh.checkpoint.reader import read_meta
from megamesh.config.sections import CheckpointConfig, OptimizerConfig, RunConfig
from megamesh.engine.engine import TrainingEngine
from megamesh.errors import CheckpointError

log = logging.getLogger(__name__)
ORDER_KEYS = {
    "model": ("seq_length", "max_position_embeddings"),
    "training": ("seed",),
    "data": ("data_path", "split", "train_data_paths", "train_data_weights"),
    "batch": ("train_batch_size",),
}
"""Keys that decide which samples follow the consumed ones."""
FREE_KEYS = {
    "seq_length", "attention_config", "attention_dropout", "hidden_dropout",
    "init_method", "output_layer_init_method", "init_method_std", "mesh_router_init", "mesh_router_slot_bias",
    "vocab_size", "make_vocab_size_divisible_by", "num_kv_heads", "intermediate_size", "mlp_multiple_of", "mesh_num_slots",
}  # fmt: skip
"""Keys of model and recursion that trained weights do not depend on, or whose resolved value shows in the weights' shapes."""


def resume(engine: TrainingEngine, config: RunConfig, train_iters: int) -> RunState:
    """Load what the run continues from into the engine; the state to go on with. A collective."""
    path, fresh_start = choose_checkpoint(config.checkpoint)
    if path is None:
        return RunState(step=0, consumed_samples=0, seed=config.training.seed)
    meta = read_meta(path)
    check_architecture(meta.config, config, path)
    if fresh_start:
        load_checkpoint(path, engine, weights_only=True)
        log.info("weights of %s; starting at step 0", path)
        return RunState(step=0, consumed_samples=0, seed=config.training.seed)
    check_schedule(meta.config, config.optimizer, train_iters, path)
    for key, before, now in changed_order_keys(meta.config, config):
        log.warning(
            "%s was %s when %s was saved and is %s now: the samples that follow are not those of one straight run",
            key,
            before,
            path,
            now,
        )
    state = load_checkpoint(path, engine, load_optimizer=not config.checkpoint.no_load_optim)
    log.info("continuing from %s at step %d, sample %d", path, state.step, state.consumed_samples)
    return state


def choose_checkpoint(config: CheckpointConfig) -> tuple[Path | None, bool]:
    """The checkpoint to read, and whether only its weights count; None to start from nothing.

    Raises CheckpointError where `load` names a folder of its own that holds no checkpoint.
    """
    if config.save and (own := find_latest(Path(config.save))):
        return own, False
    if config.load is None or config.load == config.save:
        return None, False
    found = find_latest(Path(config.load))
    if found is None:
        raise CheckpointError(
            f"load={config.load}: no complete checkpoint (no `latest` file) there; correct it, or leave load out"
        )
    return found, config.finetune


def check_architecture(saved: dict[str, Any], config: RunConfig, path: Path) -> None:
    """Raise CheckpointError where the weights belong to another model, also one whose parameters have the same shapes."""
    now = config.model_dump(mode="json")
    changed = [
        f"{key} was {saved[section].get(key)}, is {value}"
        for section in ("model", "recursion")
        for key, value in now[section].items()
        if key not in FREE_KEYS and saved[section].get(key) != value
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


def changed_order_keys(saved: dict[str, Any], config: RunConfig) -> list[tuple[str, Any, Any]]:
    """(key, value then, value now) of the keys that decide the order of samples and are different now."""
    now = config.model_dump(mode="json")
    return [
        (key, saved[section][key], now[section][key])
        for section, keys in ORDER_KEYS.items()
        for key in keys
        if saved[section][key] != now[section][key]
    ]
