"""Hooks of the user: what is wrong with one is told in one message, and what one measures is the same on every layout."""

import math
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from megamesh.checkpoint.reader import read_weights
from megamesh.config.load import load_config
from megamesh.errors import ConfigError, HookError, TrainingError
from megamesh.parallel.agree import first_to_say, on_every_rank
from megamesh.training.hooks.metrics_file import read_metrics
from megamesh.training.hooks.user import load_hooks
from megamesh.training.trainer import Hook
from tests.distributed import run
from tests.engine.runs import BOLD
from tests.training.test_run import refused, train_here
from tests.training.tiny import write_config, write_corpus

HERE = "tests.training.measuring_hooks"
KEYS: dict[str, Any] = BOLD | {
    "make_vocab_size_divisible_by": 16,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "betas": [0.9, 0.95], "eps": 1e-6}},
    "train_iters": 2,
    "eval_iters": 0,
    "hidden_dropout": 0.0,
    "checkpoint_factor": None,
    "hooks": [f"{HERE}:Measure"],
}
TENSOR = {"model_parallel_size": 2}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tensor": (2, TENSOR),
    "tokens": (2, TENSOR | {"sequence_parallel": True}),
    "pipeline": (2, {"pipe_parallel_size": 2}),
    "data-whole": (2, {"zero_optimization": {"stage": 0}}),
    "data-ranges": (2, {"zero_optimization": {"stage": 2}}),
}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "nowhere.at_all:Hook",
            r"cannot be imported: ModuleNotFoundError: No module named 'nowhere'; put its folder on PYTHONPATH",
        ),
        (f"{HERE}:Measur", r"no such name in .*measuring_hooks.py; its hooks are: Measure, Stop, Fail"),
        (f"{HERE}:NOT_A_HOOK", r"it is a int, not a class or function"),
        (f"{HERE}:make_something_else", r"makes a dict, which is no hook"),
        (f"{HERE}:NeedsArguments", r"cannot be built: TypeError.*missing 1 required positional argument: 'path'"),
    ],
)
def test_what_is_wrong_with_an_entry_is_told_with_the_mend(entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_hooks([f"{HERE}:Measure", entry])
    assert entry in str(caught.value) and "\n" not in str(caught.value)


def test_a_module_that_fails_is_told_with_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("import math\n\nmath.sqrt(-1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"broken_module:A cannot be imported: ValueError: .* \(broken_module.py:3\)"):
        load_hooks(["broken_module:A"])
    for name, code, told in (
        ("unfinished_module", "x = (", "SyntaxError: '(' was never closed (unfinished_module.py, line 1); mend"),
        ("wanting_module", "\nimport nowhere", "No module named 'nowhere' (wanting_module.py:2); mend the module"),
    ):
        (tmp_path / f"{name}.py").write_text(code)
        with pytest.raises(ConfigError, match=re.escape(told)):
            load_hooks([f"{name}:A"])


@pytest.mark.parametrize("entry", ["my_module", "my_module:", ":MyHook", "my module:MyHook", "a.py:B:C"])
def test_entries_are_module_and_name(tmp_path: Path, entry: str) -> None:
    with pytest.raises(ConfigError, match=r"hooks=.*run.yml.*is not module:name; write e\.g\. my_module:MyHook"):
        load_config([write_config(tmp_path, hooks=[entry])])


def on_rank_1_only() -> list[Hook]:
    import torch.distributed as dist

    return load_hooks(["nowhere:A"] if dist.get_rank() else [])


def told_together(subject: str) -> tuple[str, bool]:
    with pytest.raises(ConfigError) as caught:
        on_every_rank(on_rank_1_only)
    return str(caught.value), first_to_say(subject)


def test_an_error_of_one_rank_is_told_by_all_and_of_all_ranks_one_speaks() -> None:
    (first, speaks), (second, speaks_too) = run(2, told_together, str(uuid.uuid4()))
    assert first == second and "nowhere:A cannot be imported" in first
    assert sorted([speaks, speaks_too]) == [False, True]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hooks")
    write_corpus(folder / "corpus")
    return folder


def failure(config: Path) -> str:
    with pytest.raises(HookError) as caught:
        train_here(config)
    assert isinstance(caught.value, TrainingError)
    return str(caught.value)


def test_an_error_in_a_hook_names_it_and_the_line(folder: Path) -> None:
    (told,) = run(1, failure, write_config(folder, "failing", **KEYS | {"hooks": [f"{HERE}:Fail"]}))
    assert told.startswith(f"hook {HERE}:Fail failed in after_step of step 2: ZeroDivisionError: division by zero (")
    assert told.endswith("mend it, or leave it out of `hooks`") and "(measuring_hooks.py:" in told
    (told,) = run(1, failure, write_config(folder, "text", **KEYS | {"hooks": [f"{HERE}:PublishText"]}))
    assert "PublishText failed in after_step of step 1: TrainingError: the words metrics of step 1" in told
    assert "'word'='seven', which is not a number" in told


def test_a_hook_that_is_not_there_is_an_error_before_any_work(folder: Path) -> None:
    config = write_config(folder, "absent", data_path=str(folder / "nowhere"), hooks=["nowhere:A"])
    (told,) = run(1, refused, config)
    assert "hooks: nowhere:A cannot be imported" in told


def test_sigterm_stops_a_run_in_order(folder: Path) -> None:
    config = write_config(folder, "stopped", **KEYS | {"train_iters": 50, "hooks": [f"{HERE}:Stop"]})
    assert run(1, train_here, config) == [4], "the step after the signal is the last"
    assert (folder / "stopped/latest").read_text() == "global_step4\n"


def test_a_checkpoint_that_a_hook_wants_stays_where_those_by_time_go(folder: Path) -> None:
    keys = {"train_iters": 4, "checkpoint_minutes": 1e-9, "hooks": [f"{HERE}:Keep"]}
    run(1, train_here, write_config(folder, "kept", **KEYS | keys))
    assert {path.name for path in (folder / "kept").glob("global_step*")} == {"global_step2", "global_step4"}


def test_what_a_hook_wants_on_one_rank_all_ranks_do(folder: Path) -> None:
    config = write_config(folder, "agreed", **KEYS | {"train_iters": 50, "hooks": [f"{HERE}:OneRank"]})
    assert run(2, train_here, config, timeout_seconds=60) == [3, 3]
    assert {path.name for path in (folder / "agreed").glob("global_step*")} == {"global_step2", "global_step3"}


def measured(folder: Path, name: str, num_processes: int, **keys: Any) -> dict[tuple[str, int], dict[str, float]]:
    run(num_processes, train_here, write_config(folder, name, **KEYS | keys))
    rows = read_metrics(folder / name / "metrics.jsonl")
    return {(row.pop("kind"), row.pop("step")): row for row in rows}


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    return measured(folder, "one", 1, zero_optimization={"stage": 0})


def test_on_one_process_norms_are_those_of_the_weights(
    folder: Path, expected: dict[tuple[str, int], dict[str, float]]
) -> None:
    norms = {name: float(torch.linalg.vector_norm(tensor)) for name, tensor in read_weights(folder / "one")}
    assert expected["fp32", 2] == pytest.approx(norms, rel=1e-5)
    row = expected["train", 2]
    assert math.sqrt(sum(norm**2 for norm in expected["gradient", 2].values())) == pytest.approx(row["grad_norm"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_and_means_are_those_of_one_process(
    folder: Path, layout: str, expected: dict[tuple[str, int], dict[str, float]]
) -> None:
    num_processes, keys = LAYOUTS[layout]
    found = measured(folder, layout, num_processes, **keys)
    kinds = ("update", "gradient", "fp32", "exp_avg", "exp_avg_sq", "mean_square")
    for kind in kinds:
        for step in (1, 2):
            assert found[kind, step] == pytest.approx(expected[kind, step], rel=1e-3, abs=1e-7), (kind, step)
    assert len(found["mean_square", 1]) == 2 and min(found["mean_square", 1].values()) > 0


def test_the_example_publishes_norms_of_parts(folder: Path) -> None:
    entry = "examples.hooks.gradient_norms:GradientNorms"
    rows = measured(folder, "example", 1, train_iters=10, log_interval=10, hooks=[entry])
    parts = {"embedding", "prelude", "core", "coda", "routers", "final_norm", "head"}
    assert set(rows["gradients", 10]) == set(rows["weights", 10]) == parts
    total = math.sqrt(sum(norm**2 for norm in rows["gradients", 10].values()))
    assert total == pytest.approx(rows["train", 10]["grad_norm"])
