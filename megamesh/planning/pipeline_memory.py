"""What the devices of a pipeline would hold, estimated from the configuration: rank by rank, at each rank's fullest moment.

    RunConfig + batch + padded vocabulary + Partition ──▶ parameters of every rank (exact)
    the rank's own list of actions (order.py) ──▶ which micro-batches are in flight at each moment ──▶ bytes at the fullest one

Parts and symbols are those of memory.py. What differs from a model on one rank:

    P            the modules that the partition gives the rank, each layer on one rank only; stages of a rank share weights
    activations  of every stage and micro-batch from its forward to its backward. A state that is only passed on is not kept
    highway      on the last rank only, of every micro-batch: a state from the pass that keeps it to the backward of the first pass that
                 reads it, and its gradient from the backward of the last reader to that of the pass that kept it. These states are
                 nobody's activations there, and sums of states (residual, anchor) keep theirs too
    loss         on the head's rank, for every micro-batch between forward and backward of the head
    receiving    buffers for states and gradients, from the action that posts the receive to the forward or backward that uses them

Not included, beside what memory.py leaves out: what is still being sent.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from megamesh.config.batch import ResolvedBatch
from megamesh.config.sections import RunConfig
from megamesh.model.recursion.scheme import Kept, describe
from megamesh.pipeline.in_flight import Change, fullest_moment
from megamesh.pipeline.order import Action, Kind, training_order
from megamesh.pipeline.stages import Partition, Stage
from megamesh.planning.memory import (
    BYTES_FP32,
    block_elements,
    highway_tokens,
    loss_bytes,
    micro_batch_tokens,
    parameter_bytes,
    parameters_per_rank,
    state_tokens,
)


@dataclass(frozen=True)
class RankMemory:
    """One pipeline rank: its parameters (of one tensor rank), and bytes by part at its fullest moment."""

    num_parameters: int
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def report(self) -> dict[str, int]:
        """The parts with their total, as `memory_per_rank` gives them."""
        return {**self.parts, "total": self.total}


def parameters_of_ranks(run: RunConfig, padded_vocab_size: int, partition: Partition) -> list[int]:
    """Parameters of every pipeline rank, on one of its tensor ranks. Over all of them every parameter is counted once."""
    return [
        parameters_per_rank(run, padded_vocab_size, partial(partition.holds, rank))
        for rank in range(partition.num_ranks)
    ]


def memory_of_ranks(
    run: RunConfig,
    batch: ResolvedBatch,
    padded_vocab_size: int,
    partition: Partition,
    num_micro_batches: int,
    num_parameters: Sequence[int] | None = None,
) -> list[RankMemory]:
    """Every pipeline rank's parameters and estimated bytes, over an order for `num_micro_batches`.

    `num_parameters` are those of `parameters_of_ranks`, where they are known.
    """
    orders = training_order(run.parallel.pipe_schedule, partition.num_ranks, partition.num_passes, num_micro_batches)
    stages = [_StageBytes(run, batch, padded_vocab_size, partition, stage) for stage in partition.stages]
    counts = num_parameters or parameters_of_ranks(run, padded_vocab_size, partition)
    ranks = []
    for actions, count in zip(orders, counts, strict=True):
        alive = fullest_moment(actions, lambda action: stages[action.stage].change(action))
        parts = dict.fromkeys(("activations", "highway", "loss", "receiving"), 0) | alive
        ranks.append(RankMemory(count, parameter_bytes(run, batch, count) | parts))
    return ranks


class _StageBytes:
    """What one micro-batch's actions of one stage do to the memory of the stage's rank."""

    def __init__(
        self, run: RunConfig, batch: ResolvedBatch, padded_vocab_size: int, partition: Partition, stage: Stage
    ):
        tokens, size = micro_batch_tokens(run, batch), run.parallel.model_parallel_size
        width, split = run.precision.bytes_per_value, run.parallel.sequence_parallel
        state = state_tokens(run, batch) * run.model.hidden_size * width
        activations, again = _activation_bytes(run, stage, state, tokens // size * width)
        if stage.pass_index == 0 and stage.boundary is not None and size > 1 and not split:
            activations += state * (partition.stages[stage.index - 1].sends_embeddings)  # received whole, kept in part
        kept_loss, logits = loss_bytes(run, batch, padded_vocab_size) if stage.has_head else (0, 0)
        highway = _highway_changes(run, stage, highway_tokens(run, batch))
        inputs = partition.stages[stage.index - 1].num_outputs * state if stage.index else 0
        outputs = stage.num_outputs * state
        self._changes: dict[Kind, Change] = {
            "receive_forward": Change({"receiving": inputs}),
            "forward": Change(
                {
                    "receiving": -inputs,
                    "activations": activations,
                    "highway": highway["forward", True],
                    "loss": kept_loss,
                },
                {"loss": logits},
            ),
            "receive_backward": Change({"receiving": outputs}),
            "backward": Change(
                {"highway": highway["backward", True]},
                {"activations": again},
                {
                    "receiving": outputs,
                    "activations": activations,
                    "highway": highway["backward", False],
                    "loss": kept_loss,
                },
            ),
        }

    def change(self, action: Action) -> Change:
        return self._changes.get(action.kind, _NOTHING)


_NOTHING = Change()


def _activation_bytes(run: RunConfig, stage: Stage, state: int, per_part: int) -> tuple[int, int]:
    """What a micro-batch keeps in this stage for its backward, and what backward computes again at one time.

    `state` are the bytes of a state, `per_part` those of an element of heads or MLP columns.
    """
    training, num_blocks = run.training, stage.num_blocks
    states, parts = block_elements(run.model)
    block = states // run.model.hidden_size * state + parts * per_part
    if not training.checkpoint_activations:
        return num_blocks * block, 0
    per_block = training.checkpoint_activations_per == "block"
    stretch = min(training.checkpoint_num_layers, num_blocks) if per_block else num_blocks
    return (-(-num_blocks // stretch) * state if stretch else 0), stretch * block


def _highway_changes(run: RunConfig, stage: Stage, tokens: int) -> Counter[tuple[Kind, bool]]:
    """Bytes of the highway that a stage's forward and backward take (True) and free (False), of so many tokens."""
    changes = Counter[tuple[Kind, bool]]()
    for kept in describe(run.recursion).kept() if stage.boundary is not None else ():
        values = kept.num_states * run.model.hidden_size * run.precision.bytes_per_value
        for event in _events(kept, stage.pass_index):
            changes[event] += tokens * (values + kept.num_weights * BYTES_FP32)
    return changes


def _events(kept: Kept, pass_index: int) -> Iterator[tuple[Kind, bool]]:
    """The actions of a pass that take (True) or free (False) as much as these states, or their gradients: what pipeline/highway.py does."""
    if pass_index == kept.kept_in:
        yield "forward", True
    if pass_index == kept.first_read:
        yield "backward", False
    if kept.last_read > kept.kept_in and pass_index == kept.last_read:
        yield "backward", True
    if kept.last_read > kept.kept_in and pass_index == kept.kept_in:
        yield "backward", False
