"""tools/upcycle.py: what it says of the model that it builds, and what it refuses."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from megamesh.checkpoint.inference import load_for_inference, open_checkpoint
from megamesh.config.load import load_config
from megamesh.evaluation.text_loss import read_windows, text_loss
from tests.generation.checkpoints import write_checkpoint
from tests.hf.small_models import MESH, PLAIN, build, load, model_config, tokenizer, tokenizer_file, tokens
from tools.convert_to_hf import main as convert
from tools.upcycle import main


@pytest.fixture
def plain(tmp_path: Path):
    module = build(model_config(num_layers=6), PLAIN)
    write_checkpoint(tmp_path / "source", module, PLAIN, tokenizer_file(tmp_path))
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 5)
    return module


def upcycle(tmp_path: Path, *options: str, checkpoint: str = "source", output: str = "new") -> int:
    if "--recursion" not in options:
        options = ("--recursion", "1+2R2+1", *options)
    return main(["--checkpoint", str(tmp_path / checkpoint), "--output", str(tmp_path / output), *options])


def rows(said: str) -> list[list[str]]:
    return [line.split() for line in said.splitlines()]


def test_it_reports_layers_sizes_and_losses(plain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--core-from", "average", "--device", "cpu"]
    assert upcycle(tmp_path, *options, "--recursion-scheme", "base", output="base") == 0
    capsys.readouterr()
    assert upcycle(tmp_path, *options, "--mesh-router-slot-bias", "3", "--text", str(tmp_path / "text.txt")) == 0
    said = capsys.readouterr().out
    assert ["core.0", "1", "+", "3", "(mean)"] in rows(said) and ["coda.0", "5"] in rows(said)
    made, base = (load_for_inference(tmp_path / name)[0] for name in ("new", "base"))
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (plain, made)]
    assert ["parameters", *(f"{size:,}" for size in sizes)] in rows(said)
    assert ["compute", "depth", "6", "6"] in rows(said) and ["blocks", "with", "weights", "6", "4"] in rows(said)
    windows = read_windows([tmp_path / "text.txt"], tokenizer(tmp_path), 64)
    models = {"source": plain, "1+2R2+1 mesh": made, "1+2R2+1 base, the same weights": base}
    losses = [f"{text_loss(model, windows).loss:.4f}" for model in models.values()]
    assert len(set(losses)) == 3
    for name, loss in zip(models, losses, strict=True):
        (row,) = [line for line in said.splitlines() if line.startswith(f"{name}  ")]
        assert row.split()[-2] == loss
    assert "data.yml" in said.splitlines()[-1]


def test_the_configuration_inside_is_what_was_asked_for(
    plain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--recursion_scheme",
        "mesh",
        "--core_from",
        "1,4",
        "--mesh_num_slots",
        "6",
        "--mesh-router-slot-bias",
        "5",
    ]
    assert upcycle(tmp_path, "--recursion", "2+2R3+2", *options) == 0
    assert "name text with --text" in capsys.readouterr().out
    loaded = load_config([tmp_path / "new/global_step0/configs/upcycled.yml"], for_training=False).run
    kept = open_checkpoint(tmp_path / "new").run
    assert loaded == kept
    assert kept.model == plain.config.model_copy(update={"num_layers": 10})
    recursion = kept.recursion
    assert (recursion.recursion, recursion.recursion_scheme, recursion.num_slots) == ("2+2R3+2", "mesh", 6)
    assert (recursion.mesh_router_init, recursion.mesh_router_slot_bias) == ("slot", 5.0)
    assert kept.checkpoint.load == str(tmp_path / "new")


def test_an_export_of_it_has_its_logits(plain, tmp_path: Path) -> None:
    assert upcycle(tmp_path) == 0
    assert convert(["--checkpoint", str(tmp_path / "new"), "--output", str(tmp_path / "hf")]) == 0
    ours = load_for_inference(tmp_path / "new")[0]
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "hf")(tokens()).logits, ours.logits(tokens()), rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "hf/config.json").read_text())["num_hidden_layers"] == 6


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--core-from", "middle"), "is not a rule"),
        (("--recursion", "1+3R2+1", "--core-from", "average"), "not a multiple"),
        (("--recursion", "4+8R2+4"), "which has not so many"),
        (("--recursion-scheme", "base", "--mesh-num-slots", "4"), "mesh_num_slots has no effect"),
        (("--recursion-scheme-params", "{momentum: 1}"), "recursion_scheme_params: momentum is not known"),
        (("--text", "none.txt"), "text=none.txt"),
        (("--mesh-router-slot-bias", "1000"), "--mesh-router-slot-bias=1000 is not"),
        (("--device", "nowhere"), "--device=nowhere"),
        (("--vocab-file", "none.json"), "none.json"),
    ],
)
def test_bad_input_is_one_error_and_no_checkpoint(
    plain, options: tuple[str, ...], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upcycle(tmp_path, *options) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and text in errors[0]
    assert not (tmp_path / "new").exists()


def test_text_under_another_key_is_told_without_an_option_of_other_tools(
    plain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.jsonl").write_text('{"content": "words"}\n')
    assert upcycle(tmp_path, "--text", str(tmp_path / "other.jsonl")) == 1
    error = capsys.readouterr().err
    assert "no key 'text'; found 'content'; the text must stand under text" in error and "--jsonl-keys" not in error


def test_the_command_that_trains_on_can_be_pasted(plain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert upcycle(tmp_path, output="a b") == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("train on:"))
    assert words[2] == str(tmp_path / "a b/global_step0/configs/upcycled.yml")


def test_a_recursive_source_or_an_output_in_use_is_refused(
    plain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "recursive", build(model_config(), MESH), MESH, tokenizer_file(tmp_path))
    assert upcycle(tmp_path, checkpoint="recursive") == 1
    assert "is recursive already" in capsys.readouterr().err
    assert upcycle(tmp_path, output="source") == 1
    assert "already holds a checkpoint" in capsys.readouterr().err
