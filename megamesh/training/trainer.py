"""The training loop: one optimizer step after the other, everything else in hooks.

    batches ──gradient_accumulation_steps at a time──▶ engine.train_step ──▶ StepResult ──▶ RunState ──▶ hooks

    on_start      of every hook, the last one first, once, after a checkpoint was loaded: what shows and saves comes before what measures
    after_step    of every hook, in order, once per optimizer step
    on_end        of every hook, once, also after a signal
    on_error      of every hook, once, in place of on_end where an error ended training; other ranks may have stopped anywhere
    on_metrics    of every hook, when a hook that measures calls trainer.publish(Metrics): others show, it measures

The run's whole state is the engine's (weights, moments, step count) and RunState; both are in every checkpoint. Before each
micro-batch the random streams are set from the seed and the index of its first sample, so a resumed run draws what the
uninterrupted one would have drawn.

A hook of your own (`hooks: [my_module:MyHook]` in a YAML file) is a subclass of Hook that is built without arguments on every rank. It
finds everything in the trainer: `engine` (`.module` is this rank's part of the model), `mesh`, `batch`, `state`, `train_iters`, and in
each step's StepResult the loss, the rate and the gradient norm of every parameter. What it publishes goes to console, TensorBoard and
metrics.jsonl alike, from rank 0: `trainer.publish(Metrics("my_kind", trainer.state.step, {"some/number": 0.5}))`, whatever the names.
Ranks hold parts of weights, batches and layers: megamesh/training/hooks/sharded.py makes norms and means of them global. Its functions are
collectives, so every rank calls them, in the same steps. An error in a hook ends the run, and names the hook.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from torch import Tensor

from megamesh.checkpoint.meta import RunState
from megamesh.config.batch import ResolvedBatch
from megamesh.data.samples.batch import Batch
from megamesh.engine.engine import StepResult, TrainingEngine
from megamesh.errors import TrainingError
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.random import seed_micro_batch
from megamesh.training.token_weights import weigh_tokens

ROW_NAMES = ("kind", "step")


@dataclass(frozen=True)
class Metrics:
    """Named numbers of one step. `kind` says what was measured: training steps (train), an evaluation of a split (valid, test), or a
    word of a hook's own."""

    kind: str
    step: int
    values: Mapping[str, float]


def _number(metrics: Metrics, name: str, value: object) -> float:
    text = f"the {metrics.kind} metrics of step {metrics.step} have {name!r}"
    if name in ROW_NAMES:
        raise TrainingError(f"{text}, which every row of metrics has already; give it another name")
    if not hasattr(value, "__float__"):
        raise TrainingError(f"{text}={value!r}, which is not a number; publish numbers only")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TrainingError(
            f"{text}, a {type(value).__name__} that is not one number ({error}); publish numbers only"
        ) from error


class Hook:
    """A side effect of training; every method may be left out."""

    def on_start(self, trainer: "Trainer") -> None: ...

    def after_step(self, trainer: "Trainer", result: StepResult) -> None: ...

    def on_metrics(self, metrics: Metrics) -> None: ...

    def on_end(self, trainer: "Trainer") -> None: ...

    def on_error(self) -> None: ...


class Trainer:
    """Owns the loop. Hooks read its attributes; a hook that wants to end the run sets `stop_reason`, and one that wants a checkpoint after
    this step, to be kept, `save_due`; one rank's word is enough where the hook is a user's. `time_is_over`: by the clock a checkpoint is
    due, which the next may replace."""

    def __init__(
        self,
        engine: TrainingEngine,
        mesh: ProcessMesh,
        batches: Iterator[Batch],
        batch: ResolvedBatch,
        state: RunState,
        hooks: Sequence[Hook],
        *,
        train_iters: int,
        sequence_length: int,
        masked: bool = False,
    ):
        """`masked`: not every token of the batches counts in the loss."""
        self.engine, self.mesh, self.batches, self.batch = engine, mesh, batches, batch
        self.state, self.hooks, self.train_iters = state, hooks, train_iters
        self.sequence_length, self.masked = sequence_length, masked
        self.stop_reason: str | None = None
        self.save_due = self.time_is_over = False
        self.step_seconds = 0.0

    def train(self) -> None:
        """Run to train_iters, or until a hook sets `stop_reason` or raises."""
        try:
            self._train()
        except BaseException:
            for hook in self.hooks:
                hook.on_error()
            raise

    def _train(self) -> None:
        for hook in reversed(self.hooks):
            hook.on_start(self)
        while self.state.step < self.train_iters and self.stop_reason is None:
            started = time.perf_counter()
            result = self.engine.train_step(self._micro_batches())
            self.step_seconds = time.perf_counter() - started
            self.state = self.state.after_step(
                self.batch.train_batch_size, skipped=result.skipped, overflowed=result.overflowed
            )
            self.save_due = False
            for hook in self.hooks:
                hook.after_step(self, result)
        for hook in self.hooks:
            hook.on_end(self)

    @property
    def consumed_tokens(self) -> int:
        """Tokens that the steps so far have read, skipped steps counted."""
        return self.state.consumed_samples * self.sequence_length

    def publish(self, metrics: Metrics) -> None:
        """Show a hook's measurements to all hooks, as floats: a value may be whatever float() makes a number of, a tensor with one element
        too. Raises TrainingError for anything else."""
        shown = replace(metrics, values={name: _number(metrics, name, value) for name, value in metrics.values.items()})
        for hook in self.hooks:
            hook.on_metrics(shown)

    def _micro_batches(self) -> Iterator[tuple[Tensor, ...]]:
        """This rank's inputs for one optimizer step, each with its own random streams set just before it is used."""
        micro, dp = self.batch.micro_batch_size, self.mesh.size("dp")
        first_sample = self.state.consumed_samples + self.mesh.rank("dp") * micro
        batches: Iterable[Batch] = islice(self.batches, self.batch.gradient_accumulation_steps)
        if self.masked:
            batches = weigh_tokens(list(batches), self.mesh, self.engine.device)
        for batch in batches:
            seed_micro_batch(self.state.seed, first_sample)
            yield batch.to(self.engine.device).inputs()
            first_sample += micro * dp
