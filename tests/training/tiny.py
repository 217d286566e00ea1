"""A corpus and configuration so small that a whole run takes seconds, and a launcher of real runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from megamesh.data.store.writer import IndexedWriter
from tests.processes import free_port

ROOT = Path(__file__).parents[2]
VOCAB = 60


def write_corpus(prefix: Path, num_documents: int = 60, seed: int = 0) -> None:
    """Documents of random lengths over a skewed vocabulary, so that there is something to learn."""
    generator = np.random.default_rng(seed)
    with IndexedWriter(prefix, np.dtype(np.uint16)) as writer:
        for _ in range(num_documents):
            tokens = np.minimum(generator.geometric(0.15, size=generator.integers(20, 120)), VOCAB - 1)
            writer.add_document(tokens.astype(np.uint16))


def write_config(folder: Path, name: str = "run", **changes) -> Path:
    """A YAML file for the corpus in `folder`; keys that are None are left out."""
    keys = {
        "num_layers": 4,
        "recursion": "1+1R2+1",
        "recursion_scheme": "mesh",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
        "pos_emb": "rotary",
        "no_weight_tying": True,
        "vocab_size": VOCAB,
        "make_vocab_size_divisible_by": 64,
        "hidden_dropout": 0.1,
        "precision": "fp32",
        "data_path": str(folder / "corpus"),
        "split": "8,2,0",
        "train_iters": 20,
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 1,
        "eval_interval": 10,
        "eval_iters": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "betas": [0.9, 0.95]}},
        "zero_optimization": {"stage": 1},
        "checkpoint_factor": 10,
        "log_interval": 1,
        "num_workers": 0,
        "save": str(folder / name),
    } | changes
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
    return path


def launch(
    *arguments: object, num_processes: int = 1, script: str = "tools/train.py", check: bool = True, **environment: str
):
    """Run a script as a user would: plain python for one process, the deepspeed launcher for more.

    run_script and run_ranks in tests/processes.py take a twentieth of the time; this one is for what launchers do.
    """
    launcher = [sys.executable] if num_processes == 1 else [
        sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(num_processes), "--master_port", "0",
    ]  # fmt: skip
    command = [*launcher, str(ROOT / script), *map(str, arguments)]
    if num_processes > 1:
        command[command.index("0")] = str(free_port())
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done


def losses(folder: Path, kind: str = "train") -> dict[int, float]:
    """Loss by step from a run's metrics.jsonl."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if row["kind"] == kind}
