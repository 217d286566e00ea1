"""tools/preprocess_data.py end to end: ids equal the tokenizer's, output equal at any number of workers, bad input named."""

import io
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from megamesh.config.keys import TokenizerConfig
from megamesh.data.preprocessing.spool import Spool
from megamesh.data.store.indexed import IndexedDataset
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
        "--num-docs",
        "400",
        "--log-interval",
        "10",
    ]
    return [*base, "--output-prefix", str(corpus.parent / prefix), *more]


def test_several_keys_stay_aligned(corpus: Path, vocabulary: Path, tokenizer: Tokenizer, texts: list[str]) -> None:
    assert main(arguments(corpus, vocabulary, "out", "--jsonl-keys", "text", "title")) == 0
    kept = [t for t in texts if t]
    for key, expected in (("text", kept), ("title", [t[:5] for t in kept])):
        dataset = IndexedDataset(corpus.parent / f"out_{key}_document")
        assert [dataset[i].tolist() for i in range(len(dataset))] == tokenizer.encode_batch(expected)


BAD_LINES = {
    b'{"text": "cut': "a.jsonl:403: not JSON",
    b"plain": "a.jsonl:403: not JSON",
    b'{"text": "\xff"}': "a.jsonl:403: not UTF-8",
    b'{"body": "x"}': "a.jsonl:403: no key 'text'; found 'body'",
    b'{"text": null}': "a.jsonl:403: 'text' is null",
    b'{"text": 5}': "a.jsonl:403: 'text' is ",
    b'["text"]': "a.jsonl:403: ",
    b'{"text": "\\ud800"}': "a.jsonl:403: 'text' holds half of a surrogate pair",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_line_stops_with_file_and_line_and_without_output(
    corpus: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str], line: bytes
) -> None:
    with corpus.open("ab") as file:
        file.write(b"\n" + line + b"\n")
    before = sorted(corpus.parent.iterdir())
    assert main(arguments(corpus, vocabulary, "out")) == 1
    said = capsys.readouterr().err
    assert BAD_LINES[line] in said and "--on-bad-line skip" in said
    assert sorted(path for path in corpus.parent.iterdir() if path.name != "out.unfinished") == before


def test_bad_text_file_is_named(
    tmp_path: Path, corpus: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.txt").write_bytes(b"fine\nnot \xe9 fine")
    assert main(arguments(tmp_path / "b.txt", vocabulary, "out")) == 1
    assert "b.txt:1: not UTF-8 (invalid continuation byte at byte 9 of the document)" in capsys.readouterr().err


def test_standard_input_is_a_corpus(corpus: Path, vocabulary: Path) -> None:
    assert main(arguments(corpus, vocabulary, "expected")) == 0
    words = arguments(corpus, vocabulary, "out")
    words[1] = "-"
    tool = [sys.executable, str(Path(__file__).parents[2] / "tools" / "preprocess_data.py")]
    subprocess.run([*tool, *words], input=corpus.read_bytes(), check=True, capture_output=True)
    for suffix in ("bin", "idx"):
        found, expected = (corpus.parent / f"{name}_text_document.{suffix}" for name in ("out", "expected"))
        assert found.read_bytes() == expected.read_bytes()
    assert not list(corpus.parent.glob("out.stdin*"))


def from_standard_input(words: list[str], content: bytes) -> subprocess.CompletedProcess[str]:
    tool = [sys.executable, str(Path(__file__).parents[2] / "tools" / "preprocess_data.py")]
    words = [*tool, "--input", "-", *words[2:]]
    result = subprocess.run(words, input=content, capture_output=True, check=False)
    return subprocess.CompletedProcess(words, result.returncode, result.stdout.decode(), result.stderr.decode())


def test_standard_input_never_replaces_a_file(corpus: Path, vocabulary: Path) -> None:
    """Nor does any run remove one that it has not made."""
    kept = corpus.parent / "out.stdin.jsonl"
    kept.write_text('{"text": "mine"}\n')
    words = arguments(corpus, vocabulary, "out")
    result = from_standard_input(words, corpus.read_bytes())
    assert result.returncode == 1
    assert f"holds the standard input of an earlier run; continue with --input {kept}, or remove it" in result.stderr
    assert main(words) == 0
    assert main(["--input", str(kept), *words[2:], "--overwrite"]) == 0
    assert kept.read_text() == '{"text": "mine"}\n'


def test_standard_input_is_kept_where_the_run_fails(corpus: Path, vocabulary: Path) -> None:
    words, content = arguments(corpus, vocabulary, "out"), corpus.read_bytes() + b"\n[1]"
    result = from_standard_input(words, content)
    kept = corpus.parent / "out.stdin.jsonl"
    assert result.returncode == 1
    *_, how, error = result.stderr.splitlines()
    assert how == f"standard input is kept in {kept}; continue with --input {kept}"
    assert error.startswith(f"error: {kept}:403: ")
    assert kept.read_bytes() == content


def test_standard_input_is_not_read_where_the_outputs_cannot_be_written(corpus: Path, vocabulary: Path) -> None:
    (corpus.parent / "out.json").write_text("{}")
    result = from_standard_input(arguments(corpus, vocabulary, "out"), corpus.read_bytes())
    assert result.returncode == 1 and "out.json: is needed for the manifest" in result.stderr
    assert not list(corpus.parent.glob("*out.stdin*"))


def test_a_killed_stream_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    class Stream(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 1 << 20:
                assert not (tmp_path / "out.stdin.txt").exists()
                raise KilledError
            return super().read(size)

    spool = Spool(tmp_path / "out", "txt")
    with pytest.raises(KilledError):
        spool.fill(Stream(bytes(3 << 20)))
    assert not list(tmp_path.iterdir())


def test_documents_of_a_text_file_are_cut_at_the_separator(
    tmp_path: Path, vocabulary: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.txt").write_text("one\n\ntwo \n\n\n\nthree\n")
    assert main([*arguments(tmp_path / "b.txt", vocabulary, "out"), "--document-separator", r"\n\n"]) == 0
    dataset = IndexedDataset(tmp_path / "out_text_document")
    assert [tokenizer.decode(dataset[i].tolist()) for i in range(len(dataset))] == ["one", "two ", "three\n"]
    assert "left out: 1 empty" in capsys.readouterr().out


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
        (["--output-prefix", "/dev/null/out"], "/dev/null"),
        (["--vocab-file", "absent.json"], "absent.json: does not exist"),
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


def test_the_folder_of_the_output_is_made_when_the_input_is_there(corpus: Path, vocabulary: Path) -> None:
    folder = corpus.parent / "new" / "data"
    assert main([*arguments(corpus, vocabulary, "out"), "--output-prefix", f"{folder}/out", "--input", "absent"]) == 1
    assert not folder.exists()
    assert main([*arguments(corpus, vocabulary, "out"), "--output-prefix", f"{folder}/out"]) == 0
    assert len(IndexedDataset(folder / "out_text_document")) > 0


@pytest.mark.parametrize("where", ["shard._ShardFiles.write", "join.copy_range", "run.write_indexes"])
def test_a_full_disk_is_one_error_and_no_output_is_seen(
    where: str, corpus: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"megamesh.data.preprocessing.{where}", full)
    assert main(arguments(corpus, vocabulary, "out")) == 1
    assert "No space left on device; no output was written" in capsys.readouterr().err
    assert not list(corpus.parent.glob("out_*"))


def test_ftfy_is_refused_where_it_is_missing(
    corpus: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(arguments(corpus, vocabulary, "out", "--ftfy")) == 1
    assert "--ftfy needs the ftfy package" in capsys.readouterr().err


def test_corpus_without_text_is_an_error(tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    assert main(arguments(tmp_path / "empty.jsonl", vocabulary, "out")) == 1
    assert capsys.readouterr().err.endswith("empty.jsonl: no text in any record; nothing was written\n")
    assert not list(tmp_path.glob("out_*"))


def test_corpus_of_bad_records_alone_is_an_error_that_says_why(
    tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n{"body": "a"}\n[1]\n{"body": "b"}\n{"body": "c"}\n')
    assert main(arguments(path, vocabulary, "out", "--on-bad-line", "skip")) == 1
    *_, problem, first, second, third = capsys.readouterr().err.splitlines()
    assert problem == (
        f"{path}: no text in any record; nothing was written; left out: 1 empty, 3 missing-key, 1 not-an-object"
    )
    assert first.startswith(f"{path}:2: no key 'text'; found 'body'; see --jsonl-keys")
    assert second.startswith(f"{path}:3: ") and third.startswith(f"{path}:4: ")
    assert not list(tmp_path.glob("out_*"))
