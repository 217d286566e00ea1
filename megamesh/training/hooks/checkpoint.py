"""Writes checkpoints when they are due, and when training ends."""

import logging
import time
from pathlib import Path

from megamesh.checkpoint.folder import find_latest
from megamesh.checkpoint.save import save_checkpoint
from megamesh.config.sections import CheckpointConfig
from megamesh.engine.engine import StepResult
from megamesh.training.trainer import Hook, Trainer

log = logging.getLogger(__name__)


class CheckpointHook(Hook):
    """Saves at the steps that the configuration names, at the end, and after a signal."""

    def __init__(self, config: CheckpointConfig, run_config: dict[str, object], sources: dict[str, str]):
        assert config.save is not None, "a run without a save folder has no checkpoint hook"
        self.config, self.folder = config, Path(config.save)
        self.run_config, self.sources = run_config, sources
        self._saved_step = -1

    def on_start(self, trainer: Trainer) -> None:
        self._saved_step = trainer.state.step
        if trainer.state.step == 0 and 0 in self.config.extra_save_iters and find_latest(self.folder) is None:
            self._save(trainer)

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if is_due(trainer.state.step, self.config):
            self._save(trainer)

    def on_end(self, trainer: Trainer) -> None:
        if self._saved_step != trainer.state.step:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        started = time.perf_counter()
        path = save_checkpoint(
            self.folder,
            trainer.engine,
            trainer.state,
            config=self.run_config,
            sources=self.sources,
            keep_last=self.config.keep_last_n_checkpoints,
        )
        self._saved_step = trainer.state.step
        log.info("saved %s in %.1f s", path, time.perf_counter() - started)


def is_due(step: int, config: CheckpointConfig) -> bool:
    """Whether a checkpoint follows this step; with checkpoint_scale log at 1, f, f², … for factor f, as in GPT-NeoX."""
    if step in config.extra_save_iters:
        return True
    factor = config.checkpoint_factor
    if factor is None:
        return False
    if config.checkpoint_scale == "linear":
        return step % factor == 0
    while step % factor == 0 and step > 1 and factor > 1:
        step //= factor
    return step == 1
