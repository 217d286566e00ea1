"""What DeepSpeed is told about the process mesh: its world is the data-parallel group, and nobody else exists.

                    tp 0   tp 1
    stage 0, dp 0    ┌0┐    ┌1┐        get_data_parallel_*    one column: the ranks among which ZeRO divides state and averages gradients
             dp 1    └2┘    └3┘        get_model_parallel_*   this rank alone

DeepSpeed would use a model-parallel group for three things: its own gradient norm, whether that overflows, and the names of its
checkpoints. The engine does all of them over the whole mesh: it counts replicated parameters once, and where a step is bad it spoils the
gradients on every rank, so every data-parallel group by itself comes to the same decision. So DeepSpeed's collectives over a model-parallel
group would tell it nothing, and over one rank they cost nothing. This is also why no parameter carries the `model_parallel`
attribute that DeepSpeed 0.19 looks for, and why pipeline stages need no answer of their own.
"""

from functools import cache
from typing import Any

import torch.distributed as dist

from megamesh.parallel.mesh import ProcessMesh


class DataParallelMpu:
    """The `mpu` argument of deepspeed.initialize: every method that DeepSpeed 0.19 calls on it without experts, AutoTP or Ulysses.

    It must have no `initialize_sequence_parallel` and no `get_sequence_*`: their mere presence means Ulysses.
    """

    def __init__(self, mesh: ProcessMesh):
        self._mesh = mesh
        self._alone = _group_of_one(dist.group.WORLD)

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Where gradients are averaged, ZeRO divides state, and the first rank's weights are broadcast at the start."""
        return self._mesh.group("dp")

    def get_data_parallel_world_size(self) -> int:
        """By which train_batch_size is checked against micro-batch size and accumulation steps."""
        return self._mesh.size("dp")

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Over which DeepSpeed sums its norm and agrees on overflow. BF16_Optimizer needs a group even of one."""
        return self._alone

    def get_model_parallel_rank(self) -> int:
        """0: DeepSpeed looks at all of this rank's parameters."""
        return 0

    def get_model_parallel_world_size(self) -> int:
        """1."""
        return 1


@cache
def _group_of_one(_world: Any) -> dist.ProcessGroup:
    """This rank alone: one group, however many engines ask for it."""
    group: dist.ProcessGroup = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    return group
