"""A rank killed in the middle of a step, at every kind of layout: the others leave, one names it, and the same command goes on."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from megamesh.config.load import load_config
from megamesh.training.hooks.signals import SignalHook
from megamesh.training.run import train
from tests.engine.living import live
from tests.training.killed_run import arrange_death
from tests.training.tiny import losses, write_config, write_corpus

KEYS: dict[str, Any] = {
    "train_iters": 5,
    "checkpoint_factor": 2,
    "eval_interval": 5,
    "train_batch_size": 8,
    "make_vocab_size_divisible_by": 32,
}
TENSOR_AND_DATA = {"model_parallel_size": 2, "sequence_parallel": True}
PIPELINE = {"pipe_parallel_size": 4}


def train_to_death(config: Path, moment: str | None) -> None:
    torch.set_num_threads(1)
    if moment is not None:
        arrange_death(moment)
    train(load_config([config]), torch.device("cpu"), SignalHook()).engine.close()


@pytest.mark.parametrize(("layout", "dead"), [(TENSOR_AND_DATA, 3), (PIPELINE, 0)], ids=["tensor-and-data", "pipeline"])
def test_a_lost_rank_is_named_and_the_run_goes_on(tmp_path: Path, layout: dict[str, Any], dead: int) -> None:
    write_corpus(tmp_path / "corpus")
    config = write_config(tmp_path, **KEYS | layout)
    died = live(tmp_path, 4, train_to_death, config, f"micro-batch:4:{dead}")
    assert died.statuses == [-signal.SIGKILL if rank == dead else 1 for rank in range(4)], died.stderr
    (message,) = died.messages
    assert f"rank {dead} on" in message
    assert (tmp_path / "run/latest").read_text().strip() == "global_step2"
    before = losses(tmp_path / "run")
    assert set(before) == {1, 2, 3}

    again = live(tmp_path, 4, train_to_death, config, None)
    assert again.statuses == [0] * 4, again.stderr
    after = losses(tmp_path / "run")
    assert set(after) == {1, 2, 3, 4, 5}
    assert after[3] == before[3], "the step after the checkpoint is made twice"
