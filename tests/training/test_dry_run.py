"""The dry run: what it says, and what it does not touch."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megamesh.config.load import load_config
from megamesh.errors import ConfigError
from megamesh.model.build import build_model
from megamesh.training.dry_run import describe, dry_run

ROOT = Path(__file__).parents[2]
MODEL = """\
num_layers: 24
hidden_size: 2048
num_attention_heads: 16
max_position_embeddings: 4096
pos_emb: rotary
no_weight_tying: true
gpt_j_residual: true
recursion: 4+8R2+4
vocab_size: 50277
train_batch_size: 512
train_iters: 1000
"""


def report(tmp_path: Path, world_size: int = 1, **overrides: Any) -> dict[str, Any]:
    path = tmp_path / "model.yml"
    path.write_text(MODEL)
    return dry_run(load_config([path], overrides, for_training=False), world_size)


def train(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "model.yml").write_text(MODEL)
    command = [sys.executable, str(ROOT / "tools" / "train.py"), str(folder / "model.yml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_counts_batch_and_tokens(tmp_path: Path) -> None:
    said = report(tmp_path, world_size=8, train_micro_batch_size_per_gpu=4)
    assert said["parameters"]["non_embedding"] == 805_797_918 and said["parameters"]["routers"] == 61_470
    assert said["parameters"]["total"] == 805_797_918 + 2 * 50304 * 2048
    assert said["flops_per_token"]["training"] == 3 * said["flops_per_token"]["forward"]
    assert said["batch"] == {
        "train_batch_size": 512,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 16,
        "data_parallel_size": 8,
        "sequence_length": 4096,
        "tokens_per_step": 512 * 4096,
        "train_iters": 1000,
        "tokens_total": 512 * 4096 * 1000,
    }
    assert said["deepspeed"]["train_micro_batch_size_per_gpu"] == 4
    assert said["resolved"]["num_slots"] == 5 and said["resolved"]["padded_vocab_size"] == 50304


@pytest.mark.parametrize(
    ("precision", "stage", "weights", "gradients", "optimizer"),
    [  # bytes per parameter at 8 ranks
        ("fp32", 0, 4, 4, 8),
        ("fp32", 1, 4, 4, 12 / 8),
        ("bfloat16", 0, 2, 4, 12 / 8),
        ("bfloat16", 1, 2, 4, 12 / 8),
        ("bfloat16", 2, 2, 4 / 8, 12 / 8),
        ("bfloat16", 3, 2 / 8, 4 / 8, 12 / 8),
    ],
)
def test_memory_by_zero_stage(
    tmp_path: Path, precision: str, stage: int, weights: float, gradients: float, optimizer: float
) -> None:
    said = report(tmp_path, world_size=8, precision=precision, zero_optimization={"stage": stage})
    total, memory = said["parameters"]["total"], said["memory_bytes_per_rank"]
    for part, per_parameter in (("weights", weights), ("gradients", gradients), ("optimizer", optimizer)):
        assert memory[part] == int(per_parameter * total)
    assert memory["total"] == sum(value for part, value in memory.items() if part != "total")


def test_recomputation_keeps_fewer_activations(tmp_path: Path) -> None:
    kept = report(tmp_path)["memory_bytes_per_rank"]["activations"]
    per_block = report(tmp_path, checkpoint_activations=True)["memory_bytes_per_rank"]["activations"]
    per_loop = report(tmp_path, checkpoint_activations=True, checkpoint_activations_per="loop")[
        "memory_bytes_per_rank"
    ]["activations"]
    assert per_block < per_loop < kept / 2


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"gpt_j_residual": False, "norm": "rmsnorm", "activation": "swiglu", "num_kv_heads": 2},
        {"recursion": "1+2R3+1"},
    ],
    ids=str,
)
def test_activations_are_about_what_torch_saves_for_backward(tmp_path: Path, keys: dict[str, Any]) -> None:
    """The estimate leaves out small things (rotary halves, norms' statistics), so it may be up to a sixth low, and never high."""
    small = {"num_layers": 8, "hidden_size": 128, "num_attention_heads": 4, "seq_length": 128, "vocab_size": 128}
    small |= {"recursion": None, "rotary_pct": 0.25, "train_batch_size": 2, "precision": "fp32", **keys}
    path = tmp_path / "model.yml"
    path.write_text(MODEL)
    loaded = load_config([path], small, for_training=False)
    model = build_model(loaded.run.model, loaded.run.recursion, loaded.run.training, 128)
    weights, saved = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens_BS = torch.zeros(2, 128, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tokens_BS, tokens_BS, torch.ones(2, 128))
    assert loss.requires_grad
    estimate = dry_run(loaded)["memory_bytes_per_rank"]["activations"]
    assert 5 / 6 < estimate / sum(saved.values()) < 1


def test_a_batch_that_does_not_divide_is_said_with_the_number_of_processes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train_batch_size=512 .*data-parallel size 3"):
        report(tmp_path, world_size=3)


def test_the_vocabulary_is_asked_of_the_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1, "b": 2}, unk_token="a")).save(
        str(tmp_path / "tokenizer.json")
    )
    said = report(tmp_path, vocab_size=None, tokenizer_type="HFTokenizer", vocab_file=str(tmp_path / "tokenizer.json"))
    assert (said["resolved"]["vocab_size"], said["resolved"]["padded_vocab_size"]) == (3, 128)
    with pytest.raises(ConfigError, match=r"vocab_size=2 is smaller than the 3 ids"):
        report(tmp_path, vocab_size=2, tokenizer_type="HFTokenizer", vocab_file=str(tmp_path / "tokenizer.json"))


def test_a_tokenizer_that_is_not_there_yet_is_not_needed_beside_vocab_size(tmp_path: Path) -> None:
    said = report(tmp_path, tokenizer_type="HFTokenizer", vocab_file=str(tmp_path / "later.json"))
    assert said["resolved"]["vocab_size"] == 50277


def test_the_text_holds_what_the_json_holds(tmp_path: Path) -> None:
    said = report(tmp_path, world_size=2, hostfile="hosts")
    text = describe(said)
    assert f"{said['parameters']['total']:,}" in text and f"{said['flops_per_token']['training']:,}" in text
    assert re.search(r"recursion +4\+8R2\+4\n", text) and "betas: [0.9, 0.95]" in text
    assert "hostfile" in text and "no data is given" in text and f"{said['batch']['tokens_total']:,}" in text


def test_the_tool_prints_one_json_object_quickly_without_deepspeed(tmp_path: Path) -> None:
    start = time.monotonic()
    result = train("--dry-run", "--json", "--world-size", "4", "--set", "train-iters=20", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - start < 5
    said = json.loads(result.stdout)
    assert said["parameters"]["non_embedding"] == 805_797_918 and said["batch"]["train_iters"] == 20
    assert set(said) >= {
        "settings",
        "parameters",
        "flops_per_token",
        "batch",
        "memory_bytes_per_rank",
        "deepspeed",
        "ignored_keys",
    }


def test_a_dry_run_imports_neither_deepspeed_nor_torch_distributed() -> None:
    code = "import sys, megamesh.training.dry_run; sys.exit('deepspeed' in sys.modules or 'torch.distributed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_the_tool_names_every_problem_and_fails(tmp_path: Path) -> None:
    result = train("--dry-run", "--set", "num_layers=23", "--set", "nmu_layers=1", folder=tmp_path)
    assert result.returncode == 1 and result.stdout == ""
    assert "num_layers=23 (command line)" in result.stderr and "did you mean num_layers?" in result.stderr
    assert "Traceback" not in result.stderr


def test_training_asks_for_what_a_dry_run_does_without(tmp_path: Path) -> None:
    result = train(folder=tmp_path)
    assert result.returncode == 1 and "no data is given" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["--set", "seed"], ["--json"], ["--dry-run", "--world-size", "0"]])
def test_a_wrong_command_line_is_a_usage_error(tmp_path: Path, arguments: list[str]) -> None:
    result = train(*arguments, folder=tmp_path)
    assert result.returncode == 2 and "usage:" in result.stderr
