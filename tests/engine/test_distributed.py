"""Every launcher's variables become those that torch reads."""

import logging
from pathlib import Path

import pytest
import torch.distributed as dist

from megamesh.engine.distributed import check_gpus, publish_launch
from megamesh.errors import ConfigError, DataError
from megamesh.launch import Launch, read_launch
from megamesh.log import configure_logging
from megamesh.parallel.agree import node_by_node, rank_zero_first
from tests.distributed import run

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "head", "MASTER_PORT": "1234"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_NNODES": "2"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    "environment", [TORCHRUN, SRUN, MPIRUN, TORCHRUN | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}]
)
def test_every_launcher_is_understood(environment) -> None:
    assert read_launch(environment) == Launch(rank=3, world_size=8, local_rank=1)


def test_no_launcher_is_one_process() -> None:
    batch_script = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}  # plain python in it, without srun
    assert read_launch(batch_script) == Launch(rank=0, world_size=1, local_rank=0)


def test_address_and_port_are_kept_or_local() -> None:
    environment = dict(TORCHRUN)
    publish_launch(read_launch(environment), environment)
    assert environment == TORCHRUN
    environment = dict(MPIRUN)
    publish_launch(read_launch(environment), environment)
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["LOCAL_RANK"]) == ("3", "8", "1")
    assert environment["MASTER_ADDR"] == "127.0.0.1" and environment["MASTER_PORT"].isdigit()


def test_several_nodes_need_an_address() -> None:
    environment = dict(SRUN)
    with pytest.raises(ConfigError, match="MASTER_ADDR is not set for 8 processes on 2 nodes"):
        publish_launch(read_launch(environment), environment)
    environment["MASTER_ADDR"] = "node7"
    publish_launch(read_launch(environment), environment)
    assert environment["MASTER_ADDR"] == "node7"


def look_for_gpus(num_gpus: int) -> str:
    try:
        check_gpus(dist.get_rank(), num_gpus)
    except ConfigError as error:
        return str(error)
    return "enough"


def test_a_process_without_a_gpu_is_an_error_on_all() -> None:
    """One that only the process without a GPU raised would be told by nobody, and leave the others waiting."""
    assert run(2, look_for_gpus, 2) == ["enough", "enough"]
    first, second = run(2, look_for_gpus, 1)
    assert first == second
    assert first.startswith(
        "2 processes on a node, each of which needs a GPU, and a process that sees 1; start as many"
    )


def fail_on_rank_zero() -> int:
    try:
        rank_zero_first(lambda: 1 // dist.get_rank())
    except ZeroDivisionError:
        return -1
    except SystemExit as left:
        return int(str(left.code))
    return 0


def test_a_failure_on_rank_zero_sends_the_others_home_silently() -> None:
    assert run(2, fail_on_rank_zero) == [-1, 1]


def build_node_by_node(folder: Path, processes_per_node: int, fails: int) -> str:
    """What this rank finds in its node's folder, and puts there where nothing is; rank `fails` cannot."""
    node, local_rank = divmod(dist.get_rank(), processes_per_node)
    file = folder / f"node{node}"

    def build() -> str:
        if dist.get_rank() == fails:
            raise DataError("disk full")
        if file.exists():
            return "found"
        file.write_text("built")
        return "built"

    try:
        return node_by_node(build, local_rank)
    except DataError:
        return "failed"
    except SystemExit as left:
        return f"left with {left.code}"


def test_one_process_of_every_node_builds_what_the_others_find(tmp_path: Path) -> None:
    assert run(4, build_node_by_node, tmp_path, 2, -1) == ["built", "found", "built", "found"]
    (tmp_path / "failing").mkdir()
    found = run(4, build_node_by_node, tmp_path / "failing", 2, 2)
    assert found == ["left with 1", "left with 1", "failed", "left with 1"]


def test_only_the_first_process_of_any_launcher_informs(monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    root = logging.getLogger("megamesh")
    monkeypatch.setattr(root, "handlers", [])
    for rank in ("0", "1"):
        for name, value in (SRUN | {"SLURM_PROCID": rank}).items():
            monkeypatch.setenv(name, value)
        configure_logging()
        root.info("told by rank %s", rank)
    assert "told by rank 0" in (err := capfd.readouterr().err) and "told by rank 1" not in err
