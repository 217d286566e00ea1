"""Whole runs on a tiny corpus: interrupted ones equal straight ones bit for bit, and every ZeRO stage equals one process."""

import json
import logging
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from megamesh.checkpoint.reader import read_meta, read_weights
from megamesh.config.load import load_config
from megamesh.engine.engine import StepResult
from megamesh.errors import MegaMeshError
from megamesh.training.hooks.metrics_file import read_metrics
from megamesh.training.hooks.signals import SignalHook
from megamesh.training.run import prepare, train
from tests.distributed import run
from tests.processes import run_ranks, run_script
from tests.training.tiny import launch, losses, write_config, write_corpus

# Runs that are interrupted: there are steps before and after a checkpoint and an evaluation in the middle.
SHORT = {"train_iters": 8, "checkpoint_factor": 4, "eval_interval": 4}
KILLED_RUN = "tests/training/killed_run.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus")
    return tmp_path


def train_here(config: Path) -> int:
    """A whole run in a worker of the test pool; returns the last step."""
    trainer = train(load_config([config]), torch.device("cpu"), SignalHook())
    trainer.engine.close()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    return trainer.state.step


def refused(config: Path) -> str:
    """What a run that must fail says, in a worker."""
    with pytest.raises(MegaMeshError) as caught:
        train_here(config)
    return str(caught.value)


def weights(save: Path) -> dict[str, torch.Tensor]:
    return dict(read_weights(save))


def assert_same_run(one: Path, other: Path) -> None:
    """Every step's loss, every evaluation and every final weight, bit for bit."""
    assert losses(one) == losses(other)
    assert losses(one, "valid") == losses(other, "valid")
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize(("stage", "dead"), [(1, None), (2, 0), (3, 1)])
def test_a_killed_run_continues_bit_for_bit(folder: Path, stage: int, dead: int | None) -> None:
    """All processes at once, after step 6, or one in the middle of it, which another one names. Once under DeepSpeed's launcher."""
    changes = SHORT | dict(
        zero_optimization={"stage": stage},
        precision="bfloat16" if stage == 2 else "fp32",
        num_workers=1 if stage == 1 else 0,
        checkpoint_activations=stage == 3,
    )
    straight, killed = write_config(folder, "straight", **changes), write_config(folder, "killed", **changes)
    assert run(2, train_here, straight) == [8, 8]
    moment = "step:6" if dead is None else f"micro-batch:6:{dead}"
    if stage == 2:
        died = launch(moment, killed, num_processes=2, script=KILLED_RUN, check=False)
        assert died.returncode != 0
        told = died.stderr
    else:
        ranks = run_ranks(2, KILLED_RUN, moment, killed)
        assert [rank.returncode for rank in ranks] == [
            -signal.SIGKILL if dead in (None, rank) else 1 for rank in range(2)
        ]
        told = "".join(rank.stderr for rank in ranks)
    assert (folder / "killed/latest").read_text().strip() == "global_step4"
    assert len(losses(folder / "killed")) == (6 if dead is None else 5)
    if dead is not None:
        assert told.count("The same command continues") == told.count(f"error: rank {dead} on ") == 1
    assert run(2, train_here, killed) == [8, 8]
    assert_same_run(folder / "straight", folder / "killed")


@pytest.mark.parametrize("moment", ["before-rename", "before-latest"])
def test_a_run_killed_inside_a_save_continues_bit_for_bit(folder: Path, moment: str) -> None:
    straight, killed = write_config(folder, "straight", **SHORT), write_config(folder, "killed", **SHORT)
    run(1, train_here, straight)
    died = run_script(KILLED_RUN, f"save:8:{moment}", killed)
    assert died.returncode == -signal.SIGKILL
    assert (folder / "killed/latest").read_text().strip() == "global_step4"
    assert run(1, train_here, killed) == [8]
    assert_same_run(folder / "straight", folder / "killed")
    assert {path.name for path in (folder / "killed").iterdir()} == {
        "global_step4", "global_step8", "latest", "metrics.jsonl",
    }  # fmt: skip


def test_a_checkpoint_continues_on_another_number_of_processes_and_zero_stage(folder: Path) -> None:
    """Dropout too: its streams belong to the samples of a micro-batch, whichever process reads it."""
    run(2, train_here, write_config(folder, "straight", **SHORT))
    run(2, train_here, write_config(folder, "first", **SHORT | {"train_iters": 4, "lr_decay_iters": 8}))
    for name, stage, processes in (("alone", 0, 1), ("zero3", 3, 2)):
        changes = SHORT | dict(load=str(folder / "first"), zero_optimization={"stage": stage}, lr_decay_iters=8)
        run(processes, train_here, write_config(folder, name, **changes))
        straight, found = losses(folder / "straight"), losses(folder / name)
        assert set(found) == set(range(5, 9))
        assert all(abs(found[step] / straight[step] - 1) < 1e-5 for step in found)


def test_a_damaged_checkpoint_is_named_and_an_older_one_continues_bit_for_bit(folder: Path) -> None:
    """As the message says: its name goes into `latest`. Or another run loads it by its path."""
    straight, config = write_config(folder, "straight", checkpoint_factor=5), write_config(folder, checkpoint_factor=5)
    run(1, train_here, straight)
    run(1, train_here, config)
    save = folder / "run"
    shutil.rmtree(save / "global_step20")
    (save / "latest").write_text("global_step15\n")
    shard = save / "global_step15/__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (message,) = run(1, refused, config)
    assert f"{shard} is damaged: " in message
    assert f"(global_step5, global_step10), write its name into {save / 'latest'}" in message
    (save / "latest").write_text("global_step10\n")
    assert run(1, train_here, config) == [20]
    assert_same_run(folder / "straight", save)
    run(1, train_here, write_config(folder, "other", checkpoint_factor=5, load=str(save / "global_step10")))
    assert {step: loss for step, loss in losses(folder / "straight").items() if step > 10} == losses(folder / "other")


@pytest.mark.parametrize("verify", [True, False])
def test_damage_is_told_as_damage_unless_nothing_is_to_be_verified(folder: Path, verify: bool) -> None:
    """And not as another architecture, which a flipped digit in meta.json looks like."""
    run(1, train_here, write_config(folder, "first", train_iters=2, lr_decay_iters=4))
    meta = folder / "first/global_step2/meta.json"
    text = meta.read_text()
    meta.write_text(text.replace('"consumed_samples": 8', '"consumed_samples": 4'))
    config = write_config(folder, train_iters=4, load=str(folder / "first"), verify_checkpoint=verify)
    if verify:
        assert f"{meta} is damaged: it has changed" in run(1, refused, config)[0]
    else:
        assert run(1, train_here, config) == [4]
    meta.write_text(text.replace('"hidden_size": 32', '"hidden_size": 33'))
    shutil.rmtree(folder / "run", ignore_errors=True)
    expected = "is damaged: it has changed" if verify else "is of another architecture"
    assert expected in run(1, refused, config)[0]


def test_a_run_does_not_load_an_older_checkpoint_of_its_own_behind_its_back(folder: Path) -> None:
    """The same folder, spelled otherwise, is the run itself."""
    keys = dict(train_iters=4, checkpoint_factor=2)
    run(1, train_here, write_config(folder, load=f"{folder}/./run/", **keys))
    config = write_config(folder, load=str(folder / "run/global_step2"), **keys)
    (message,) = run(1, refused, config)
    assert "is a checkpoint of this run, whose latest is global_step4" in message
    assert f"write global_step2 into {folder / 'run/latest'}" in message


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ({"checkpoint_factor": 4}, {"global_step4", "global_step6"}),
        ({"checkpoint_factor": 4, "async_save": True}, {"global_step4", "global_step6"}),
        ({"checkpoint_factor": 4, "keep_last_n_checkpoints": 3}, {"global_step4", "global_step5", "global_step6"}),
        ({"checkpoint_minutes": 0, "checkpoint_factor": None}, {"global_step6"}),
    ],
    ids=["replaced", "in-the-background", "counted", "never"],
)
def test_checkpoints_by_time_go_when_the_next_is_complete(folder: Path, keys: dict[str, Any], kept: set[str]) -> None:
    """They are there for a run that ends early, and must not fill the disk; those of named steps stay."""
    settings = {"checkpoint_minutes": 1e-9, "train_iters": 6, "eval_iters": 0} | keys
    assert run(2, train_here, write_config(folder, **settings)) == [6, 6]
    assert {path.name for path in (folder / "run").glob("global_step*")} == kept
    assert read_meta(folder / "run").until_next is False


def test_a_run_continues_from_a_checkpoint_by_time_and_then_removes_it(folder: Path) -> None:
    keys = {"checkpoint_minutes": 1e-9, "checkpoint_factor": None, "eval_iters": 0}
    run(1, train_here, write_config(folder, "straight", train_iters=6, **keys | {"checkpoint_minutes": 0}))
    died = run(1, die_after_step_3, write_config(folder, train_iters=6, **keys))
    assert died == [{"global_step3"}]
    assert run(1, train_here, write_config(folder, train_iters=6, **keys)) == [6]
    assert {path.name for path in (folder / "run").glob("global_step*")} == {"global_step6"}
    assert_same_run(folder / "run", folder / "straight")


def die_after_step_3(config: Path) -> set[str]:
    """What is left of a run that an error ends in step 4."""
    trainer = prepare(load_config([config]), torch.device("cpu"), SignalHook())
    train_step = trainer.engine.train_step

    def dying(*inputs: Any) -> StepResult:
        if trainer.state.step == 3:
            raise RuntimeError("gone")
        return train_step(*inputs)

    trainer.engine.train_step = dying
    with pytest.raises(RuntimeError, match="gone"):
        trainer.train()
    trainer.engine.close()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    return {path.name for path in config.with_suffix("").glob("global_step*")}


def test_the_checkpoint_tells_where_it_came_from(folder: Path) -> None:
    config = write_config(folder, train_iters=3)
    run(1, train_here, config)
    meta = read_meta(folder / "run")
    assert (meta.state.step, meta.state.consumed_samples, meta.state.seed) == (3, 12, 1234)
    assert meta.config["model"]["hidden_size"] == 32
    assert (folder / "run/global_step3/configs/run.yml").read_text() == config.read_text()


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_checkpoint_of_step_0_changes_nothing_and_can_be_continued(folder: Path, stage: int) -> None:
    keys = dict(train_iters=4, lr_decay_iters=4, zero_optimization={"stage": stage})
    run(1, train_here, write_config(folder, "plain", **keys))
    run(1, train_here, write_config(folder, "saved", extra_save_iters=[0], **keys))
    assert_same_run(folder / "plain", folder / "saved")
    assert sorted(path.name for path in (folder / "saved").glob("global_step*")) == ["global_step0", "global_step4"]
    (folder / "saved/latest").write_text("global_step0\n")
    run(1, train_here, folder / "saved.yml")
    assert_same_run(folder / "plain", folder / "saved")


def test_train_epochs_of_less_than_a_batch_is_an_error(folder: Path) -> None:
    config = write_config(
        folder, train_iters=None, train_epochs=1, train_batch_size=1000, train_micro_batch_size_per_gpu=None
    )
    assert "train_epochs=1 gives 211 samples of 16 tokens, less than one batch of 1000" in run(1, refused, config)[0]


def test_a_finished_run_does_nothing_more(folder: Path) -> None:
    config = write_config(folder, train_iters=3)
    assert run(1, train_here, config) == [3]
    before = (folder / "run/global_step3/meta.json").stat().st_mtime_ns
    metrics = [(row["kind"], row["step"]) for row in read_metrics(folder / "run/metrics.jsonl")]
    assert run(1, train_here, config) == [3]
    assert (folder / "run/global_step3/meta.json").stat().st_mtime_ns == before
    assert [(row["kind"], row["step"]) for row in read_metrics(folder / "run/metrics.jsonl")] == metrics
    assert run(1, train_here, write_config(folder, train_iters=2, lr_decay_iters=3)) == [3]


def train_with_messages(config: Path) -> tuple[int, list[str]]:
    """The last step of a run in a worker, and what it logged."""
    said: list[str] = []
    logger, handler = logging.getLogger("megamesh"), logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        return train_here(config), said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_a_run_whose_batch_follows_the_number_of_processes_continues_on_fewer_and_is_warned(folder: Path) -> None:
    """Half the batch from step 4 on: the samples go on after those that were read, and there are enough of them."""
    keys = dict(train_batch_size=None, train_micro_batch_size_per_gpu=2, lr_decay_iters=6)
    run(2, train_here, write_config(folder, train_iters=3, **keys))
    ((last_step, said),) = run(1, train_with_messages, write_config(folder, train_iters=6, **keys))
    assert last_step == 6
    assert read_meta(folder / "run").state.consumed_samples == 3 * 4 + 3 * 2
    assert any("train_batch_size was 4" in text and "is 2 now" in text for text in said)
    assert any("train_iters was 3" in text and "is 6 now" in text for text in said)
    # What holds of optimizer and schedule is said before the first step, also where the file leaves it out.
    block = "lr 0.01, betas 0.9 and 0.95, eps 1e-08 (eps: torch's default, which the optimizer block leaves out)"
    (optimizer,) = [
        index for index, text in enumerate(said) if text.startswith(f"optimizer: torch AdamW (fused), {block}; ")
    ]
    schedule = said.index("learning rate: linear decay to 0 over 6 steps, after a warm-up over 0.06 steps")
    assert optimizer < schedule < next(index for index, text in enumerate(said) if text.startswith("steps 4 to 6"))


@pytest.mark.parametrize("how", ["finetune", "no_load_optim"])
def test_a_run_from_another_runs_weights_continues_as_itself(folder: Path, how: str) -> None:
    """Typed again after an interruption, the command goes on with the run's own moments, and does not begin again."""
    run(1, train_here, write_config(folder, "other", train_iters=4, lr_decay_iters=12))
    keys = {how: True, "load": str(folder / "other"), "train_iters": 12, "checkpoint_factor": 8, "eval_interval": 4}
    run(1, train_here, write_config(folder, "straight", **keys))
    run(1, train_here, write_config(folder, "stopped", **keys))
    shutil.rmtree(folder / "stopped/global_step12")
    (folder / "stopped/latest").write_text("global_step8\n")
    run(1, train_here, folder / "stopped.yml")
    assert_same_run(folder / "straight", folder / "stopped")
    assert min(losses(folder / "straight")) == (1 if how == "finetune" else 5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dropout_goes_on_with_the_seed_of_the_checkpoint_unless_told_otherwise(folder: Path, dropout: float) -> None:
    """With another seed the samples are others, too: alike in both runs."""
    run(1, train_here, write_config(folder, "first", train_iters=3, lr_decay_iters=6, hidden_dropout=dropout))
    for name, again in (("kept", False), ("anew", True)):
        keys = dict(load=str(folder / "first"), seed=99, no_load_rng=again, hidden_dropout=dropout)
        run(1, train_here, write_config(folder, name, train_iters=6, lr_decay_iters=6, **keys))
        assert read_meta(folder / name).state.seed == (99 if again else 1234)
    kept, anew = losses(folder / "kept"), losses(folder / "anew")
    assert kept.keys() == anew.keys() == {4, 5, 6}
    assert (kept == anew) == (dropout == 0)


def test_train_epochs_reads_every_token_once(folder: Path) -> None:
    config = write_config(
        folder, train_iters=None, train_epochs=1, train_batch_size=8, train_micro_batch_size_per_gpu=None
    )
    (last_step,) = run(1, train_here, config)
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == last_step == 211 // 8
