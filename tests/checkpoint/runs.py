"""What workers do in the checkpoint tests: train, save, load, and report bit patterns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megamesh.checkpoint.load import load_checkpoint
from megamesh.checkpoint.meta import RunState
from megamesh.checkpoint.save import save_checkpoint
from megamesh.engine.engine import TrainingEngine
from megamesh.engine.zero_access import STATE_KEYS, Fragment
from tests.engine.runs import GATED, GLOBAL_BATCH, Setup, fingerprint, full_state, model_weights, train, training

CONFIG = {"hidden_size": 32, "recursion": "1+1R2+1"}
SOURCES = {"model.yml": "hidden_size: 32\n", "site.yml": "save: somewhere\n"}
DIVIDED = GATED | {"use_qk_layernorm": True}  # the model of runs that are divided over the tensor axis


def save(folder: Path, engine: TrainingEngine, **options: Any) -> Path:
    step = engine.num_steps
    state = RunState(step, step * GLOBAL_BATCH, seed=7, skipped_steps=step % 3)
    return save_checkpoint(folder, engine, state, config=CONFIG, sources=SOURCES, **options)


def fragments(engine: TrainingEngine) -> Iterator[tuple[str, str, Fragment]]:
    """Key, parameter and values of all masters and moments that this rank holds."""
    engine.access.prepare_state()
    for name, parameter in engine.named_parameters():
        for key in STATE_KEYS:
            fragment = engine.access.fragment(parameter, key)
            if fragment is not None:
                yield key, name, fragment


def bits(engine: TrainingEngine) -> dict[str, bytes]:
    """What this rank holds."""
    state = {f"{key}.{name}": fragment.values for key, name, fragment in fragments(engine)}
    return fingerprint(state | model_weights(engine))


def train_and_save_half_way(setup: Setup, folder: Path, num_steps: int) -> tuple[list[float], dict[str, bytes]]:
    """Losses of all steps, and the state after the last. Saving changes no bit of it."""
    with training(setup) as engine:
        losses = [result.loss for result in train(engine, 0, num_steps // 2)]
        before = bits(engine)
        save(folder, engine)
        assert bits(engine) == before
        losses += [result.loss for result in train(engine, num_steps // 2, num_steps)]
        return losses, bits(engine)


def train_and_save(setup: Setup, folder: Path, num_steps: int) -> dict[str, torch.Tensor]:
    with training(setup) as engine:
        train(engine, 0, num_steps)
        save(folder, engine)
        return full_state(engine)


def load_and_train(setup: Setup, path: Path, last_step: int) -> tuple[RunState, list[float], dict[str, bytes]]:
    """In an engine whose own weights are others."""
    with training(setup) as engine:
        state = load_checkpoint(path, engine)
        losses = [result.loss for result in train(engine, state.step, last_step)]
        return state, losses, bits(engine)


def load_each(setup: Setup, paths: list[Path]) -> list[tuple[int, dict[str, torch.Tensor], dict[str, bytes]]]:
    """For each checkpoint: Adam's step count, masters and moments, the model's own weights."""
    found = []
    with training(setup) as engine:
        for path in paths:
            load_checkpoint(path, engine)
            found.append((engine.access.step_count(), full_state(engine), fingerprint(model_weights(engine))))
    return found if dist.get_rank() == 0 else []
