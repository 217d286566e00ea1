"""Writes checkpoints when they are due, and when training ends."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from megamesh.checkpoint.background import BackgroundSaver, Saved
from megamesh.checkpoint.folder import find_latest
from megamesh.checkpoint.save import Target, take, write
from megamesh.config.keys import CheckpointConfig
from megamesh.engine.engine import StepResult
from megamesh.errors import CheckpointError
from megamesh.training.hooks.save_clock import SaveClock
from megamesh.training.trainer import Hook, Trainer

log = logging.getLogger(__name__)


class CheckpointHook(Hook):
    """Saves at the steps that the configuration names, when a hook or the clock says so, at the end, and after a signal; with async_save
    while training goes on.

    A save that fails ends the run with CheckpointError: at once, or with async_save after the step during which it failed.
    """

    def __init__(
        self, config: CheckpointConfig, run_config: Mapping[str, object], sources: Mapping[str, str], clock: SaveClock
    ):
        assert config.save is not None, "a run without a save folder has no checkpoint hook"
        self.config, self.run_config, self._clock = config, run_config, clock
        self.target = Target(Path(config.save), sources, config.keep_last_n_checkpoints)
        self._background = BackgroundSaver(self.target) if config.async_save else None
        self._saved_step = -1

    def on_start(self, trainer: Trainer) -> None:
        self._saved_step = trainer.state.step
        self._clock.restart()
        if trainer.state.step == 0 and 0 in self.config.extra_save_iters and find_latest(self.target.folder) is None:
            self._save(trainer)

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if self._background is not None:
            _tell(self._background.poll())
        if is_due(trainer.state.step, self.config) or trainer.save_due:
            self._save(trainer)
        elif trainer.time_is_over and trainer.stop_reason is None and trainer.state.step < trainer.train_iters:
            self._save(trainer, until_next=True)

    def on_end(self, trainer: Trainer) -> None:
        if self._saved_step != trainer.state.step:
            self._save(trainer)
        self._finish()

    def on_error(self) -> None:
        try:
            self._finish()
        except CheckpointError as error:
            log.error("%s", error)

    def _save(self, trainer: Trainer, *, until_next: bool = False) -> None:
        self._finish()
        self._saved_step = trainer.state.step
        snapshot = take(trainer.engine, trainer.state, self.run_config, until_next=until_next)
        if self._background is not None:
            self._background.start(snapshot)
        else:
            started = time.perf_counter()
            path = write(self.target, snapshot)
            log.info("saved %s in %.1f s", path, time.perf_counter() - started)
        self._clock.restart()

    def _finish(self) -> None:
        """Wait for the save in progress, if there is one."""
        if self._background is not None:
            _tell(self._background.wait())


def when_saved(config: CheckpointConfig) -> str:
    """The times of a run's saves, in words."""
    times = []
    if config.checkpoint_factor is not None and config.checkpoint_scale == "linear":
        times.append("every step" if config.checkpoint_factor == 1 else f"every {config.checkpoint_factor} steps")
    elif config.checkpoint_factor is not None:
        times.append(f"at steps 1, {config.checkpoint_factor}, {config.checkpoint_factor**2}, …")
    if config.extra_save_iters:
        times.append(
            f"at step{'s' * (len(config.extra_save_iters) > 1)} {', '.join(map(str, config.extra_save_iters))}"
        )
    if config.minutes_between_saves is not None:
        times.append(f"after {config.minutes_between_saves:g} minutes without a save")
    return ", ".join([*times, "at the end, and when a signal stops the run"])


def _tell(saved: Saved | None) -> None:
    if saved is not None:
        log.info(
            "saved %s in %.1f s, %.2f s of which training waited",
            saved.path, saved.total_seconds, saved.blocking_seconds,
        )  # fmt: skip


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
