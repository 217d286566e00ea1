"""tools/preprocess_data.py end to end: ids equal the tokenizer's, output equal at any number of workers, bad input named."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megamesh.config.sections import TokenizerConfig
from megamesh.data.indexed import IndexedDataset
from megamesh.data.text_input import cut_into_shards, read_shard
from megamesh.tokenizer import Tokenizer, build_tokenizer, train
from tools.preprocess_data import main


@pytest.fixture
def texts() -> list[str]:
    draw = random.Random(2)
    words = ["alpha", "beta\n", "\tgamma", "é", "字", "🙂", "  ", "'\"\\", "\u2028", "\r\n"]
    return ["".join(draw.choices(words, k=draw.choice([0, 1, 5, 300]))) for _ in range(400)]


@pytest.fixture
def vocabulary(tmp_path: Path, texts: list[str]) -> Path:
    train.train_byte_level_bpe(texts, tmp_path / "tokenizer.json", vocab_size=300)
    return tmp_path / "tokenizer.json"


@pytest.fixture
def tokenizer(vocabulary: Path) -> Tokenizer:
    return build_tokenizer(TokenizerConfig(tokenizer_type="HFTokenizer", vocab_file=str(vocabulary)))


@pytest.fixture
def corpus(tmp_path: Path, texts: list[str]) -> Path:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": t, "title": t[:5]}, ensure_ascii=i % 2 == 0) for i, t in enumerate(texts)]
    path.write_bytes(
        ("\ufeff" + "\n".join([*lines[:50], "", "   ", *lines[50:]])).encode()
    )  # a mark, blank lines, no final newline
    return path


def arguments(corpus: Path, vocabulary: Path, prefix: str, *more: str) -> list[str]:
    base = [
        "--input",
        str(corpus),
        "--tokenizer-type",
        "HFTokenizer",
        "--vocab",
        str(vocabulary),
        "--dataset-impl",
        "mmap",
    ]
    return [*base, "--output-prefix", str(corpus.parent / prefix), *more]


def test_ids_equal_the_tokenizers_and_workers_do_not_change_a_byte(
    corpus: Path, vocabulary: Path, tokenizer: Tokenizer, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus.parent / "b.txt").write_text("one whole\nfile", encoding="utf-8")
    monkeypatch.setattr("megamesh.data.preprocess.SHARD_BYTES", 7_000)
    for workers in (1, 2):
        words = arguments(
            corpus,
            vocabulary,
            f"out{workers}",
            "--append-eod",
            "--workers",
            str(workers),
            "--num-docs",
            "400",
            "--log-interval",
            "10",
        )
        words[1] += f",{corpus.parent / 'b.txt'}"
        assert main(words) == 0
    expected = [[*tokenizer.encode(t), tokenizer.eod_id] for t in [*texts, "one whole\nfile"] if t]
    dataset = IndexedDataset(corpus.parent / "out1_text_document")
    assert [dataset[i].tolist() for i in range(len(dataset))] == expected
    for suffix in ("bin", "idx"):
        one, two = (corpus.parent / f"out{n}_text_document.{suffix}" for n in (1, 2))
        assert one.read_bytes() == two.read_bytes()
    assert sorted(p.name for p in corpus.parent.iterdir() if p.name.startswith((".", "out"))) == [
        f"out{n}_text_document.{suffix}" for n in (1, 2) for suffix in ("bin", "idx")
    ]


def test_several_keys_stay_aligned(corpus: Path, vocabulary: Path, tokenizer: Tokenizer, texts: list[str]) -> None:
    assert main(arguments(corpus, vocabulary, "out", "--jsonl-keys", "text", "title")) == 0
    kept = [t for t in texts if t]
    for key, expected in (("text", kept), ("title", [t[:5] for t in kept])):
        dataset = IndexedDataset(corpus.parent / f"out_{key}_document")
        assert [dataset[i].tolist() for i in range(len(dataset))] == tokenizer.encode_batch(expected)


@pytest.mark.parametrize("size", [1, 2, 3, 17, 100, 10_000_000])
def test_shards_of_any_size_hold_every_line_once(tmp_path: Path, size: int) -> None:
    records = [{"text": "x" * (i % 40)} for i in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    shards = cut_into_shards([tmp_path / "a.jsonl"], size)
    assert [record for shard in shards for record in read_shard(shard, ["text"])] == records


BAD_LINES = {
    b'{"text": "cut': "a.jsonl:403: not JSON",
    b"plain": "a.jsonl:403: not JSON",
    b'{"text": "\xff"}': "a.jsonl:403: not UTF-8",
    b'{"body": "x"}': "a.jsonl:403: no key 'text'; found 'body'",
    b'{"text": null}': "a.jsonl:403: 'text' is null instead of text",
    b'{"text": 5}': "a.jsonl:403: 'text' is a int instead of text",
    b'["text"]': "a.jsonl:403: a list instead of a JSON object",
    b'{"text": "\\ud800"}': "a.jsonl:403: 'text' holds half of a surrogate pair",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_line_stops_with_file_and_line_and_leaves_nothing(
    corpus: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str], line: bytes
) -> None:
    with corpus.open("ab") as file:
        file.write(b"\n" + line + b"\n")
    before = sorted(corpus.parent.iterdir())
    assert main(arguments(corpus, vocabulary, "out")) == 1
    assert BAD_LINES[line] in capsys.readouterr().err
    assert sorted(corpus.parent.iterdir()) == before


def test_bad_text_file_is_named(
    tmp_path: Path, corpus: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.txt").write_bytes(b"fine\nnot \xe9 fine")
    assert main(arguments(tmp_path / "b.txt", vocabulary, "out")) == 1
    assert "b.txt:2: not UTF-8" in capsys.readouterr().err


class StuckEncoder:
    """Names its process and never returns."""

    vocab_size, eod_id = 300, 0

    def __init__(self, folder: Path):
        self.folder = folder

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        (self.folder / "worker").write_text(str(os.getpid()))
        time.sleep(600)
        return []


KILLED = """
import sys
from functools import partial
from pathlib import Path
from megamesh.data.preprocess import Settings, preprocess
from tests.tools.test_preprocess_data import StuckEncoder
folder = Path(sys.argv[1])
preprocess([folder / "a.jsonl"], folder / "out", partial(StuckEncoder, folder), Settings())
"""


def test_a_killed_run_leaves_no_process_and_its_files_are_named_by_the_next(
    corpus: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(corpus.parent)], cwd=Path(__file__).parents[2])
    named, deadline = corpus.parent / "worker", time.monotonic() + 60
    while not (named.exists() and named.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.kill()
    run.wait()
    worker = Path(f"/proc/{named.read_text()}/stat")
    while worker.exists() and " Z " not in worker.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert time.monotonic() < deadline, "the worker lives on"
    assert main(arguments(corpus, vocabulary, "out")) == 0
    assert len(IndexedDataset(corpus.parent / "out_text_document")) > 0
    left = [path for path in corpus.parent.iterdir() if "shards-" in path.name or ".tmp-" in path.name]
    said = capsys.readouterr().err
    assert len(left) == 2 and all(f"{path}: left by a run that was killed" in said for path in left)


def test_existing_output_is_kept_without_overwrite(
    corpus: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = corpus.parent / "out_text_document.idx"
    old.write_text("old")
    assert main(arguments(corpus, vocabulary, "out")) == 1
    assert "out_text_document.idx: exists; choose another --output-prefix or add --overwrite" in capsys.readouterr().err
    assert old.read_text() == "old"
    assert main(arguments(corpus, vocabulary, "out", "--overwrite")) == 0
    assert len(IndexedDataset(corpus.parent / "out_text_document")) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--input", "absent.jsonl"], "absent.jsonl: does not exist"),
        (["--input", "tokenizer.json"], "cannot read .json; supported: .jsonl"),
        (["--output-prefix", "nowhere/out"], "nowhere: the folder of --output-prefix does not exist"),
        (["--vocab-file", "absent.json"], "absent.json: does not exist"),
        (["--workers", "0"], "--workers=0"),
    ],
)
def test_bad_arguments_are_named(
    corpus: Path,
    vocabulary: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(corpus.parent)
    assert main([*arguments(corpus, vocabulary, "out"), *change]) == 1
    assert message in capsys.readouterr().err


def test_a_full_disk_is_one_error_and_leaves_nothing(
    corpus: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megamesh.data.writer.IndexedWriter.append_file", full)
    before = sorted(corpus.parent.iterdir())
    assert main(arguments(corpus, vocabulary, "out")) == 1
    assert f"{corpus.parent}: No space left on device; nothing was written" in capsys.readouterr().err
    assert sorted(corpus.parent.iterdir()) == before


def test_ftfy_is_refused_where_it_is_missing(
    corpus: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(arguments(corpus, vocabulary, "out", "--ftfy")) == 1
    assert "--ftfy needs the ftfy package" in capsys.readouterr().err


def test_corpus_without_text_is_an_error(tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    assert main(arguments(tmp_path / "empty.jsonl", vocabulary, "out")) == 1
    assert "no text in any record" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
