"""tools/inspect_dataset.py: what it prints, what it finds, and its exit status."""

import json
from pathlib import Path

import numpy as np
import pytest

from megamesh.config.keys import TokenizerConfig
from megamesh.data.store.indexed import IndexedWriter
from megamesh.data.store.manifest import Input, digest_of_file, read_manifest, write_manifest
from megamesh.data.store.merge import merge
from megamesh.tokenizer import Tokenizer, build_tokenizer
from tests.data import corpora
from tests.data.store.test_merge import mark_as_labels, write
from tools.inspect_dataset import main

CHARACTERS = list("abcdefgh ")
TEXTS = ["a bad cab", "", "feed"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`text` in two sequences a document, and `long`, which has a manifest."""
    monkeypatch.chdir(tmp_path)
    Path("vocab.json").write_text(json.dumps({"type": "megamesh-characters", "characters": CHARACTERS}))
    with IndexedWriter("text", "<u2") as writer:
        for document in TEXTS:
            for piece in (document[:3], document[3:]):
                writer.add_sequence(characters().encode(piece))
            writer.end_document()
    corpora.write(Path("source"), [0, 1, *[6] * 10, 40])
    merge(["source"], "long")


def characters() -> Tokenizer:
    return build_tokenizer(TokenizerConfig(tokenizer_type="CharLevelTokenizer", vocab_file="vocab.json"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    found = capsys.readouterr()
    return status, found.out, found.err


def test_a_summary_with_a_histogram(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "long")
    assert status == 0
    for text in (
        "documents  13 (1 empty) in 13 sequences",
        "tokens     101 (int32)",
        "bytes      404 of tokens, 302 of index",
        "shortest 0, mean 7.8, longest 40",
        "50% 6, 75% 6, 95% 40",
    ):
        assert text in out
    bars = {line.split("  ")[1]: line.count("█") for line in out.splitlines() if "█" in line}
    assert bars == {"0": 4, "1": 4, "4 to 7": 40, "32 to 63": 4}
    assert "4 to 7           10          59.4%" in out


def test_token_counts_of_several(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split() for line in run(capsys, "text", "long")[1].splitlines()]
    assert rows[1][:5] == ["text", "3", "6", "13", f"{13 / 114:.4%}"]
    assert rows[2][:5] == ["long", "13", "13", "101", f"{101 / 114:.4%}"]
    assert rows[3][:4] == ["total", "16", "19", "114"]
    found = json.loads(run(capsys, "text", "long", "--json")[1])
    assert found["total"]["tokens"] == 114 and [one["sequences"] for one in found["datasets"]] == [6, 13]
    assert sum(one["share"] for one in found["datasets"]) == pytest.approx(1)


def test_labels_are_shown_and_counted_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert "labels" not in run(capsys, "long", "text")[1]
    mark_as_labels(Path("long"))
    rows = [line.split() for line in run(capsys, "text", "long")[1].splitlines()]
    assert rows[1][:5] == ["text", "3", "6", "13", "100.0000%"]
    assert rows[2][:5] == ["long", "13", "13", "101", "labels"]
    assert rows[3][:6] == ["total", "3", "6", "13", f"{13 / 3:.1f}", "9"]
    found = json.loads(run(capsys, "text", "long", "--json")[1])
    assert found["total"]["tokens"] == 13 and [one["labels"] for one in found["datasets"]] == [False, True]
    assert "  labels     101 (int32)" in run(capsys, "long")[1]
    assert run(capsys, "long", "--verify")[:2] == (0, "long: all is well\n")


def test_labels_below_zero_are_no_problem(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("written"), [[[-100, 7]]], np.int32)
    merge(["written"], "labels")
    assert run(capsys, "labels", "--vocab-size", "8")[0] == 1
    mark_as_labels(Path("labels"))
    assert run(capsys, "labels", "--vocab-size", "8")[0] == 0
    assert "token id 7 is outside the vocabulary of 7" in run(capsys, "labels", "--vocab-size", "7")[1]


def test_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "text", "long", "--plot", "lengths.png")[0] == 0
    assert Path("lengths.png").read_bytes()[:4] == b"\x89PNG"


def test_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = ["--tokenizer-type", "CharLevelTokenizer", "--vocab-file", "vocab.json"]
    for number, text in enumerate(TEXTS):
        assert run(capsys, "text", "--document", str(number), *tokenizer)[1] == text + "\n"
    pieces = [characters().encode(piece) for piece in ("fee", "d")]
    expected = "".join(" ".join(map(str, ids)) + "\n" for ids in pieces)
    assert run(capsys, "text", "--document", "2", "--ids")[1] == expected
    found = json.loads(run(capsys, "text", "--document", "2", "--ids", "--json", *tokenizer)[1])
    assert found == {"document": 2, "sequences": pieces, "text": "feed"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no dataset there"),
        (["text", "--document", "3", "--ids"], "--document=3 does not exist; it has 3 documents"),
        (["text", "long", "--document", "0", "--ids"], "--document needs one dataset, but 2 are named"),
        (
            ["long", "--document", "12", "--tokenizer-type", "CharLevelTokenizer", "--vocab-file", "vocab.json"],
            "document 12 has the id 61, but the tokenizer has",
        ),
        (["long", "--verify-inputs"], "long.json: lists no inputs: it was made from /"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "") and message in err


def test_a_flipped_byte_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "long", "--verify")[:2] == (0, "long: all is well\n")
    content = bytearray(Path("long.bin").read_bytes())
    content[100] ^= 4
    Path("long.bin").write_bytes(content)
    status, out, _ = run(capsys, "long", "--verify")
    assert status == 1
    assert out == "long: 1 problem\n  long.bin bytes 0 to 404 (documents 1 to 12): is not what was written\n"
    status, out, _ = run(capsys, "long", "--verify", "--json")
    assert status == 1 and json.loads(out)["problems"]["long"][0]["bytes"] == [0, 404]


def test_a_changed_input_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.jsonl").write_text("{}")
    entry = Input(path="text.jsonl", bytes=2, digest=digest_of_file("text.jsonl"))
    write_manifest(Path("long.json"), read_manifest(Path("long.json")).model_copy(update={"inputs": [entry]}))
    assert run(capsys, "long", "--verify-inputs")[0] == 0
    Path("text.jsonl").write_text("[]")
    status, out, _ = run(capsys, "long", "--verify-inputs")
    assert status == 1 and "text.jsonl: the input is not what was read" in out
    assert run(capsys, "long", "--verify")[0] == 0


def test_ids_outside_a_vocabulary_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "long", "--vocab-size", "101")[0] == 0
    status, out, _ = run(capsys, "long", "--vocab-size", "100")
    assert status == 1 and "long.bin bytes 400 to 404 (documents 12 to 12): token id 100 is outside" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["long", "--document", "0", "--ids", "--verify"],
        ["long", "--document", "0", "--ids", "--vocab-size", "1"],
        ["long", "--plot", "a.png", "--verify"],
        ["long", "--vocab-file", "vocab.json"],
    ],
)
def test_questions_that_one_command_does_not_answer_together(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2


def test_a_folder_is_verified_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    """`source` and `text` have no manifest; `long` is damaged."""
    content = bytearray(Path("long.bin").read_bytes())
    content[0] ^= 1
    Path("long.bin").write_bytes(content)
    status, out, _ = run(capsys, ".", "--verify", "--json")
    assert status == 1
    assert {Path(name).name for name in json.loads(out)["problems"]} == {"long", "source", "text"}
