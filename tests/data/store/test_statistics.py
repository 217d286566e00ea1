"""Statistics against numpy on plain lists; verification finds every kind of damage and names its place."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megamesh.data.store import assemble, statistics, stored
from megamesh.data.store.manifest import Input, digest_of_file, read_manifest, write_manifest
from megamesh.data.store.merge import merge
from megamesh.data.store.stored import open_stored
from megamesh.data.store.verification import id_problem, verify
from megamesh.errors import DataError
from tests.data import corpora
from tests.data.store.test_merge import random_documents, write


def test_statistics_are_those_of_the_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "PIECE", 7)
    monkeypatch.setattr(statistics, "EXACT_BELOW", 90)  # both kinds of counting
    documents = random_documents(5, 300)
    write(tmp_path / "corpus", documents)
    lengths = np.array([sum(map(len, document)) for document in documents])
    found = statistics.statistics(open_stored(tmp_path / "corpus"))
    assert (found.documents, found.sequences) == (300, sum(map(len, documents)))
    assert (found.tokens, found.bin_bytes) == (lengths.sum(), 2 * lengths.sum())
    assert (found.shortest, found.longest, found.empty_documents) == (0, lengths.max(), (lengths == 0).sum())
    assert found.mean == pytest.approx(lengths.mean(), rel=1e-12)
    for share in statistics.QUANTILES:
        expected = np.quantile(lengths, share, method="inverted_cdf")
        assert found.quantiles[f"{share:.0%}"] == expected, share
    for entry in found.histogram:
        inside = lengths[(lengths >= entry.first) & (lengths <= entry.last)]
        assert (entry.documents, entry.tokens) == (len(inside), inside.sum())
    assert sum(entry.documents for entry in found.histogram) == 300
    assert statistics.shares([3, 1]) == [0.75, 0.25]


def test_a_dataset_without_documents_has_statistics(tmp_path: Path) -> None:
    corpora.write(tmp_path / "none", [])
    found = statistics.statistics(open_stored(tmp_path / "none"))
    assert (found.documents, found.tokens, found.longest, found.histogram) == (0, 0, 0, [])


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Documents 0 to 4 in bytes 0 to 400, 5 to 9 in 400 to 800, one part each; and an input."""
    monkeypatch.setattr(assemble, "PART_BYTES", 400)
    corpora.write(tmp_path / "source", [20] * 10)
    merge([str(tmp_path / "source")], str(tmp_path / "corpus"))
    (tmp_path / "text.jsonl").write_text("{}")
    manifest = read_manifest(tmp_path / "corpus.json")
    entry = Input(path=str(tmp_path / "text.jsonl"), bytes=2, digest=digest_of_file(tmp_path / "text.jsonl"))
    write_manifest(tmp_path / "corpus.json", manifest.model_copy(update={"inputs": [entry]}))
    assert verify(tmp_path / "corpus", inputs=True) == []
    return tmp_path / "corpus"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a byte of the second part": (
        lambda prefix: flip(Path(f"{prefix}.bin"), 700),
        ["corpus.bin bytes 400 to 800 (documents 5 to 9): is not what was written"],
    ),
    "both parts": (
        lambda prefix: [flip(Path(f"{prefix}.bin"), place) for place in (0, 799)],
        ["corpus.bin bytes 0 to 400 (documents 0 to 4)", "corpus.bin bytes 400 to 800 (documents 5 to 9)"],
    ),
    "the .bin is cut": (
        lambda prefix: Path(f"{prefix}.bin").write_bytes(Path(f"{prefix}.bin").read_bytes()[:500]),
        ["corpus.bin: has 500 bytes instead of 800", "corpus.bin bytes 400 to 800: is missing"],
    ),
    "the .bin is longer": (
        lambda prefix: Path(f"{prefix}.bin").write_bytes(Path(f"{prefix}.bin").read_bytes() + b"\0\0\0\0"),
        ["corpus.bin: has 804 bytes instead of 800"],
    ),
    "no .bin": (lambda prefix: Path(f"{prefix}.bin").unlink(), ["corpus.bin: is missing"]),
    "no .idx": (lambda prefix: Path(f"{prefix}.idx").unlink(), ["corpus.idx: is missing"]),
    "a length": (lambda prefix: flip(Path(f"{prefix}.idx"), 34), ["corpus.idx: is not the file that was written"]),
    "the end of the index": (lambda prefix: flip(Path(f"{prefix}.idx"), -8), ["corpus.idx: is not the file"]),
    "the input": (lambda prefix: flip(prefix.parent / "text.jsonl", 0), ["text.jsonl: the input is not what was read"]),
    "a longer input": (
        lambda prefix: (prefix.parent / "text.jsonl").write_text("{}\n"),
        ["text.jsonl: the input has 3 bytes instead of 2"],
    ),
    "no input": (lambda prefix: (prefix.parent / "text.jsonl").unlink(), ["text.jsonl: the input is missing"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_placed(described: Path, name: str) -> None:
    damage, expected = DAMAGE[name]
    damage(described)
    found = [str(problem) for problem in verify(described, inputs=True)]
    assert len(found) == len(expected)
    for text, part in zip(found, expected, strict=True):
        assert part in text


def test_nothing_to_verify_against_is_an_error(tmp_path: Path) -> None:
    corpora.write(tmp_path / "a", [3])
    (problem,) = verify(tmp_path / "a")
    assert "a: no manifest to verify it against" in str(problem)
    merge([str(tmp_path / "a")], str(tmp_path / "b"))
    with pytest.raises(DataError, match=r"b.json: lists no inputs: it was made from .*a"):
        verify(tmp_path / "b", inputs=True)
    flip(tmp_path / "b.json", 0)
    (problem,) = verify(tmp_path / "b")
    assert "b.json: not a readable manifest" in str(problem)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("parts", [], "says 0 bytes in parts"),
        ("documents", 7, "says 7 documents"),
        ("tokens", 7, "says 7 tokens"),
        ("dtype", "uint16", "says uint16 dtype"),
        ("parts", [{"num_bytes": -1, "digest": ""}], "num_bytes: Input should be greater"),
    ],
)
def test_a_manifest_that_is_about_other_files_is_a_problem(
    described: Path, key: str, value: object, message: str
) -> None:
    content = json.loads(Path(f"{described}.json").read_text())
    content["outputs"][described.name][key] = value
    Path(f"{described}.json").write_text(json.dumps(content))
    assert message in str(verify(described)[0])


def test_ids_outside_a_vocabulary_are_placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megamesh.data.store.verification.READ_BYTES", 16)
    corpora.write(tmp_path / "a", [5, 0, 5, 5])
    assert id_problem(open_stored(tmp_path / "a"), 15) is None
    problem = id_problem(open_stored(tmp_path / "a"), 12)
    assert problem is not None
    assert "bytes 48 to 52 (documents 3 to 3): token id 12 is outside the vocabulary of 12" in str(problem)
