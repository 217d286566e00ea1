"""What a micro-batch says over the tensor axis, call by call: the numbers that a change of the model must not raise unseen.

The model is 1+2R3+1: 8 blocks of compute, 4 loop boundaries (into the core, and out of each of 3 loops), 16 tokens of 32 numbers.
"""

import pytest

from megamesh.parallel.collectives import Kind, count_communication
from tests.distributed import run
from tests.model.sharded import BATCH, SEQUENCE, Case, loss_and_gradients

NUM_BLOCKS, NUM_BOUNDARIES, NUM_CHUNKS = 8, 4, 3
STATE_BYTES = BATCH * SEQUENCE * 32 * 8
CHUNK_TALK = {Kind("cross_entropy", "forward", "all_gather"): NUM_CHUNKS}


def _count(case: Case) -> tuple[dict[Kind, int], dict[Kind, int]]:
    module = case.build(case.axis())
    with count_communication() as counted:
        loss_and_gradients(module)
    return dict(counted.calls), dict(counted.num_bytes)


def _replicated(num_sums: int, num_columns: int) -> dict[Kind, int]:
    """Each sum is one all-reduce forward; each column layer, and the head, one backward. The embedding is a sum more."""
    return CHUNK_TALK | {
        Kind("sum_shares", "forward", "all_reduce"): num_sums + 1,
        Kind("column_linear", "backward", "all_reduce"): num_columns,
        Kind("share_states", "backward", "all_reduce"): 1,
    }


def _sequence_parallel(num_sums: int, num_columns: int) -> dict[Kind, int]:
    """The same as pairs of reduce-scatter and all-gather; what column layers gather again in backward is the price of not keeping it."""
    return CHUNK_TALK | {
        Kind("sum_shares_to_tokens", "forward", "reduce_scatter"): num_sums + 1,
        Kind("sum_shares_to_tokens", "backward", "all_gather"): num_sums + 1,
        Kind("column_linear", "forward", "all_gather"): num_columns,
        Kind("column_linear", "backward", "reduce_scatter"): num_columns,
        Kind("column_linear", "backward", "all_gather"): num_columns,
        Kind("gather_tokens", "forward", "all_gather"): 1,
        Kind("gather_tokens", "backward", "reduce_scatter"): 1,
    }


@pytest.mark.parametrize(
    ("blocks", "sums_per_block"), [("MHA, sequential", 2), ("MHA, parallel", 1)], ids=["sequential", "parallel"]
)
@pytest.mark.parametrize("scheme", ["base", "anchor", "mesh"])
@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["replicated", "sequence parallel"])
def test_calls_and_bytes_of_a_micro_batch(
    sequence_parallel: bool, scheme: str, blocks: str, sums_per_block: int
) -> None:
    expected = (_sequence_parallel if sequence_parallel else _replicated)(sums_per_block * NUM_BLOCKS, 2 * NUM_BLOCKS)
    expected_bytes = {kind: calls * STATE_BYTES for kind, calls in expected.items()}
    if scheme == "mesh" and not sequence_parallel:
        boundaries = {
            Kind("join_tokens", "forward", "all_gather"): NUM_BOUNDARIES,
            Kind("split_tokens", "backward", "all_gather"): NUM_BOUNDARIES,
        }
        expected |= boundaries
        # Into the core two states are divided at once: h_emb and the prelude's output.
        expected_bytes |= {kind: calls * STATE_BYTES for kind, calls in boundaries.items()}
        expected_bytes[Kind("split_tokens", "backward", "all_gather")] += STATE_BYTES
    expected_bytes[Kind("cross_entropy", "forward", "all_gather")] = 2 * 2 * BATCH * SEQUENCE * 8
    for calls, num_bytes in run(2, _count, Case(scheme, blocks, sequence_parallel)):
        assert calls == expected
        assert num_bytes == expected_bytes
