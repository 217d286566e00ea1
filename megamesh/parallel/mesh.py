"""The process mesh: which ranks share a pipeline stage, a data shard, a slice of the tensors.

    rank = (pp · dp_size + dp) · tp_size + tp        tp innermost: its ranks are neighbours on one node

*axis* means a dimension of this mesh; *dim* is kept for dimensions of tensors. Every axis always exists, of size 1 where the
run does not use it, so that code asks for a group and never for a mode.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

Axis = Literal["pp", "dp", "tp"]
AXES: tuple[Axis, ...] = ("pp", "dp", "tp")


@dataclass(frozen=True)
class ProcessMesh:
    """Sizes, this process's coordinates and process groups of the three axes."""

    device_mesh: DeviceMesh

    @classmethod
    def build(
        cls, device_type: str, *, pipeline_parallel_size: int = 1, tensor_parallel_size: int = 1
    ) -> "ProcessMesh":
        """Arrange all ranks of the initialised process group; the data-parallel size is what remains.

        A collective: every rank calls it with the same sizes. Raises ValueError where they do not divide the world size.
        """
        world_size, model_size = dist.get_world_size(), pipeline_parallel_size * tensor_parallel_size
        if world_size % model_size:
            raise ValueError(
                f"{world_size} processes cannot be divided by pipe_parallel_size={pipeline_parallel_size} times "
                f"model_parallel_size={tensor_parallel_size}"
            )
        sizes = (pipeline_parallel_size, world_size // model_size, tensor_parallel_size)
        return cls(_device_mesh(device_type, sizes, dist.group.WORLD))

    def size(self, axis: Axis) -> int:
        """Number of ranks along the axis."""
        return self.device_mesh.size(AXES.index(axis))

    def rank(self, axis: Axis) -> int:
        """This process's coordinate along the axis."""
        return self.device_mesh.get_local_rank(axis)

    def group(self, axis: Axis) -> dist.ProcessGroup:
        """The ranks that differ from this process in this axis only."""
        return self.device_mesh.get_group(axis)


@cache
def _device_mesh(device_type: str, sizes: tuple[int, ...], _world: Any) -> DeviceMesh:
    """One mesh per layout and process group: every group of ranks holds threads and sockets of its own until the process ends."""
    return init_device_mesh(device_type, sizes, mesh_dim_names=AXES)
