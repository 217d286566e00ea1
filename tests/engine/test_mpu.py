"""Inside a mesh of tensor- and data-parallel ranks, DeepSpeed talks to its data-parallel group and to nobody else."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import deepspeed
import pytest
import torch.distributed as dist

from tests.distributed import run
from tests.engine.runs import Setup, train, training

COLLECTIVES = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "reduce", "reduce_scatter", "reduce_scatter_tensor", "broadcast",
    "all_to_all_single", "barrier",
)  # fmt: skip


def _collectives_of_a_step(setup: Setup) -> tuple[tuple[int, ...], Counter[tuple[str, tuple[int, ...]]]]:
    """This rank's data-parallel group, and what DeepSpeed calls over which ranks in one optimizer step."""
    with training(setup) as engine:
        train(engine, 0, 1)
        calls: Counter[tuple[str, tuple[int, ...]]] = Counter()
        backend = deepspeed.comm.comm.cdb
        originals = {name: getattr(backend, name) for name in COLLECTIVES}
        for name, original in originals.items():
            setattr(backend, name, _counted(name, original, calls))
        try:
            train(engine, 1, 2)
        finally:
            for name in originals:
                delattr(backend, name)
        return tuple(dist.get_process_group_ranks(engine.mesh.group("dp"))), calls


def _counted(
    name: str, original: Callable[..., Any], calls: Counter[tuple[str, tuple[int, ...]]]
) -> Callable[..., Any]:
    def call(*args: Any, **keys: Any) -> Any:
        groups = [value for value in (*args, *keys.values()) if isinstance(value, dist.ProcessGroup)]
        calls[name, tuple(dist.get_process_group_ranks(groups[0] if groups else dist.group.WORLD))] += 1
        return original(*args, **keys)

    return call


@pytest.mark.parametrize(
    ("setup", "alone"),
    [(Setup(0), 0), (Setup(3), 0), (Setup(1, "bfloat16"), 1), (Setup(2, "fp16"), 0)],
    ids=["fp32 0", "fp32 3", "bf16 1", "fp16 2"],
)
def test_deepspeed_stays_within_its_data_parallel_group(setup, alone: int) -> None:
    """`alone`: BF16_Optimizer sums its norm over the model-parallel group, which is this rank only."""
    setup = Setup(setup.stage, setup.precision, scaling={"initial_scale_power": 10}, tensor_parallel_size=2)
    for rank, (data_parallel, calls) in enumerate(run(4, _collectives_of_a_step, setup)):
        assert data_parallel == (rank % 2, rank % 2 + 2)
        assert any(ranks == data_parallel for _, ranks in calls)
        elsewhere = {call: count for call, count in calls.items() if call[1] != data_parallel}
        assert elsewhere == ({("all_reduce", (rank,)): alone} if alone else {})
