"""Bytes that one rank puts on each kind of wire in one optimizer step.

    tensor    blocks: a sum (reduce-scatter under sequence_parallel) after attention and MLP (one for both where they are parallel), inputs
              of columns gathered under sequence_parallel, their gradients summed; embedding, head and loss; loop boundaries where states
              are replicated; gradients of replicated parameters once
    data      gradients in fp32, weights in their own precision: see `data_bytes`
    pipeline  states and their gradients (pipeline/traffic.py)

A ring moves (n−1)/n of a tensor from each of n ranks for a gather or a scatter, twice that for a sum. The names of the tensor axis's
collectives are those of parallel/collectives.py, where they can be counted (`tools/benchmark.py comm`).
"""

from dataclasses import dataclass

from megamesh.config.batch import ResolvedBatch
from megamesh.config.deepspeed import effective_zero_stage
from megamesh.config.sections import RunConfig
from megamesh.model.recursion.scheme import Moves, describe
from megamesh.planning.memory import BYTES_FP32, micro_batch_tokens


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in so many collectives."""

    num_bytes: float = 0.0
    calls: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.num_bytes + other.num_bytes, self.calls + other.calls)

    def __mul__(self, times: int) -> "Traffic":
        return Traffic(self.num_bytes * times, self.calls * times)


@dataclass(frozen=True)
class TensorTraffic:
    """What one micro-batch sends over the tensor axis, by who sends it and when. The loss is in the head's forward."""

    block_forward: Traffic
    block_backward: Traffic
    embedding_forward: Traffic
    embedding_backward: Traffic
    head_forward: Traffic
    head_backward: Traffic
    enter: Traffic
    enter_backward: Traffic
    advance: Traffic
    advance_backward: Traffic


def tensor_traffic(run: RunConfig, batch: ResolvedBatch) -> TensorTraffic:
    """The collectives of one micro-batch on one of the tensor ranks."""
    size, tokens = run.parallel.model_parallel_size, micro_batch_tokens(run, batch)
    share = (size - 1) / size
    state = share * tokens * run.model.hidden_size * run.precision.bytes_per_value

    def moves(count: int, calls: int | None = None) -> Traffic:
        """`count` times a state's bytes on the wire: once for a gather or a scatter, twice for a sum."""
        return Traffic(count * state, count if calls is None else calls) if size > 1 else Traffic()

    sums = 1 if run.model.gpt_j_residual else 2
    loss = Traffic(share * tokens * 2 * BYTES_FP32 * size, _num_chunks(run, tokens)) if size > 1 else Traffic()
    none = Traffic()
    if run.parallel.sequence_parallel:
        return TensorTraffic(
            moves(sums + 2), moves(sums + 4), moves(1), moves(1), moves(1) + loss, moves(1), none, none, none, none
        )
    enter, advance = _boundary_moves(run)
    return TensorTraffic(
        moves(2 * sums, sums), moves(4, 2), moves(2, 1), none, loss, moves(2, 1),
        moves(enter.num_joined), moves(enter.num_split, min(enter.num_split, 1)),
        moves(advance.num_joined), moves(advance.num_split, min(advance.num_split, 1)),
    )  # fmt: skip


def _num_chunks(run: RunConfig, tokens: int) -> int:
    return -(-tokens // run.training.loss_chunk_tokens)


def _boundary_moves(run: RunConfig) -> tuple[Moves, Moves]:
    """States that `enter` and each `advance` gather forward (joined) and backward (split), where tensor ranks hold the same states."""
    return describe(run.recursion).moves() if run.recursion.layout else (Moves(), Moves())


def data_bytes(run: RunConfig, batch: ResolvedBatch, num_parameters: int) -> float:
    """What a rank with so many parameters sends to its data-parallel peers in one optimizer step.

    ZeRO 0: gradients are summed. 1: reduced (in bfloat16 DeepSpeed sums them whole), then new weights gathered. 2: gradients reduced for
    every micro-batch. 3: weights gathered twice for every micro-batch too, and not after the step.
    """
    stage, dp = effective_zero_stage(run.optimizer, run.precision), batch.data_parallel_size
    gradients, weights = BYTES_FP32 * num_parameters, run.precision.bytes_per_value * num_parameters
    steps = batch.gradient_accumulation_steps
    summed = 2 if run.precision.precision == "bfloat16" else 1
    moved = {
        0: 2 * gradients,
        1: summed * gradients + weights,
        2: steps * gradients + weights,
        3: steps * (gradients + 2 * weights),
    }[stage]
    return moved * (dp - 1) / dp
