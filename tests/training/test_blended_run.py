"""Whole runs on several data sets: passes over a blend, whole documents as samples, labels, a loss for each validation set."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from megamesh.config.load import load_config
from megamesh.data.store.indexed import IndexedDataset
from megamesh.data.store.writer import IndexedWriter
from megamesh.training.hooks.metrics_file import read_metrics
from megamesh.training.hooks.signals import SignalHook
from megamesh.training.run import train
from tests.distributed import run
from tests.training.tiny import write_config, write_corpus


def train_here(config: Path) -> tuple[int, int]:
    """A whole run in a worker of the test pool; (steps, consumed samples)."""
    trainer = train(load_config([config]), torch.device("cpu"), SignalHook())
    trainer.engine.close()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    return trainer.state.step, trainer.state.consumed_samples


def copy_as_labels(prefix: Path, corpus: Path) -> None:
    """The corpus' own tokens as labels."""
    tokens = IndexedDataset(corpus)
    with IndexedWriter(prefix, np.int32) as writer:
        for number in range(len(tokens)):
            writer.add_document(tokens[number].astype(np.int32))


def blended(folder: Path, name: str, **keys: object) -> Path:
    """The configuration of 2 passes over two data sets, with a third to validate on beside them."""
    paths = {letter: str(folder / letter) for letter in "abc"}
    return write_config(folder, name, **{
        "data_path": None, "split": None, "train_iters": None, "train_epochs": 2, "hidden_dropout": 0.0, "eval_interval": 100,
        "train_data_paths": [paths["a"], paths["b"]],
        "valid_data_paths": [paths["b"], paths["c"]], "valid_data_weights": [1, 0],
        "data_cache_path": str(folder / "cache"),
    } | keys)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, (name, documents) in enumerate({"a": 9, "b": 14, "c": 12}.items()):
        write_corpus(tmp_path / name, num_documents=documents, seed=seed)
    return tmp_path


def test_passes_over_whole_documents_with_a_loss_for_each_validation_set(folder: Path) -> None:
    """9 and 14 documents twice are 46 samples: 11 batches of 4. The blend of weights 1 and 0 is the first set's loss."""
    config = blended(folder, "run", pack_impl="unpacked", valid_per_dataset=True)
    assert run(2, train_here, config) == [(11, 44)] * 2
    rows = [row for row in read_metrics(folder / "run" / "metrics.jsonl") if row["kind"] == "valid"]
    assert len(rows) == 1
    assert rows[0]["loss"] == pytest.approx(rows[0]["loss/b"], abs=1e-6)
    assert abs(rows[0]["loss/c"] - rows[0]["loss"]) > 1e-4
    assert not list(folder.glob("*.index")) and list((folder / "cache").glob("*.index"))


def test_labels_equal_to_the_tokens_change_nothing(folder: Path) -> None:
    losses = {}
    for name in ("plain", "labelled"):
        keys: dict[str, object] = {"eval_iters": 0, "valid_data_paths": None, "valid_data_weights": None}
        if name == "labelled":
            for corpus in ("a", "b"):
                copy_as_labels(folder / f"{corpus}_labels", folder / corpus)
            keys["train_label_data_paths"] = [str(folder / f"{corpus}_labels") for corpus in ("a", "b")]
        run(2, train_here, blended(folder, name, **keys))
        losses[name] = [row["loss"] for row in read_metrics(folder / name / "metrics.jsonl") if row["kind"] == "train"]
    assert len(losses["plain"]) > 10
    assert losses["plain"] == losses["labelled"]
