"""What a hook may do: react to a step, or show what others measured.

Trainer ──on_start──▶ every hook                     once, after a checkpoint was loaded
        ──after_step(result)──▶ every hook, in order      once per optimizer step
        ──on_end──▶ every hook                       once, also after a signal, not after an error

a hook that measures ──trainer.publish(Metrics)──▶ on_metrics of every hook that shows
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from megamesh.engine.engine import StepResult

if TYPE_CHECKING:
    from megamesh.training.trainer import Trainer


@dataclass(frozen=True)
class Metrics:
    """Named numbers of one step. `kind` says what was measured: training steps, or an evaluation of a split."""

    kind: Literal["train", "valid", "test"]
    step: int
    values: dict[str, float]


class Hook:
    """A side effect of training; every method may be left out."""

    def on_start(self, trainer: Trainer) -> None: ...

    def after_step(self, trainer: Trainer, result: StepResult) -> None: ...

    def on_metrics(self, metrics: Metrics) -> None: ...

    def on_end(self, trainer: Trainer) -> None: ...
