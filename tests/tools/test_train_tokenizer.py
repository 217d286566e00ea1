"""tools/train_tokenizer.py from files to a tokenizer, and what it refuses."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megamesh.config.keys import TokenizerConfig
from megamesh.data.sources import ReadOptions, estimate_text_bytes, find_inputs
from megamesh.tokenizer import build_tokenizer
from tools.train_tokenizer import main

TEXTS = [f"def function_{i}(first, second):\n    return first * {i} + second\n" for i in range(200)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": t, "other": "zzz"}) + "\n" for t in TEXTS))
    (tmp_path / "more.txt").write_text(TEXTS[0])
    return path


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["--type", "sentencepiece", "--vocab-size", "294"], "SPMTokenizer"),
        (["--type", "sentencepiece", "--model-type", "bpe", "--vocab-size", "294"], "SPMTokenizer"),
        (["--type", "hf-bpe", "--vocab-size", "294"], "HFTokenizer"),
        (["--type", "characters"], "CharLevelTokenizer"),
    ],
)
def test_output_is_a_tokenizer_of_the_asked_size(corpus: Path, arguments: list[str], kind: str) -> None:
    output = corpus.parent / "out" / "vocabulary"
    assert main([*arguments, "--input", f"{corpus},{corpus.parent / 'more.txt'}", "--output", str(output)]) == 0
    tokenizer = build_tokenizer(TokenizerConfig(tokenizer_type=kind, vocab_file=str(output)))  # type: ignore[arg-type]
    assert tokenizer.vocab_size == (294 if "--vocab-size" in arguments else len(set("".join(TEXTS))) + 2)
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in TEXTS)
    assert len(list(output.parent.iterdir())) == 1


def test_most_frequent_characters_are_kept(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("aaabbc")
    assert (
        main(
            [
                "--type",
                "characters",
                "--vocab-size",
                "4",
                "--input",
                str(tmp_path / "few.txt"),
                "--output",
                str(tmp_path / "v"),
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "v").read_text())["characters"] == ["a", "b"]


def test_only_the_keys_that_are_asked_for_are_read(corpus: Path, tmp_path: Path) -> None:
    arguments = [
        "--type",
        "characters",
        "--jsonl-keys",
        "other",
        "--input",
        str(corpus),
        "--output",
        str(tmp_path / "v"),
    ]
    assert main(arguments) == 0
    assert json.loads((tmp_path / "v").read_text())["characters"] == ["z"]


def test_any_format_gives_the_same_vocabulary(corpus: Path) -> None:
    folder = corpus.parent / "other"
    folder.mkdir()
    half = len(TEXTS) // 2
    pq.write_table(pa.table({"text": TEXTS[:half]}), folder / "a.parquet")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[half:])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for kind in ("characters", "hf-bpe"):
        outputs = []
        for number, source in enumerate((corpus, folder, f"{folder}/*.parquet,{folder}/b*")):
            outputs.append(corpus.parent / f"{kind}-{number}")
            size = [] if kind == "characters" else ["--vocab-size", "294"]
            assert main(["--type", kind, *size, "--input", str(source), "--output", str(outputs[-1])]) == 0
        assert len({output.read_bytes() for output in outputs}) == 1


def test_max_bytes_counts_text_and_not_what_it_takes_on_disk(corpus: Path) -> None:
    packed = corpus.parent / "corpus.jsonl.gz"
    packed.write_bytes(gzip.compress(corpus.read_bytes()))
    files, options = find_inputs([str(packed)]), ReadOptions()
    assert estimate_text_bytes(files, options) == sum(len(text.encode()) for text in TEXTS)
    assert files[0].num_bytes < estimate_text_bytes(files, options) / 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--output", "OLD"], "exists; name another file or add --overwrite"),
        (["--vocab-size", "100000"], "--vocab-size=100000 with --type sentencepiece"),
        (["--input", "absent.jsonl"], "absent.jsonl: does not exist"),
        (["--input", "EMPTY"], "no text to learn a vocabulary from"),
        (["--max-bytes", "0"], "--max-bytes=0 leaves no text"),
        (["--output", "FOLDER"], "is a folder; name a file"),
        (["--output", "old/new"], "old/new: cannot be written ("),
        (["--jsonl-keys", "nothing"], "corpus.jsonl:1: no key 'nothing'"),
    ],
)
def test_bad_input_is_one_error_and_status_1(
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: list[str],
    message: str,
) -> None:
    folder = corpus.parent
    (folder / "old").write_text("old")
    (folder / "empty.txt").write_text("")
    places = {"OLD": str(folder / "old"), "EMPTY": str(folder / "empty.txt"), "FOLDER": str(folder)}
    monkeypatch.chdir(folder)
    base = {"--type": "sentencepiece", "--vocab-size": "294", "--input": str(corpus), "--output": str(folder / "new")}
    base[change[0]] = places.get(change[1], change[1])
    assert main([word for pair in base.items() for word in pair]) == 1
    assert message in capsys.readouterr().err
    assert not (folder / "new").exists()
    assert (folder / "old").read_text() == "old"
