"""tools/convert_to_hf.py: from a checkpoint folder to a model that transformers loads."""

import re
import resource
import signal
from pathlib import Path

import pytest
import torch

from tests.generation.checkpoints import write_checkpoint
from tests.hf.small_models import MESH, build, load, model_config, tokenizer_file, tokens
from tools.convert_to_hf import main


@pytest.fixture
def ours(tmp_path: Path):
    module = build(model_config())
    write_checkpoint(tmp_path / "save", module, MESH, tokenizer_file(tmp_path))
    return module


def convert(tmp_path: Path, *options: str, checkpoint: str = "save") -> int:
    return main(["--checkpoint", str(tmp_path / checkpoint), "--output", str(tmp_path / "out"), *options])


def test_a_checkpoint_becomes_a_model_with_the_same_logits(
    ours, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(tmp_path, "--max-shard-size", "50KB") == 0
    said = capsys.readouterr().out
    assert "logits of the whole model agree" in said and "MegaMeshForCausalLM" in said and "step 10" in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| steps | 10 |" in card and "| tokens seen | 5,120 (80 sequences of 64) |" in card
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "out")(tokens()).logits, ours.logits(tokens()), rtol=1e-5, atol=1e-5)
    assert convert(tmp_path) == 1
    assert "exists" in capsys.readouterr().err


def test_a_sample_of_layers_is_compared_where_that_is_asked_for(
    ours, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(tmp_path, "--dtype", "float16", "--check", "layers") == 0
    said = capsys.readouterr()
    assert "logits of a sample (prelude.0 core.0 coda.0) agree" in said.out
    stated = re.search(r"at most (.*) MB of tensors are in memory", said.err)
    assert stated and f"at most {stated[1]} MB of tensors were stated" in said.out
    assert "writing: 100%" in said.err and "reading back: 100%" in said.err
    half = load(tmp_path / "out", dtype="auto")
    assert torch.equal(half.lm_head.weight, ours.head.weight.half())


@pytest.mark.parametrize(
    ("options", "checkpoint", "text"),
    [
        ((), "nothing", "does not exist"),
        (("--max-shard-size", "big"), "save", "not a size"),
        (("--vocab-file", "none.json"), "save", "none.json"),
        (("--tokenizer-files", "sentencepiece"), "save", "characters.json is no sentencepiece model"),
    ],
)
def test_bad_input_is_one_error_and_no_folder(
    ours, options, checkpoint: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(tmp_path, *options, checkpoint=checkpoint) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and text in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_refused(ours, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next((tmp_path / "save" / "global_step10").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:1000])
    assert convert(tmp_path) == 1
    assert "truncated" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["characters.json", "save"]


@pytest.mark.parametrize("limit", [100, 3000, 20_000])
def test_a_full_disk_is_one_error_and_no_folder(
    ours, limit: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    try:
        assert convert(tmp_path) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        signal.signal(signal.SIGXFSZ, handler)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "could not be written" in error and "File too large" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["characters.json", "save"]
