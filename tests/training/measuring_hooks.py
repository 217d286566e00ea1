"""Hooks as a user would write them, named in the configurations of tests."""

import os
import signal

import torch
import torch.distributed as dist

from megamesh.engine.engine import StepResult
from megamesh.training.hooks.sharded import global_means, norms_of_shards, norms_of_state
from megamesh.training.trainer import Hook, Metrics, Trainer

NOT_A_HOOK = 7


class Measure(Hook):
    """Norms and means that the helpers make global, after each step."""

    def on_start(self, trainer: Trainer) -> None:
        self._sums: dict[str, tuple[float, float]] = {}
        for name, module in trainer.engine.module.named_modules():
            if name in ("core.0", "coda.0"):
                module.register_forward_hook(lambda module, _, out, name=name: self._look(module, name, out))
        self._before = self._weights(trainer)

    def _look(self, module: torch.nn.Module, name: str, output: torch.Tensor) -> None:
        if module.training:
            total, count = self._sums.get(name, (0.0, 0.0))
            squares = output.detach().double().square()
            self._sums[name] = (total + float(squares.sum()), count + squares.numel())

    def _weights(self, trainer: Trainer) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in trainer.engine.named_parameters()}

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        step, engine, now = trainer.state.step, trainer.engine, self._weights(trainer)
        updates = norms_of_shards(engine, {name: now[name] - before for name, before in self._before.items()})
        trainer.publish(Metrics("update", step, updates))
        trainer.publish(Metrics("gradient", step, result.grad_norms))
        for key in ("fp32", "exp_avg", "exp_avg_sq"):
            trainer.publish(Metrics(key, step, norms_of_state(engine, key)))
        trainer.publish(Metrics("mean_square", step, global_means(self._sums)))
        self._before, self._sums = now, {}


class Stop(Hook):
    """Gives its process SIGTERM in the third step."""

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if trainer.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


class Fail(Hook):
    """Raises in the second step."""

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if trainer.state.step == 2:
            _divide(0)


def _divide(number: int) -> float:
    return 1 / number


class PublishText(Hook):
    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        trainer.publish(Metrics("words", trainer.state.step, {"word": "seven"}))  # type: ignore[dict-item]


class Keep(Hook):
    """Wants the checkpoint of the second step."""

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        trainer.save_due = trainer.state.step == 2


class OneRank(Hook):
    """On rank 1 alone: wants the checkpoint of the second step, and to stop after the third."""

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if dist.get_rank() == 1 and trainer.state.step == 2:
            trainer.save_due = True
        if dist.get_rank() == 1 and trainer.state.step == 3:
            trainer.stop_reason = "enough"


class NeedsArguments(Hook):
    def __init__(self, path: str):
        self.path = path


def make_something_else() -> dict[str, float]:
    return {}
