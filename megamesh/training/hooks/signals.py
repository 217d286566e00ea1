"""SIGTERM and SIGUSR1 end a run in order: the step in progress is finished, a checkpoint saved, and the status is 0.

One rank that got the signal is enough: the ranks agree after every step.
"""

import signal
from types import FrameType

from megamesh.engine.engine import StepResult
from megamesh.parallel.agree import largest
from megamesh.training.trainer import Hook, Trainer

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class SignalHook(Hook):
    """Turns a signal into the trainer's stop_reason. Install it before slow set-up work, so that no signal is lost."""

    def __init__(self) -> None:
        self._received = 0
        for number in SIGNALS:
            signal.signal(number, self._remember)

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if number := largest(self._received, trainer.engine.device):
            trainer.stop_reason = signal.Signals(number).name

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._received = number
