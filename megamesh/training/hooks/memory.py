"""Tells how much memory the fullest rank has held: after the first log_interval steps, and at the end.

The first step that changes the weights creates the optimizer's moments, at its very end: its activations are gone by then. So the
peak of training is reached in the step after it, and is not told before.
"""

import logging

from megamesh.engine.engine import StepResult
from megamesh.engine.peak_memory import peak_memory
from megamesh.training.trainer import Hook, Trainer

log = logging.getLogger(__name__)


class MemoryHook(Hook):
    """Ranks hold different parts of a model, so the fullest one decides what fits."""

    def __init__(self, log_interval: int):
        self._steps_left = log_interval
        self._has_moments = self._told = False

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        self._steps_left -= 1
        if self._steps_left <= 0 and self._has_moments and not self._told:
            self._told = True
            self._tell(trainer)
        self._has_moments |= not result.skipped

    def on_end(self, trainer: Trainer) -> None:
        self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        peak = peak_memory(trainer.engine.device)
        log.info(
            "peak memory: %.2f GiB on rank %d, the fullest; %.2f GiB on average",
            peak.largest_bytes / 2**30, peak.fullest_rank, peak.mean_bytes / 2**30,
        )  # fmt: skip
