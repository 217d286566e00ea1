"""The highway of each tensor-parallel rank holds 1/size of what one process holds, measured on the storages."""

import pytest
import torch.distributed as dist

from megamesh.diagnostics.highway_memory import highway_bytes, watch_highways
from megamesh.parallel.tensor import SINGLE
from tests.distributed import run
from tests.model.sharded import BATCH, SEQUENCE, Case, batch
from tests.model.test_transformer import saved_bytes
from tests.schemes import DIVIDED


def _measure(case: Case) -> int:
    return highway_bytes(case.build(case.axis()), batch()[0])


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("scheme", DIVIDED)
def test_each_rank_holds_its_part(scheme: str, sequence_parallel: bool, size: int) -> None:
    case = Case(scheme, sequence_parallel=sequence_parallel)
    whole = highway_bytes(case.build(), batch()[0])
    assert [num_bytes * size for num_bytes in run(size, _measure, case)] == [whole] * size


def _cost_over_plain_recursion(scheme: str, sequence_parallel: bool) -> int:
    cases = [Case(name, sequence_parallel=sequence_parallel) for name in (scheme, "base")]
    tp = cases[0].axis() if dist.is_initialized() else SINGLE
    with_highway, plain = (saved_bytes(case.build(tp), batch()) for case in cases)
    return with_highway - plain


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("scheme", ["mesh", "dynamic"])
def test_what_backward_keeps_beyond_plain_recursion_is_divided_too(
    scheme: str, sequence_parallel: bool, size: int
) -> None:
    """Copies of what blocks keep whole anyway would show here: at 2 ranks they would cost all that dividing saves."""
    whole = _cost_over_plain_recursion(scheme, sequence_parallel)
    assert whole > 3 * BATCH * SEQUENCE * 32 * 8
    answers = run(size, _cost_over_plain_recursion, scheme, sequence_parallel)
    assert [num_bytes * size for num_bytes in answers] == [whole] * size


def test_one_process_holds_the_sources_and_their_weights() -> None:
    states, write_weights = 5 + 1, 4  # h_emb, h_pre, three core outputs and h(K); written by four of the router sets
    expected = BATCH * SEQUENCE * 8 * (states * 32 + write_weights * 6)
    assert highway_bytes(Case("mesh").build(), batch()[0]) == expected


def _sums(case: Case) -> tuple[int, bool]:
    module = case.build(case.axis())
    entered: list[int] = []
    for stack in (module.prelude, module.core):
        stack[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0].untyped_storage().data_ptr()))
    with watch_highways(module) as highways:
        module.states(batch()[0])
    kept = {state.untyped_storage().data_ptr() for state in highways[-1]._states.values()}
    return highways[-1].num_bytes, kept <= set(entered)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_sums_keep_only_what_blocks_were_given(sequence_parallel: bool) -> None:
    case = Case("anchor+anchor*", sequence_parallel=sequence_parallel)
    whole = highway_bytes(case.build(), batch()[0])
    for num_bytes, is_block_input in run(2, _sums, case):
        assert is_block_input, "backward keeps the inputs of blocks anyway"
        assert num_bytes == (whole // 2 if sequence_parallel else whole)
