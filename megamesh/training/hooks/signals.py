"""SIGTERM, SIGUSR1 and Ctrl-C end a run in order: the step in progress is finished, a checkpoint saved, and the status is 0.

One rank that got the signal is enough: the ranks agree after every step, in one exchange, which also carries rank 0's word that a
save by time is due. Of several signals the first one counts: launchers send one of their own after it.
"""

import signal
from types import FrameType

from megamesh.engine.engine import StepResult
from megamesh.parallel.agree import largest_of_each
from megamesh.training.hooks.save_clock import SaveClock
from megamesh.training.trainer import Hook, Trainer

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class SignalHook(Hook):
    """Turns a signal into the trainer's `stop_reason`, and the clock's word into `time_is_over`. Install it before slow set-up work, so
    that no signal is lost."""

    def __init__(self) -> None:
        self.clock = SaveClock(None)
        self.training = False
        self.saves = True  # False: the run has no folder for checkpoints, so what is said of them would be untrue
        self._received = 0
        for number in SIGNALS:
            signal.signal(number, self.remember)

    def on_start(self, trainer: Trainer) -> None:
        self.training = True

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        number, due = largest_of_each([self._received, self.clock.is_due()], trainer.engine.device)
        trainer.time_is_over = bool(due)
        if number:
            trainer.stop_reason = signal.Signals(number).name

    def remember(self, number: int, _frame: FrameType | None = None) -> None:
        """A signal's handler: the run stops after this step."""
        self._received = self._received or number
