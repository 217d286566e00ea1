"""Stops a run that skips too many steps in a row because loss or gradient are not finite."""

import logging

from megamesh.engine.engine import StepResult
from megamesh.errors import TrainingError
from megamesh.training.trainer import Hook, Trainer

log = logging.getLogger(__name__)


class NonFiniteHook(Hook):
    """Names the first bad parameter of every skipped step; raises TrainingError at `limit` in a row, saving nothing."""

    def __init__(self, limit: int):
        self.limit = limit

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if not result.skipped:
            return
        in_a_row = trainer.state.consecutive_skipped_steps
        log.warning(
            "step %d skipped: %s is not finite (loss %g; %d in a row, the run stops at %d)",
            trainer.state.step, result.bad_parameter, result.loss, in_a_row, self.limit,
        )  # fmt: skip
        if in_a_row >= self.limit:
            raise TrainingError(
                f"step {trainer.state.step}: {in_a_row} non-finite steps in a row (max_nonfinite_steps={self.limit}), the last in "
                f"{result.bad_parameter}; the last checkpoint is intact. Lower the learning rate, or look at the data of these steps"
            )
