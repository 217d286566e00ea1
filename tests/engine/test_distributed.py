"""Every launcher's variables become those that torch reads."""

import pytest

from megamesh.engine.distributed import Launch, publish_launch, read_launch
from megamesh.errors import ConfigError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "head", "MASTER_PORT": "1234"}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NNODES": "2"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN, MPIRUN, TORCHRUN | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}])
def test_every_launcher_is_understood(environment):
    assert read_launch(environment) == Launch(rank=3, world_size=8, local_rank=1)


def test_no_launcher_is_one_process():
    assert read_launch({"SLURM_PROCID": "0"}) == Launch(rank=0, world_size=1, local_rank=0)


def test_address_and_port_are_kept_or_local():
    environment = dict(TORCHRUN)
    publish_launch(read_launch(environment), environment)
    assert environment == TORCHRUN
    environment = dict(MPIRUN)
    publish_launch(read_launch(environment), environment)
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["LOCAL_RANK"]) == ("3", "8", "1")
    assert environment["MASTER_ADDR"] == "127.0.0.1" and environment["MASTER_PORT"].isdigit()


def test_several_nodes_need_an_address():
    environment = dict(SRUN)
    with pytest.raises(ConfigError, match="MASTER_ADDR is not set for 8 processes on 2 nodes"):
        publish_launch(read_launch(environment), environment)
    environment["MASTER_ADDR"] = "node7"
    publish_launch(read_launch(environment), environment)
    assert environment["MASTER_ADDR"] == "node7"
