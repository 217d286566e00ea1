"""The warning where data was tokenized with another tokenizer than the run's."""

import json
from pathlib import Path

import pytest

from megamesh.config.keys import DataConfig, TokenizerConfig
from megamesh.data.store.manifest import Manifest, manifest_path, read_manifest, tokenizer_facts, write_manifest
from megamesh.data.store.merge import merge
from megamesh.tokenizer import build_tokenizer, tokenizer_identity
from megamesh.tokenizer.backend import CHARACTERS_TYPE
from megamesh.training.vocabulary import MOST_WARNINGS, warn_about_tokenizers
from tests.data import corpora


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ours`, tokenized with v.json; `theirs`, with another file; `unknown`, without a manifest."""
    monkeypatch.chdir(tmp_path)
    for file, characters in (("v.json", "ab"), ("w.json", "ba")):
        Path(file).write_text(json.dumps({"type": CHARACTERS_TYPE, "characters": list(characters)}))
    corpora.write(Path("unknown"), [3])
    for prefix, file in (("ours", "v.json"), ("theirs", "w.json")):
        merge(["unknown"], prefix)
        described(prefix, file)


def described(prefix: str, file: str) -> None:
    manifest: Manifest = read_manifest(manifest_path(prefix))
    config = TokenizerConfig(tokenizer_type="CharLevelTokenizer", vocab_file=file)
    tokenizer = tokenizer_facts(*tokenizer_identity(config, build_tokenizer(config)))
    write_manifest(manifest_path(prefix), manifest.model_copy(update={"tokenizer": tokenizer}))


def warnings(caplog: pytest.LogCaptureFixture, vocab_file: str | None = "v.json", **data: object) -> list[str]:
    caplog.clear()
    tokenizer = TokenizerConfig(tokenizer_type="CharLevelTokenizer", vocab_file=vocab_file)
    warn_about_tokenizers(DataConfig(**data), tokenizer)  # type: ignore[arg-type]
    return caplog.messages


@pytest.mark.parametrize("key", ["train_data_paths", "valid_data_paths", "test_data_paths"])
def test_each_path_is_compared(caplog: pytest.LogCaptureFixture, key: str) -> None:
    found = warnings(caplog, **{key: ["ours", "theirs", "unknown", "nowhere"]})
    assert len(found) == 1 and found[0].startswith("theirs: tokenized with CharLevelTokenizer (w.json ")


def test_one_path_is_compared(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings(caplog, data_path="ours") == warnings(caplog, data_path="unknown") == []
    assert len(warnings(caplog, data_path="theirs")) == 1
    assert warnings(caplog, None, data_path="theirs") == []


def test_a_manifest_that_cannot_be_read_does_not_stop_training(caplog: pytest.LogCaptureFixture) -> None:
    Path("ours.json").write_text('{"manifest": 2, "outputs": {"ours": {}}}')
    assert "manifest version 2" in warnings(caplog, data_path="ours")[0]


def test_many_warnings_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    for i in range(MOST_WARNINGS + 3):
        merge(["theirs"], f"part{i}")
    found = warnings(caplog, train_data_paths=[f"part{i}" for i in range(MOST_WARNINGS + 3)])
    assert len(found) == MOST_WARNINGS + 1 and found[-1].startswith("3 more datasets")
