"""The ways to place a model on a number of GPUs, and why some of them are none.

    RunConfig, number of GPUs ──▶ tp × pp × dp = GPUs ──▶ × micro-batch × ZeRO stage × recomputation ──▶ Layout, or a reason

    divisibility       heads, MLP, vocabulary and sequence over tp; more pipeline ranks than any part of the model has layers
    batch              train_batch_size over dp; an order for the number of micro-batches
    ZeRO               2 and 3 with a pipeline; 3 with compile; nothing to divide with one data-parallel rank

With tp > 1 states are split by tokens (sequence_parallel) wherever the sequence divides: it costs nothing on the wires and saves memory.
Micro-batches are powers of two, and the configuration's own. Nothing here estimates anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from megamesh.config.batch import ResolvedBatch
from megamesh.config.deepspeed import effective_zero_stage
from megamesh.config.pipeline import METHODS, NEOX_UNIFORM, part_sizes
from megamesh.config.rule import divisors
from megamesh.config.sections import RunConfig
from megamesh.config.tensor_parallel import fitting_sizes
from megamesh.errors import ConfigError
from megamesh.pipeline.order import micro_batches_fit

Recompute = Literal["none", "block", "loop"]
LARGEST_MICRO_BATCH = 64
PASSES = (1, 2, 4)
"""How often a plain stack may go round the ranks."""


@dataclass(frozen=True)
class Layout:
    """One way to place a model. `num_passes` is given for a plain stack on a pipeline only."""

    tp: int
    pp: int
    dp: int
    sequence_parallel: bool
    num_passes: int | None
    zero_stage: int
    micro_batch_size: int
    num_micro_batches: int
    recompute: Recompute

    @property
    def sizes(self) -> tuple[int, int, int]:
        """tp, pp, dp."""
        return self.tp, self.pp, self.dp

    def keys(self, run: RunConfig) -> dict[str, int | str | bool]:
        """The keys that choose this layout, set over those of `run`."""
        keys: dict[str, int | str | bool] = {
            "model_parallel_size": self.tp,
            "sequence_parallel": self.sequence_parallel,
            "pipe_parallel_size": self.pp,
            "zero_optimization.stage": self.zero_stage,
            "train_micro_batch_size_per_gpu": self.micro_batch_size,
            "gradient_accumulation_steps": self.num_micro_batches,
            "checkpoint_activations": self.recompute != "none",
        }
        keys |= {} if self.recompute == "none" else {"checkpoint_activations_per": self.recompute}
        keys |= {} if self.num_passes is None else {"pipe_num_passes": self.num_passes}
        return keys if _is_named(run) else keys | {"pipe_partition_method": "cost"}

    def batch(self) -> ResolvedBatch:
        """The batch arithmetic of this layout."""
        total = self.micro_batch_size * self.num_micro_batches * self.dp
        return ResolvedBatch(total, self.micro_batch_size, self.num_micro_batches, self.dp)

    def apply_to(self, run: RunConfig) -> RunConfig:
        """The configuration, laid out so."""
        parallel = {
            "model_parallel_size": self.tp,
            "sequence_parallel": self.sequence_parallel,
            "pipe_parallel_size": self.pp,
            "pipe_num_passes": self.num_passes,
            "pipe_partition_method": run.parallel.pipe_partition_method if _is_named(run) else "cost",
        }
        per = "block" if self.recompute == "none" else self.recompute
        training = {"checkpoint_activations": self.recompute != "none", "checkpoint_activations_per": per}
        zero = {"zero_optimization": {**run.optimizer.zero_optimization, "stage": self.zero_stage}}
        return run.model_copy(
            update={
                "parallel": run.parallel.model_copy(update=parallel),
                "training": run.training.model_copy(update=training),
                "optimizer": run.optimizer.model_copy(update=zero),
            }
        )


def _is_named(run: RunConfig) -> bool:
    """Whether the layers are placed by a method, and not by numbers that one size of pipeline has."""
    return run.parallel.pipe_partition_method.replace(" ", "") in (*METHODS, NEOX_UNIFORM)


@dataclass(frozen=True)
class RuledOut:
    """Why layouts are not possible: a kind of reason, what it concerns, and the reason in words."""

    kind: Literal["divisibility", "batch", "ZeRO", "memory"]
    what: str
    reason: str


def layouts(run: RunConfig, num_gpus: int, vocab_size: int) -> Iterator[Layout | RuledOut]:
    """Every layout of `run` on so many GPUs, and what rules others out. ConfigError where train_batch_size is not given."""
    if run.batch.train_batch_size is None:
        raise ConfigError("train_batch_size is not given, and layouts differ by how they divide it; give it with --set")
    for tp in divisors(num_gpus):
        if problem := _tensor_problem(run, tp, vocab_size):
            yield RuledOut("divisibility", f"tp {tp}", problem)
            continue
        for pp in divisors(num_gpus // tp):
            yield from _of_sizes(run, tp, pp, num_gpus // tp // pp)


def _tensor_problem(run: RunConfig, tp: int, vocab_size: int) -> str | None:
    split = run.parallel.model_copy(update={"model_parallel_size": tp, "sequence_parallel": False})
    sizes = fitting_sizes(run.model_copy(update={"parallel": split}), vocab_size)
    if tp in sizes or tp == 1:
        return None
    return f"heads, MLP, sequence and vocabulary divide by {', '.join(map(str, sizes))}"


def _of_sizes(run: RunConfig, tp: int, pp: int, dp: int) -> Iterator[Layout | RuledOut]:
    what, total = f"tp {tp} pp {pp} dp {dp}", run.batch.train_batch_size or 0
    deepest = _deepest_part(run)
    if pp > deepest:
        yield RuledOut("divisibility", what, f"no part of the model has more than {deepest} layers")
        return
    if total % dp:
        yield RuledOut("batch", what, f"train_batch_size={total} is not divisible by {dp} data-parallel ranks")
        return
    stages, refused = _zero_stages(run, pp, dp)
    if refused:
        yield RuledOut("ZeRO", what, refused)
    passes = [number for number in PASSES if number * pp <= run.model.num_layers]
    for micro in _micro_batch_sizes(run, total // dp):
        num_micro_batches = total // dp // micro
        for num_passes in passes if run.recursion.layout is None and pp > 1 else [None]:
            if pp > 1 and not _has_order(run, pp, num_passes, num_micro_batches):
                reason = f"{run.parallel.pipe_schedule} has no order for {num_micro_batches} micro-batches of {micro}"
                yield RuledOut("batch", what, reason)
                continue
            for stage in stages:
                for recompute in _recomputations(run):
                    split = tp > 1 and run.model.sequence_length % tp == 0
                    yield Layout(tp, pp, dp, split, num_passes, stage, micro, num_micro_batches, recompute)


def _has_order(run: RunConfig, pp: int, num_passes: int | None, num_micro_batches: int) -> bool:
    passes = num_passes or len(part_sizes(run.recursion.layout, None))
    passes += not run.model.no_weight_tying  # the head's own
    return micro_batches_fit(run.parallel.pipe_schedule, pp, passes, num_micro_batches)


def _deepest_part(run: RunConfig) -> int:
    sizes = part_sizes(run.recursion.layout, None)
    return max(run.model.num_layers if size is None else size for size in sizes)


def _zero_stages(run: RunConfig, pp: int, dp: int) -> tuple[list[int], str | None]:
    """Stages that differ in what they do, and why others are left out."""
    no_zero = run.optimizer.model_copy(update={"zero_optimization": {"stage": 0}})
    lowest = effective_zero_stage(no_zero, run.precision)
    if dp == 1:
        return [lowest], None
    if pp > 1:
        return list(range(lowest, 2)), "stages 2 and 3 do not work with a pipeline"
    if run.training.compile:
        return list(range(lowest, 3)), "stage 3 does not work with compile"
    return list(range(lowest, 4)), None


def _micro_batch_sizes(run: RunConfig, samples: int) -> list[int]:
    """Sizes that divide a data-parallel rank's samples."""
    sizes = {2**power for power in range(LARGEST_MICRO_BATCH.bit_length())}
    sizes |= {run.batch.train_micro_batch_size_per_gpu or 1}
    return sorted(size for size in sizes if samples % size == 0)


def _recomputations(run: RunConfig) -> tuple[Recompute, ...]:
    return ("none", "block") if run.recursion.layout is None else ("none", "block", "loop")
