"""Process groups under any launcher, or under none.

    deepspeed / torchrun   RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT     used as they are
    srun                   SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID                  translated
    mpirun                 OMPI_COMM_WORLD_* or PMI_*                                 translated
    python                 nothing                                                    one process, no port opened

Neither the command line nor MPI itself is read. gloo on CPUs, NCCL (with gloo for CPU tensors) on GPUs. DeepSpeed, which can do
all this in its own way, finds the group there and uses it.
"""

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from megamesh.errors import ConfigError

RANK_VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
DEFAULT_PORT = "29500"


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


def publish_launch(launch: Launch, environment: MutableMapping[str, str]) -> None:
    """Set the variables that torch and DeepSpeed read. Raises ConfigError where several nodes have no MASTER_ADDR."""
    environment["RANK"], environment["WORLD_SIZE"] = str(launch.rank), str(launch.world_size)
    environment["LOCAL_RANK"] = str(launch.local_rank)
    if launch.world_size == 1 or "MASTER_ADDR" in environment:
        environment.setdefault("MASTER_PORT", DEFAULT_PORT)
        return
    num_nodes = int(environment.get("SLURM_NNODES", environment.get("OMPI_MCA_orte_num_nodes", "1")))
    if num_nodes > 1:
        raise ConfigError(
            f"MASTER_ADDR is not set for {launch.world_size} processes on {num_nodes} nodes; set it to the first node's name"
        )
    environment["MASTER_ADDR"] = "127.0.0.1"
    environment.setdefault("MASTER_PORT", DEFAULT_PORT)


def init_distributed(timeout: timedelta = timedelta(minutes=30)) -> torch.device:
    """Join the process group that the launcher describes (once per process) and return this process's device."""
    launch = read_launch(os.environ)
    publish_launch(launch, os.environ)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", launch.local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        if launch.world_size == 1:
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        else:
            dist.init_process_group(backend, timeout=timeout)
    return device


def shut_down_distributed() -> None:
    """Leave the process group, so that the launcher sees a clean end."""
    if dist.is_initialized():
        dist.destroy_process_group()
