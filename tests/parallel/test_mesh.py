"""Ranks lie on the mesh with the tensor axis innermost, and each group sums over its own axis only."""

import os

import pytest
import torch
import torch.distributed as dist

from megamesh.parallel.mesh import AXES, ProcessMesh
from megamesh.parallel.mpu import DataParallelMpu
from tests.distributed import run


def _look(pipeline: int, tensor: int) -> dict[str, tuple[int, int, float]]:
    mesh = ProcessMesh.build("cpu", pipeline_parallel_size=pipeline, tensor_parallel_size=tensor)
    seen = {}
    for axis in AXES:
        ranks = torch.tensor(10.0 ** dist.get_rank())
        dist.all_reduce(ranks, group=mesh.group(axis))
        seen[axis] = mesh.size(axis), mesh.rank(axis), ranks.item()
    return seen


def test_data_parallel_is_what_remains() -> None:
    for rank, seen in enumerate(run(2, _look, 1, 1)):
        assert seen == {"pp": (1, 0, 10.0**rank), "dp": (2, rank, 11.0), "tp": (1, 0, 10.0**rank)}


def test_tensor_axis_is_innermost() -> None:
    seen = run(4, _look, 2, 2)
    assert [(view["pp"][1], view["dp"][1], view["tp"][1]) for view in seen] == [
        (0, 0, 0),
        (0, 0, 1),
        (1, 0, 0),
        (1, 0, 1),
    ]
    assert [view["tp"][2] for view in seen] == [11, 11, 1100, 1100]
    assert [view["pp"][2] for view in seen] == [101, 1010, 101, 1010]


def _refused() -> str:
    with pytest.raises(ValueError, match="cannot be divided") as caught:
        ProcessMesh.build("cpu", pipeline_parallel_size=3)
    return str(caught.value)


def test_sizes_that_do_not_divide_are_refused() -> None:
    assert "2 processes" in run(2, _refused)[0]


def _threads_of_new_meshes() -> int:
    DataParallelMpu(ProcessMesh.build("cpu", tensor_parallel_size=2))
    before = len(os.listdir("/proc/self/task"))
    for _ in range(3):
        DataParallelMpu(ProcessMesh.build("cpu", tensor_parallel_size=2))
    return len(os.listdir("/proc/self/task")) - before


def test_groups_are_made_once_per_layout() -> None:
    """Each holds threads for as long as the process lives."""
    assert run(2, _threads_of_new_meshes) == [0, 0]
