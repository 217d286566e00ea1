"""tools/convert_to_hf.py: from a checkpoint folder to a model that transformers loads."""

import pytest
import torch

from tests.generation.checkpoints import write_checkpoint
from tests.hf.small_models import MESH, build, load, model_config, tokenizer_file, tokens
from tools.convert_to_hf import main


@pytest.fixture
def ours(tmp_path):
    module = build(model_config())
    write_checkpoint(tmp_path / "save", module, MESH, tokenizer_file(tmp_path))
    return module


def convert(tmp_path, *options: str, checkpoint: str = "save") -> int:
    return main(["--checkpoint", str(tmp_path / checkpoint), "--output", str(tmp_path / "out"), *options])


def test_a_checkpoint_becomes_a_model_with_the_same_logits(ours, tmp_path, capsys) -> None:
    assert convert(tmp_path, "--max-shard-size", "50KB") == 0
    said = capsys.readouterr().out
    assert "largest difference" in said and "MegaMeshForCausalLM" in said and "step 10" in said
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "out")(tokens()).logits, ours.logits(tokens()), rtol=1e-5, atol=1e-5)
    assert convert(tmp_path) == 1
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "checkpoint", "text"),
    [
        ((), "nothing", "does not exist"),
        (("--max-shard-size", "big"), "save", "not a size"),
        (("--vocab-file", "none.json"), "save", "none.json"),
    ],
)
def test_bad_input_is_one_error_and_no_folder(ours, options, checkpoint, text, tmp_path, capsys) -> None:
    assert convert(tmp_path, *options, checkpoint=checkpoint) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and text in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_refused(ours, tmp_path, capsys) -> None:
    file = next((tmp_path / "save" / "global_step10").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:1000])
    assert convert(tmp_path) == 1
    assert "truncated" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["characters.json", "save"]
