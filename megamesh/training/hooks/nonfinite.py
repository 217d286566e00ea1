"""Stops a run that skips too many steps in a row because loss or gradient are not finite.

Overflows by which a dynamic loss scale finds its place are said, not counted: the scale falls until it can fall no further.
"""

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
        if result.overflowed:
            log.info(
                "step %d skipped: the gradient of %s overflows fp16 at loss scale %.10g; the next step is at %.10g",
                trainer.state.step, result.bad_parameter, result.loss_scale, trainer.engine.loss_scale.scale,
            )  # fmt: skip
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
