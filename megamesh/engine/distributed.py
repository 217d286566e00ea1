"""Process groups under any launcher (megamesh.launch), or under none.

    several processes   MASTER_ADDR and MASTER_PORT as they are set; on one node they need not be
    one process         no port is opened

Neither the command line nor MPI itself is read. gloo on CPUs, NCCL (with gloo for CPU tensors) on GPUs. DeepSpeed, which can do
all this in its own way, finds the group there and uses it.
"""

import os
from collections.abc import MutableMapping
from datetime import timedelta

import torch
import torch.distributed as dist

from megamesh.errors import ConfigError
from megamesh.launch import Launch, read_launch

DEFAULT_PORT = "29500"


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


def init_distributed(timeout: timedelta = timedelta(minutes=30), *, on_gpu: bool | None = None) -> torch.device:
    """Join the process group that the launcher describes (once per process) and return this process's device.

    `on_gpu` None: where there is a GPU. Raises ConfigError where the processes cannot find each other, and on all of them where a
    process finds no GPU of its own.
    """
    launch = read_launch(os.environ)
    publish_launch(launch, os.environ)
    on_gpu = torch.cuda.is_available() if on_gpu is None else on_gpu
    device = torch.device("cuda", launch.local_rank) if on_gpu else torch.device("cpu")
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        if launch.world_size == 1:
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        else:
            _join(backend, launch, timeout)
        if on_gpu:
            check_gpus(launch.local_rank, torch.cuda.device_count())
    if on_gpu:
        torch.cuda.set_device(device)
    return device


def check_gpus(local_rank: int, num_gpus: int) -> None:
    """ConfigError on every process where one finds no GPU at its place on its node. A collective, over gloo."""
    worst = torch.tensor([local_rank - num_gpus, local_rank + 1, -num_gpus])
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    missing, processes_per_node, fewest = worst.tolist()
    if missing >= 0:
        raise ConfigError(
            f"{processes_per_node} processes on a node, each of which needs a GPU, and a process that sees {-fewest}; start as many "
            "processes on a node as it has GPUs, and let each see all (no --gpus-per-task=1 and no CUDA_VISIBLE_DEVICES of its own)"
        )


def _join(backend: str, launch: Launch, timeout: timedelta) -> None:
    try:
        dist.init_process_group(backend, timeout=timeout)
    except dist.DistError as error:
        address = f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}"
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{launch.world_size} processes could not meet at {address}: {reason}; set a free port and the first node's name"
        ) from error


def shut_down_distributed() -> None:
    """Leave the process group, so that the launcher sees a clean end."""
    if dist.is_initialized():
        dist.destroy_process_group()
