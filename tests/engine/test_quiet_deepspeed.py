"""A process without a launcher trains, prints nothing, compiles nothing and does not read its command line."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import torch
from megamesh.engine.distributed import init_distributed, shut_down_distributed
from tests.engine.runs import Setup, train, training
init_distributed()
for setup in [Setup(0), Setup(1), Setup(2), Setup(3), Setup(1, "bfloat16"), Setup(3, "bfloat16")]:
    with training(setup) as engine:
        assert not train(engine, 0, 1)[0].skipped
shut_down_distributed()
"""


def test_one_process_without_a_launcher(tmp_path: Path) -> None:
    removed = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    environment |= {"TORCH_EXTENSIONS_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    arguments = ["-c", SCRIPT, "--deepspeed_config", "missing.json", "--local_rank=5"]
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert (ended.stdout, ended.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []
