"""What command lines of several tools share: a key that was written otherwise than with --set is told how."""

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from megamesh.arguments import add_configs, parse_with_overrides
from megamesh.config.load import load_config
from tools import benchmark, plan, train


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_configs(parser)
    parser.add_argument("--gpus", type=int)
    return parse_with_overrides(parser, arguments)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit, match="2"):
        parse(*arguments)
    return capsys.readouterr().err.splitlines()[-1].partition("error: ")[2]


IS_A_KEY = "is a key of the configuration: write --set"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("a.yml", "train_iters=5"), "'train_iters=5' is not a file; to replace a key, write --set train_iters=5"),
        (("a.yml", "--gpus", "2", "save=my run"), "save=my run; to replace a key, write --set 'save=my run'"),
        (("a.yml", "--set", "a=1", "b=2"), "b=2; to replace a key, write --set b=2"),
        (("a.yml", "--train-iters", "5"), f"--train-iters 5; train_iters {IS_A_KEY} train_iters=5"),
        (("a.yml", "--optimizer.params.lr=1"), f"=1; optimizer.params.lr {IS_A_KEY} optimizer.params.lr=1"),
        (("a.yml", "--compile"), f"--compile; compile {IS_A_KEY} compile=VALUE"),
        (("a.yml", "--gpus", "2", "b.yml"), "unrecognized arguments: b.yml; name all files side by side"),
        (("a.yml", "--gqus", "2"), "unrecognized arguments: --gqus 2"),
        (("a.yml", "--set", "save=@x"), "write text in YAML's quotes: save='\"@x\"'"),
    ],
)
def test_a_key_without_set_is_told_how(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], hint: str
) -> None:
    assert said(capsys, *arguments).endswith(hint)


def test_the_hint_is_a_command_line_that_works(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    hint = said(capsys, "a.yml", "save=my run")
    mended = parse("a.yml", *shlex.split(hint[hint.index("--set") :]))
    path = tmp_path / "a.yml"
    path.write_text("num_layers: 2\nhidden_size: 8\nnum_attention_heads: 2\nmax_position_embeddings: 8\n")
    assert load_config([path], mended.overrides, for_training=False).run.checkpoint.save == "my run"


def test_a_file_may_have_such_a_name(tmp_path: Path) -> None:
    path = tmp_path / "lr=1.yml"
    path.touch()
    assert parse(str(path), "b.yml").configs == [str(path), "b.yml"]


@pytest.mark.parametrize(
    ("parse_tool", "before"),
    [(train.parse_arguments, []), (plan.parse_arguments, ["--gpus", "2"]), (benchmark.parse_arguments, ["train"])],
)
def test_every_tool_that_has_set_says_so(
    parse_tool: Callable[[list[str]], argparse.Namespace], before: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_tool([*before, "a.yml", "seed=5"])
    assert "to replace a key, write --set seed=5" in capsys.readouterr().err
    assert parse_tool([*before, "a.yml", "--set", "seed=5"]).overrides["seed"].value == 5
