"""The quickstart's path in miniature, tool by tool, on a few sources: everything it prints and draws comes out."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from examples.quickstart import build_corpus, summarize
from tests.distributed import run
from tests.tools.test_train import train_in_worker
from tests.training.tiny import ROOT
from tools import convert_to_hf, generate, plot, preprocess_data, train_tokenizer

QUICKSTART = ROOT / "examples/quickstart"


def test_from_sources_to_a_model_that_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_corpus.main(["--output", str(tmp_path / "all.jsonl")])
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    assert len(lines) > 300
    assert not [line for line in lines if "tests" in Path(json.loads(line)["path"]).parts]
    (tmp_path / "corpus.jsonl").write_text("\n".join(sorted(lines, key=len)[100:160]) + "\n")
    tokenizer, corpus = tmp_path / "tokenizer.model", str(tmp_path / "corpus.jsonl")
    options = ["--type", "sentencepiece", "--model-type", "bpe", "--vocab-size", "400"]
    assert train_tokenizer.main([*options, "--input", corpus, "--output", str(tokenizer)]) == 0
    options = ["--tokenizer-type", "SPMTokenizer", "--vocab-file", str(tokenizer), "--append-eod"]
    assert preprocess_data.main([*options, "--input", corpus, "--output-prefix", str(tmp_path / "corpus")]) == 0
    for name in ("mesh", "base"):
        keys = dict(
            vocab_file=tokenizer, data_path=tmp_path / "corpus_text_document", save=tmp_path / name, split="80,20,0", num_workers=0,
            train_iters=4, eval_interval=2, eval_iters=1, log_interval=2, tensorboard_dir=tmp_path / "tensorboard", hidden_size=32,
        )  # fmt: skip
        files = [str(QUICKSTART / f"{file}.yml") for file in ("common", name, "cpu")]
        settings = [argument for key, value in keys.items() for argument in ("--set", f"{key}={value}")]
        ((status, errors),) = run(1, train_in_worker, [*files, *settings])
        assert status == 0, errors
    assert list((tmp_path / "tensorboard").iterdir())
    checkpoint = ["--checkpoint", str(tmp_path / "mesh")]
    assert convert_to_hf.main([*checkpoint, "--output", str(tmp_path / "hf")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    assert model.config.num_hidden_layers == 12
    assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 400)
    assert plot.main(["routers", *checkpoint, "--samples", "2", "--output", str(tmp_path / "routers.png")]) == 0
    assert (
        plot.main(["loss", "--run", f"a={tmp_path / 'mesh'}", "--line", "b=3", "--output", str(tmp_path / "a.png")])
        == 0
    )
    summarize.main(["--runs", str(tmp_path), "--output", str(tmp_path / "loss.png")])
    for picture in ("routers.png", "a.png", "loss.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out.splitlines()[-4:]
    assert [row.split("  ")[0] for row in table] == ["model", "2+4R2+2, mesh", "2+4R2+2, base", "unigram"]
    assert table[1].split()[-2] == f"{4 * 16 * 128:,}"
    assert generate.main([*checkpoint, "--prompt", "def f(", "--max-new-tokens", "5", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("def f(")
