"""tools/benchmark.py data: rows for what is installed, ratios within rounds, and the others' output equal to ours."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from megamesh.benchmark import data as data_benchmark
from megamesh.benchmark import data_baselines
from megamesh.benchmark.data import Way
from tests.data.preprocessing import corpora
from tools.benchmark import main


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts = [text for text in corpora.make_texts(count=300) if text]
    corpora.train_vocabulary(tmp_path, texts)
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return tmp_path / "corpus.jsonl"


def test_table_has_a_row_for_each_way(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data_benchmark, "find_spec", lambda name: None)  # the others start slowly
    words = ["--input", str(corpus), "--vocab-file", str(corpus.parent / "tokenizer.json"), "--workers", "1"]
    assert main(["data", *words, "--rounds", "1", "--index-tokens", "1e5", "--folder", str(corpus.parent)]) == 0
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert rows[1:3] == ["MegaMesh, 1 process", "NeoX-style loop, 1 process"]
    assert "in the training process" in rows
    assert sorted(path.name for path in corpus.parent.iterdir()) == ["corpus.jsonl", "tokenizer.json"]


def test_the_loop_writes_what_we_write(corpus: Path) -> None:
    tokenizer, loop, ours = (str(corpus.parent / name) for name in ("tokenizer.json", "loop", "ours"))
    data_baselines.main(["loop", str(corpus), tokenizer, loop, "1"])
    (way, *_) = data_benchmark.ways(corpus, corpus, Path(tokenizer), 1)
    subprocess.run(way.command(Path(ours)), check=True, capture_output=True)
    for suffix in ("bin", "idx"):
        assert Path(f"{loop}.{suffix}").read_bytes() == Path(f"{ours}_text_document.{suffix}").read_bytes()


def test_ratios_are_per_byte_and_within_rounds(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 100)
    (tmp_path / "small").write_bytes(b"x" * 10)
    fast = Way("fast", lambda prefix: [], tmp_path / "large", [1.0, 4.0])
    slow = Way("slow", lambda prefix: [], tmp_path / "small", [2.0, 2.0])
    assert fast.ratios(slow) == [20.0, 5.0]
    assert slow.ratios(slow) == [1.0, 1.0]


def test_the_peak_is_the_commands_own(tmp_path: Path) -> None:
    """A command that needs little, started by a process that holds much."""
    held = bytearray(300 << 20)
    (tmp_path / "input").write_bytes(b"x")
    way = Way("small", lambda prefix: [sys.executable, "-S", "-c", "pass"], tmp_path / "input")
    data_benchmark.measure_ways([way], 2, tmp_path)
    assert len(held) > 4 * max(way.peak_bytes)


def test_documentation_is_found_and_different() -> None:
    texts = list(islice(data_benchmark.documentation(), 50))
    assert len(set(texts)) == 50
