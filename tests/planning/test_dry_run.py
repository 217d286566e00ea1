"""The dry run: what it says, and what it does not touch."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megamesh.config.load import load_config
from megamesh.errors import ConfigError
from megamesh.planning.dry_run import describe, dry_run

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


def report(tmp_path: Path, world_size: int | None = 1, **overrides: Any) -> dict[str, Any]:
    path = tmp_path / "model.yml"
    path.write_text(MODEL)
    return dry_run(load_config([path], overrides, for_training=False), world_size)


def test_a_hook_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hooks: no_such_module:MyHook cannot be imported"):
        report(tmp_path, hooks=["no_such_module:MyHook"])


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


def test_tensor_parallelism_divides_a_rank_and_not_the_model(tmp_path: Path) -> None:
    keys = {"model_parallel_size": 4, "sequence_parallel": True, "train_micro_batch_size_per_gpu": 4}
    keys |= {"async_save": True, "save": "run"}
    said, whole = report(tmp_path, world_size=8, **keys), report(tmp_path, train_micro_batch_size_per_gpu=4)
    assert said["resolved"]["ranks"] == "8 = 2 data × 4 tensor with sequence_parallel"
    assert said["batch"]["data_parallel_size"] == 2 and said["batch"]["gradient_accumulation_steps"] == 64
    assert said["resolved"]["padded_vocab_size"] == 50688
    assert said["parameters"]["non_embedding"] == whole["parameters"]["non_embedding"] == 805_797_918
    hidden, width = 2048, 8192
    replicated = (
        16 * (4 + 2) * hidden + 61_470 + 2 * hidden
    )  # two norms and two row biases per layer, routers, the final norm
    split = 16 * (3 * hidden * hidden + 3 * hidden + hidden * hidden + 2 * hidden * width + width) + 2 * 50688 * hidden
    assert said["parameters"]["total"] == replicated + split
    assert said["resolved"]["parameters_per_rank"] == replicated + split // 4
    copied = 12 * (replicated + split // 4) / 2  # by each of two data-parallel ranks
    assert said["resolved"]["async_save_host_gib_per_process"] == pytest.approx(copied / 2**30, abs=1e-3)
    assert "async_save_host_gib_per_process" not in whole["resolved"]
    assert said["memory_bytes_per_rank"]["highway"] * 4 == whole["memory_bytes_per_rank"]["highway"]


@pytest.mark.parametrize(
    ("keys", "ranks"),
    [
        ({}, "1 = 1 data"),
        ({"model_parallel_size": 2}, "2 = 1 data × 2 tensor"),
        ({"model_parallel_size": 2, "sequence_parallel": True}, "2 = 1 data × 2 tensor with sequence_parallel"),
    ],
)
def test_without_a_world_size_one_copy_of_the_model_is_shown(tmp_path: Path, keys: dict[str, Any], ranks: str) -> None:
    said = report(tmp_path, world_size=None, **keys)
    assert said["resolved"]["ranks"] == ranks and said["batch"]["data_parallel_size"] == 1


def test_a_pipeline_is_shown_rank_by_rank(tmp_path: Path) -> None:
    keys = {
        "pipe_parallel_size": 4,
        "train_micro_batch_size_per_gpu": 1,
        "pipe_partition_method": "1,1,1,1+3,2,2,1+2,1,1,0",
    }
    said = report(tmp_path, world_size=8, **keys)
    pipeline = said["pipeline"]
    assert said["resolved"]["ranks"] == "8 = 4 pipeline × 2 data" and pipeline["num_micro_batches"] == 256
    assert pipeline["partition"] == keys["pipe_partition_method"] and pipeline["num_passes"] == 4
    assert sum(rank["parameters"] for rank in pipeline["ranks"]) == said["parameters"]["total"]
    layers = [
        (stage["stack"], stage["first_layer"] + i) for stage in pipeline["stages"] for i in range(stage["num_layers"])
    ]
    assert len(layers) == 24 and len(set(layers)) == 16
    held = {
        name: [stage["rank"] for stage in pipeline["stages"] if name in stage["holds"]]
        for name in ("embedding", "loop boundary", "head")
    }
    assert held == {"embedding": [0], "loop boundary": [3, 3, 3], "head": [3]}
    # 15 edges between stages, and h_emb over 3: states of 4096 tokens in bfloat16, forward and back
    assert sum(rank["sent_bytes_per_step"] for rank in pipeline["ranks"]) == 2 * 4096 * 2048 * 2 * 256 * (15 + 3)
    assert 0 < pipeline["idle_share"] < 0.5 and 4 < pipeline["ranks"][0]["most_in_flight"] < 32
    fullest = max(pipeline["ranks"], key=lambda rank: rank["memory_bytes"])
    assert said["memory_bytes_per_rank"]["total"] == fullest["memory_bytes"]
    assert said["resolved"]["parameters_per_rank"] == fullest["parameters"]


@pytest.mark.parametrize("keys", [{"no_weight_tying": False}, {"recursion": None, "pipe_num_passes": 3}])
def test_a_pipeline_s_partition_can_be_given_back(tmp_path: Path, keys: dict[str, Any]) -> None:
    shape = {
        "pipe_parallel_size": 2,
        "train_micro_batch_size_per_gpu": 32,
        "pipe_partition_method": "parameters",
        **keys,
    }
    said = report(tmp_path, **shape, world_size=2)
    again = report(tmp_path, **{**shape, "pipe_partition_method": said["pipeline"]["partition"]}, world_size=2)
    assert again["pipeline"] == said["pipeline"]


def test_the_pipeline_table_in_text(tmp_path: Path) -> None:
    said = report(tmp_path, world_size=2, pipe_parallel_size=2, train_micro_batch_size_per_gpu=1)
    text = describe(said)
    assert (
        "memory of the fullest rank, estimated" in text
        and f"pipe_partition_method: {said['pipeline']['partition']}" in text
    )
    assert re.search(r"\n  0 prelude +0–1, embedding +2–3, loop boundary\n", text)
    assert re.search(r"\n  3 coda .*head\n  parameters +[\d,]+ +[\d,]+\n  memory, GiB", text)


def test_micro_batches_that_the_schedule_cannot_run_are_refused(tmp_path: Path) -> None:
    keys = {"pipe_parallel_size": 4, "train_micro_batch_size_per_gpu": 1, "train_batch_size": 9}
    with pytest.raises(ConfigError, match=r"pipe_parallel_size=4 .*gradient_accumulation_steps=9.*use .*: 8 or 10"):
        report(tmp_path, world_size=4, **keys)
    assert report(tmp_path, world_size=4, **{**keys, "train_batch_size": 10})["pipeline"]["num_micro_batches"] == 10


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


def test_a_tokenizer_whose_vocabulary_is_too_small_to_split_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    path = tmp_path / "tokenizer.json"
    words = {"<|endoftext|>": 0, **{f"word {i}": i for i in range(1, 100)}}
    Tokenizer(models.WordLevel(words, unk_token="word 1")).save(str(path))
    keys = {"vocab_size": None, "tokenizer_type": "HFTokenizer", "vocab_file": str(path), "model_parallel_size": 2}
    with pytest.raises(ConfigError) as caught:
        report(tmp_path, world_size=2, **keys)
    assert str(caught.value) == (
        "the tokenizer's vocabulary of 100 is too small for model_parallel_size=2: padded to 256, a multiple of "
        "2 × make_vocab_size_divisible_by=128, it leaves the last rank nothing but padding; "
        "use make_vocab_size_divisible_by: 64 or model_parallel_size: 1"
    )
    mended = report(tmp_path, world_size=2, **keys, make_vocab_size_divisible_by=64)
    assert mended["resolved"]["padded_vocab_size"] == 128


def test_a_tokenizer_that_is_not_there_yet_is_not_needed_beside_vocab_size(tmp_path: Path) -> None:
    said = report(tmp_path, tokenizer_type="HFTokenizer", vocab_file=str(tmp_path / "later.json"))
    assert said["resolved"]["vocab_size"] == 50277


def test_the_optimizer_and_the_schedule_are_resolved(tmp_path: Path) -> None:
    """Also what holds where a block leaves it out, which is not what holds without a block."""
    assert report(tmp_path)["resolved"]["optimizer"] == {
        "type": "AdamW",
        "lr": 1e-3,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weight_decay": 0.1,
        "gradient_clipping": 1.0,
    }
    said = report(tmp_path, optimizer={"type": "Adam", "params": {"lr": 6e-4}}, lr_decay_style="cosine", warmup=0.02)
    assert said["resolved"]["optimizer"]["betas"] == [0.9, 0.999] and said["resolved"]["optimizer"]["lr"] == 6e-4
    assert said["resolved"]["schedule"] == {
        "style": "cosine",
        "warmup_steps": 20,
        "decay_steps": 1000,
        "min_lr": 0.0,
    }
    assert "{type: AdamW, lr: 0.0006, betas: [0.9, 0.999], eps: 1e-08" in describe(said)


def test_the_text_holds_what_the_json_holds(tmp_path: Path) -> None:
    said = report(tmp_path, world_size=2, hostfile="hosts")
    text = describe(said)
    assert f"{said['parameters']['total']:,}" in text and f"{said['flops_per_token']['training']:,}" in text
    assert re.search(r"recursion +4\+8R2\+4\n", text) and "betas: [0.9, 0.95]" in text
    assert "2 = 2 data\n" in text and re.search(r"highway +\d+\.\d+ GiB", text)
    assert "hostfile" in text and "no data is given" in text and f"{said['batch']['tokens_total']:,}" in text


def test_the_tool_prints_one_json_object(tmp_path: Path) -> None:
    result = train("--dry-run", "--json", "--world-size", "4", "--set", "train-iters=20", folder=tmp_path)
    assert result.returncode == 0, result.stderr
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
    code = "import sys, megamesh.planning.dry_run; sys.exit('deepspeed' in sys.modules or 'torch.distributed' in sys.modules)"
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
