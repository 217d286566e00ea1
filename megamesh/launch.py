"""This process's place among all, as its launcher tells it: read from environment variables, before anything is imported.

deepspeed / torchrun   RANK, WORLD_SIZE, LOCAL_RANK
mpirun                 OMPI_COMM_WORLD_* or PMI_*
srun                   SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID     (a job step's: a batch script has none)
python                 nothing                                               one process
"""

from collections.abc import Mapping
from dataclasses import dataclass

RANK_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


@dataclass(frozen=True)
class Launch:
    """What the launcher says about this process."""

    rank: int
    world_size: int
    local_rank: int


def read_launch(environment: Mapping[str, str]) -> Launch:
    """This process's place according to the first launcher whose variables are all set; one process where none are."""
    for names in RANK_VARIABLES:
        if all(name in environment for name in names):
            return Launch(*(int(environment[name]) for name in names))
    return Launch(rank=0, world_size=1, local_rank=0)
