"""Runs with async_save: the numbers of a run without it, and errors that neither hide nor destroy anything."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from megamesh.checkpoint import background
from megamesh.checkpoint.folder import find_latest
from megamesh.checkpoint.reader import read_weights
from megamesh.checkpoint.save import Snapshot, Target, write
from megamesh.errors import CheckpointError, TrainingError
from megamesh.training.trainer import Trainer
from tests.distributed import run
from tests.training.test_run import assert_same_run, train_here
from tests.training.tiny import losses, write_config, write_corpus

SAVES = {"checkpoint_factor": 3, "keep_last_n_checkpoints": 2, "num_workers": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus")
    return tmp_path


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_saving_beside_training_changes_no_bit(folder: Path, stage: int) -> None:
    keys = SAVES | {"train_iters": 8, "eval_interval": 4, "zero_optimization": {"stage": stage}}
    run(2, train_here, write_config(folder, "stopping", **keys))
    run(2, train_here, write_config(folder, "beside", async_save=True, **keys))
    assert_same_run(folder / "stopping", folder / "beside")
    for name in ("global_step6", "global_step8"):
        stopping, beside = (dict(read_weights(folder / run_name / name)) for run_name in ("stopping", "beside"))
        assert all(torch.equal(stopping[key], beside[key]) for key in stopping)
    assert {path.name for path in (folder / "beside").iterdir()} == {
        "global_step6", "global_step8", "latest", "metrics.jsonl",
    }  # fmt: skip


def _told_while(config: Path, doing: Any) -> tuple[str, list[str]]:
    """The error that a run in a worker ends with, after `doing` to it, and what was logged."""
    said: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("megamesh")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        with pytest.MonkeyPatch.context() as monkeypatch:
            doing(monkeypatch)
            with pytest.raises((CheckpointError, TrainingError)) as caught:
                train_here(config)
        return str(caught.value), said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _sixth_step_cannot_be_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(target: Target, snapshot: Snapshot, group: Any) -> Path:
        if snapshot.meta.state.step == 6:
            raise CheckpointError("no space left")
        return write(target, snapshot, group)

    monkeypatch.setattr(background, "write", failing)


def test_a_save_that_fails_ends_the_run_at_a_following_step(folder: Path) -> None:
    config = write_config(folder, async_save=True, **SAVES)
    for message, said in run(2, _told_while, config, _sixth_step_cannot_be_saved):
        assert message == "the save of step 6 failed: no space left"
        assert any("global_step3 in" in text and "of which training waited" in text for text in said)
    assert find_latest(folder / "run") == folder / "run/global_step3"
    assert max(losses(folder / "run")) < 10, "reported long before the end"
    assert run(2, train_here, config) == [20, 20]


def _training_fails_while_a_save_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    micro_batches = Trainer._micro_batches

    def failing(trainer: Trainer) -> Any:
        if trainer.state.step == 3:
            raise TrainingError("the loss is not finite")
        return micro_batches(trainer)

    monkeypatch.setattr(Trainer, "_micro_batches", failing)


def test_an_error_in_training_does_not_cost_the_save_under_way(folder: Path) -> None:
    config = write_config(folder, async_save=True, **SAVES)
    for message, said in run(2, _told_while, config, _training_fails_while_a_save_is_under_way):
        assert message == "the loss is not finite"
        assert any("saved" in text and "global_step3" in text for text in said)
    assert find_latest(folder / "run") == folder / "run/global_step3"
