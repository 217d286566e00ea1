"""Manifests: what is written is read; what cannot be read is told; digests are those of the definition."""

import hashlib
import json
from pathlib import Path

import pytest

from megamesh.data.store import manifest as module
from megamesh.data.store.manifest import (
    Manifest,
    Output,
    Part,
    digest_of_file,
    digest_of_range,
    find_manifest,
    read_manifest,
    tokenizer_disagreement,
    tokenizer_facts,
    write_manifest,
)
from megamesh.errors import DataError

OUTPUT = Output(
    documents=1, sequences=1, tokens=2, dtype="uint16", bin_bytes=4, idx_digest="00", smallest_id=1, largest_id=7,
    parts=[Part(num_bytes=4, digest="11")],
)  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    manifest = Manifest(
        outputs={"a": OUTPUT}, tokenizer=tokenizer_facts("HFTokenizer", 9, [], {}), options={"x": [1, None]}
    )
    write_manifest(tmp_path / "a.json", manifest)
    assert read_manifest(tmp_path / "a.json") == manifest
    assert json.loads((tmp_path / "a.json").read_text())["manifest"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a readable manifest"),
        ("{", "not a readable manifest"),
        ('{"manifest": 1, "outputs": {', "not a readable manifest"),
        ("[]", "not a manifest"),
        ('{"outputs": {}}', "not a manifest"),
        ('{"manifest": 2, "outputs": {}, "new": 1}', "manifest version 2; this version of MegaMesh knows 1"),
        ('{"manifest": 1}', "outputs: Field required"),
        ('{"manifest": 1, "outputs": {"a": {"tokens": "x"}}}', r"outputs\.a\."),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=rf"a\.json: .*{message}"):
        read_manifest(path)


def test_the_manifest_of_a_dataset_is_found(tmp_path: Path) -> None:
    write_manifest(tmp_path / "out.json", Manifest(outputs={"out_a_text_document": OUTPUT}))
    (tmp_path / "out_a.json").write_text('{"some": "config"}')
    write_manifest(tmp_path / "merged.json", Manifest(outputs={"merged": OUTPUT}))
    for name, expected in (
        ("out_a_text_document", "out.json"),
        ("merged", "merged.json"),
        ("out_b_text_document", None),
        ("merged_more", None),
        ("missing", None),
    ):
        found = find_manifest(tmp_path / name)
        assert (None if found is None else found[0].name) == expected


def test_digests_are_those_of_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 4)
    content = b"0123456789"
    (tmp_path / "f").write_bytes(content)
    chunks = [hashlib.sha256(content[i : i + 4]) for i in (0, 4, 8)]
    assert digest_of_range(tmp_path / "f", 0, 10) == [chunk.hexdigest() for chunk in chunks]
    assert digest_of_range(tmp_path / "f", 4, 8) == [chunks[1].hexdigest()]
    assert digest_of_file(tmp_path / "f") == hashlib.sha256(b"".join(chunk.digest() for chunk in chunks)).hexdigest()
    with pytest.raises(DataError, match="ends at byte 10 instead of 11"):
        digest_of_range(tmp_path / "f", 8, 11)


def test_another_tokenizer_is_told(tmp_path: Path) -> None:
    ours, other, same = (tmp_path / name for name in ("ours", "other", "same"))
    ours.write_text("a")
    other.write_text("b")
    same.write_text("a")
    facts = tokenizer_facts("HFTokenizer", 9, [ours], {"eod_id": 1})
    write_manifest(tmp_path / "data.json", Manifest(outputs={"data": OUTPUT}, tokenizer=facts))
    assert tokenizer_disagreement(tmp_path / "data", tokenizer_facts("HFTokenizer", 9, [same], {"eod_id": 1})) is None
    assert tokenizer_disagreement(tmp_path / "nothing", tokenizer_facts("HFTokenizer", 9, [other], {})) is None
    for kind, files, eod_id in (
        ("HFTokenizer", [other], 1),
        ("SPMTokenizer", [ours], 1),
        ("HFTokenizer", [ours, other], 1),
        ("HFTokenizer", [same], 2),
    ):
        message = tokenizer_disagreement(tmp_path / "data", tokenizer_facts(kind, 9, files, {"eod_id": eod_id}))
        assert message is not None
        was = f"tokenized with HFTokenizer (ours {digest_of_file(ours)[:12]}; eod_id 1), but this run has {kind}"
        assert was in message
        assert "\n" not in message


def test_a_newer_manifest_is_told_by_version_and_key(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_manifest(path, Manifest(outputs={}, versions={"megamesh": "9.8.7"}))
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            content | {"novelty": 1, "counts": {"records": 1, "documents": 1, "empty": 0, "skipped": {}, "more": 2}}
        )
    )
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert "holds counts.more, novelty, which MegaMesh" in message and "Extra inputs" not in message
    assert "it was written by MegaMesh 9.8.7: update MegaMesh; or remove it, to do without a manifest" in message
