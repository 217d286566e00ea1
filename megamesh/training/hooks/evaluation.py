"""Validation loss every eval_interval steps and at the end, of each part too where there are parts; test loss at the end."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from megamesh.data.samples.batch import Batch
from megamesh.engine.engine import StepResult
from megamesh.evaluation.perplexity import mean_loss, perplexity
from megamesh.training.trainer import Hook, Metrics, Trainer

Batches = Callable[[], Iterable[Batch]]


class EvaluationHook(Hook):
    """Publishes `valid` and `test` metrics; each call of a split's `Batches` starts over with the same samples.

    `valid` metrics also hold `loss/<name>` for each of `valid_parts`.
    """

    def __init__(
        self,
        interval: int,
        valid: Batches | None,
        test: Batches | None,
        valid_parts: Mapping[str, Batches] | None = None,
    ):
        self.interval, self.valid, self.test = interval, valid, test
        self.valid_parts = dict(valid_parts or {})
        self._last_step = -1

    def after_step(self, trainer: Trainer, result: StepResult) -> None:
        if trainer.state.step % self.interval == 0:
            self._evaluate(trainer, "valid", self.valid)

    def on_end(self, trainer: Trainer) -> None:
        if trainer.state.step < trainer.train_iters:
            return
        if self._last_step != trainer.state.step:
            self._evaluate(trainer, "valid", self.valid)
        self._evaluate(trainer, "test", self.test)

    def _evaluate(self, trainer: Trainer, kind: Literal["valid", "test"], batches: Batches | None) -> None:
        if batches is None:
            return
        started = time.perf_counter()
        loss = mean_loss(trainer.engine, trainer.mesh, batches())
        parts = self.valid_parts if kind == "valid" else {}
        part_losses = {f"loss/{name}": mean_loss(trainer.engine, trainer.mesh, part()) for name, part in parts.items()}
        values = {
            "loss": loss,
            "perplexity": perplexity(loss),
            "consumed_tokens": float(trainer.consumed_tokens),
            "seconds": time.perf_counter() - started,
            **part_losses,
        }
        trainer.publish(Metrics(kind, trainer.state.step, values))
        if kind == "valid":
            self._last_step = trainer.state.step
