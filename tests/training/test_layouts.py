"""Whole runs that are divided over tensor and pipeline ranks: metrics, evaluations and continuations are those of one process."""

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from megamesh.checkpoint.reader import read_meta, read_weights
from megamesh.config.load import load_config
from megamesh.config.sections import RunConfig
from megamesh.model.flops import flops_per_token
from megamesh.training.hooks.metrics_file import read_metrics
from megamesh.training.hooks.signals import SIGNALS, SignalHook
from megamesh.training.run import train
from tests.distributed import run
from tests.engine.runs import BOLD, assert_same_weights
from tests.training.test_run import assert_same_run, refused, train_here
from tests.training.tiny import losses, write_config, write_corpus

TOLERANCE = 1e-5
KEYS: dict[str, Any] = BOLD | {
    "make_vocab_size_divisible_by": 16,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "betas": [0.9, 0.95], "eps": 1e-6}},
    "train_iters": 6,
    "eval_interval": 3,
    "checkpoint_factor": 3,
}
ONE = {"num_processes": 1}
REPLICATED = {"num_processes": 2, "model_parallel_size": 2}
SPLIT = REPLICATED | {"sequence_parallel": True}
DATA_TOO = SPLIT | {"num_processes": 4}
RING = {"num_processes": 2, "pipe_parallel_size": 2}
RING_TOO = SPLIT | {"num_processes": 4, "pipe_parallel_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_corpus(folder / "corpus")
    return folder


def whole_run(folder: Path, name: str, *, num_processes: int, **keys: Any) -> Path:
    """The save folder of a run to its last step; it continues from what is there."""
    config = write_config(folder, name, **KEYS | keys)
    assert run(num_processes, train_here, config) == [KEYS["train_iters"]] * num_processes
    return folder / name


def assert_near(found: Path, expected: Path) -> None:
    """Every step's loss, every evaluation and every final weight."""
    for kind in ("train", "valid"):
        assert losses(found, kind) == pytest.approx(losses(expected, kind), rel=TOLERANCE)
    model = RunConfig.model_validate(read_meta(expected).config).model
    assert_same_weights(dict(read_weights(found)), dict(read_weights(expected)), model)


@pytest.mark.parametrize(
    ("layout", "dropout"),
    [(REPLICATED, 0.1), (SPLIT, 0.0), (DATA_TOO, 0.0), (RING, 0.0), (RING_TOO, 0.0)],
    ids=["replicated", "split", "data-too", "ring", "ring-too"],
)
def test_a_divided_run_is_that_of_one_process(
    folder: Path, layout: dict[str, Any], dropout: float, request: pytest.FixtureRequest
) -> None:
    """Where states are replicated, so is their dropout."""
    one = folder / f"one-{dropout}"
    if not one.exists():
        whole_run(folder, one.name, **ONE, hidden_dropout=dropout)
    assert_near(whole_run(folder, request.node.callspec.id, **layout, hidden_dropout=dropout), one)


@pytest.mark.parametrize(
    ("first", "then"),
    [(SPLIT, ONE), (ONE, REPLICATED), (RING, ONE), (REPLICATED, RING)],
    ids=["to-one", "from-one", "ring-to-one", "to-ring"],
)
def test_a_run_continues_on_another_layout(
    folder: Path, first: dict[str, Any], then: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    save = whole_run(folder, request.node.callspec.id, **first, hidden_dropout=0.0)
    straight = Path(shutil.copytree(save, f"{save}-straight"))
    shutil.rmtree(save / "global_step6")
    (save / "latest").write_text("global_step3\n")
    stage = 1 if "pipe_parallel_size" in then else 2
    whole_run(folder, save.name, **then, hidden_dropout=0.0, zero_optimization={"stage": stage})
    assert_near(save, straight)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_run_on_the_ring_continues_bit_for_bit(folder: Path, stage: int) -> None:
    """Dropout included: it is keyed by micro-batch and stage."""
    keys = RING | {"zero_optimization": {"stage": stage}, "attention_dropout": 0.1, "checkpoint_activations": True}
    straight = whole_run(folder, f"ring-straight-{stage}", **keys)
    save = Path(shutil.copytree(straight, folder / f"ring-again-{stage}"))
    shutil.rmtree(save / "global_step6")
    (save / "latest").write_text("global_step3\n")
    whole_run(folder, save.name, **keys)
    assert_same_run(save, straight)


def splits_tokens(config: Path) -> bool:
    """Whether the model of a run has its states split: the losses do not tell."""
    trainer = train(load_config([config]), torch.device("cpu"), SignalHook())
    trainer.engine.close()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    return bool(trainer.engine.module.tp.sequence_parallel)


@pytest.mark.parametrize("layout", [REPLICATED, SPLIT], ids=["replicated", "split"])
def test_states_are_split_where_it_is_asked_for(folder: Path, layout: dict[str, Any]) -> None:
    keys = {key: value for key, value in layout.items() if key != "num_processes"}
    config = write_config(folder, "states", **KEYS | {"train_iters": 1, "eval_iters": 1, "save": None} | keys)
    assert run(2, splits_tokens, config) == ["sequence_parallel" in layout] * 2


def test_speed_counts_each_token_once_and_each_device(folder: Path) -> None:
    save = whole_run(folder, "speed", **DATA_TOO)
    config = load_config([folder / "speed.yml"]).run
    flops = flops_per_token(config.model, config.recursion, 64).training
    rows = [row for row in read_metrics(save / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["consumed_tokens"] for row in rows] == [4 * 16 * step for step in range(1, 7)]
    for row in rows:
        assert row["tflops_per_device"] == pytest.approx(row["tokens_per_second"] * flops / 4 / 1e12)


def test_batches_that_the_schedule_cannot_run_are_an_error_on_every_rank(folder: Path) -> None:
    config = write_config(folder, "odd", pipe_parallel_size=2, train_batch_size=5)
    first, second = run(2, refused, config)
    assert first == second
    assert "has no order for gradient_accumulation_steps=5" in first


def test_a_tokenizer_too_small_to_divide_is_an_error_on_every_rank(folder: Path) -> None:
    """All of them leave, and the first tells it."""
    path = folder / "tokenizer.json"
    words = {"<|endoftext|>": 0, **{f"word {i}": i for i in range(1, 60)}}
    Tokenizer(models.WordLevel(words, unk_token="word 1")).save(str(path))
    tokenizer = {"vocab_size": None, "tokenizer_type": "HFTokenizer", "vocab_file": str(path)}
    config = write_config(folder, "small", **tokenizer, model_parallel_size=2)
    first, second = run(2, refused, config)
    assert first == second
    assert "too small for model_parallel_size=2" in first
    assert not list((folder / "small").glob("global_step*"))
