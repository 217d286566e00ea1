"""tools/convert_from_hf.py: from a transformers folder to a run that trains on, generates and exports."""

import signal
from pathlib import Path

import pytest
import torch

from megamesh.checkpoint.reader import read_meta, read_weights
from megamesh.config.load import load_config
from megamesh.data.samples.build import build_datasets
from megamesh.data.samples.loader import iterate_batches
from megamesh.hf.importing.pretrained import read_pretrained_weights
from megamesh.training.hooks.signals import SignalHook
from megamesh.training.run import train
from tests.distributed import run
from tests.hf.stock_models import old_pythia, saved, stock_model
from tests.training.tiny import losses, write_config, write_corpus
from tools.convert_from_hf import main
from tools.convert_to_hf import main as convert_to_hf
from tools.generate import main as generate

FROM_IMPORTED = dict.fromkeys(
    ("num_layers", "recursion", "recursion_scheme", "hidden_size", "num_attention_heads", "max_position_embeddings", "pos_emb",
     "no_weight_tying", "vocab_size", "hidden_dropout")
)  # fmt: skip
SEQUENCE, BATCH, STEPS = 16, 4, 2


def convert(tmp_path: Path, *options: str, source: str = "theirs", output: str = "imported") -> int:
    return main(["--input", str(tmp_path / source), "--output", str(tmp_path / output), *options])


def train_here(configs: list[Path]) -> int:
    """A whole run in a worker of the test pool; returns the last step."""
    trainer = train(load_config(configs), torch.device("cpu"), SignalHook())
    trainer.engine.close()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    return trainer.state.step


def first_loss(module, configs: list[Path]) -> float:
    """transformers' loss on the batch that the run sees first."""
    config = load_config(configs).run
    data = build_datasets(
        config.data, sequence_length=SEQUENCE, seed=config.training.seed, num_samples=(BATCH * STEPS, BATCH * 2, BATCH * 2),
        vocab_size=64,
    ).train  # fmt: skip
    assert data is not None
    batches = iterate_batches(
        data, consumed_samples=0, total_samples=BATCH * STEPS, micro_batch_size=BATCH, dp_rank=0, dp_size=1, num_workers=0
    )  # fmt: skip
    batch = next(iter(batches))
    with torch.no_grad():
        logits_BSV = module(batch.tokens_BS.long()).logits
    return float(torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), batch.labels_BS.flatten().long()))


@pytest.fixture
def theirs(tmp_path: Path):
    module = stock_model("neox-parallel", vocab_size=64)
    saved(module, tmp_path / "theirs")
    return module


def test_a_run_begins_with_the_loss_of_the_imported_model_and_goes_on(
    theirs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(tmp_path) == 0
    said = capsys.readouterr().out.splitlines()
    assert "agree with transformers'" in said[0] and "GPTNeoXForCausalLM" in said[1] and "peak memory" in said[1]
    imported = Path(said[2].split()[-2])  # train on: python tools/train.py THIS data.yml

    write_corpus(tmp_path / "corpus")
    data = write_config(tmp_path, "data", **FROM_IMPORTED, seq_length=SEQUENCE, train_iters=STEPS, checkpoint_factor=1)
    assert run(1, train_here, [imported, data]) == [STEPS]
    assert losses(tmp_path / "data")[1] == pytest.approx(first_loss(theirs, [imported, data]), rel=1e-5)
    assert read_meta(tmp_path / "data").state.step == STEPS
    before, after = dict(read_weights(tmp_path / "imported")), dict(read_weights(tmp_path / "data"))
    assert before.keys() == after.keys() and not torch.equal(before["head.weight"], after["head.weight"])

    assert run(1, train_here, [imported, data]) == [STEPS], "the same command finds its own last checkpoint"
    assert sorted(losses(tmp_path / "data")) == [1, 2]


def test_the_imported_folder_generates_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = old_pythia(tmp_path / "theirs")
    assert convert(tmp_path) == 0
    capsys.readouterr()
    checkpoint = str(tmp_path / "imported")
    assert generate(["--checkpoint", checkpoint, "--prompt", "Once", "--max-new-tokens", "4", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("Once")
    assert convert_to_hf(["--checkpoint", checkpoint, "--output", str(tmp_path / "out"), "--dtype", "float16"]) == 0
    expected, found = (dict(read_pretrained_weights(path)) for path in (folder, tmp_path / "out"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("options", "source", "text"),
    [
        ((), "pythia-160m", "not a folder here"),
        (("--vocab-file", "none.json"), "theirs", "none.json"),
        (("--tokenizer-type", "SPMTokenizer"), "theirs", "tokenizer.model"),
    ],
)
def test_bad_input_is_one_error_and_no_folder(
    theirs, options, source: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(tmp_path, *options, source=source) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in errors if line.startswith("error: ")]) == 1 and text in errors[-1]
    assert not (tmp_path / "imported").exists()


def test_the_comparison_can_be_left_out(theirs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(tmp_path, "--check", "none") == 0
    assert capsys.readouterr().out.startswith("logits were not compared, as asked\n")


def test_an_existing_folder_is_left_alone(theirs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "imported").mkdir()
    assert convert(tmp_path) == 1
    assert "exists" in capsys.readouterr().err
    assert not list((tmp_path / "imported").iterdir())
