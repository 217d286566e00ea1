"""Measures training: loss, gradient norm, speed, utilisation and the time left, every log_interval steps."""

from megamesh.engine.engine import StepResult
from megamesh.training.throughput import Throughput
from megamesh.training.trainer import Hook, Metrics, Trainer


class ProgressHook(Hook):
    """Publishes `train` metrics: means over the steps since the last ones, skipped steps left out of the loss.

    Speed counts the time inside optimizer steps (data loading included), not evaluations and checkpoints.
    """

    def __init__(self, interval: int, throughput: Throughput):
        self.interval, self.throughput = interval, throughput
        self._restart()

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        self._seconds += trainer.step_seconds
        if result.skipped:
            self._num_skipped += 1
        else:
            self._losses.append(result.loss)
        step, last = trainer.state.step, trainer.train_iters
        if step % self.interval and step != last:
            return
        num_steps = len(self._losses) + self._num_skipped
        seconds_per_step = self._seconds / num_steps
        values = {
            "loss": sum(self._losses) / len(self._losses) if self._losses else float("nan"),
            "learning_rate": result.learning_rate,
            "grad_norm": result.grad_norm,
            "consumed_tokens": float(trainer.consumed_tokens),
            "skipped_steps": float(trainer.state.skipped_steps),
            "seconds_left": seconds_per_step * (last - step),
            **self.throughput.rates(seconds_per_step),
        }
        if result.loss_scale is not None:
            values["loss_scale"] = result.loss_scale
        trainer.publish(Metrics("train", step, values))
        self._restart()

    def _restart(self) -> None:
        self._seconds = 0.0
        self._losses: list[float] = []
        self._num_skipped = 0
