"""How many ids a run has, before its tokenizer is there; and the warning where data was tokenized with another one."""

import json
from pathlib import Path

import pytest

from megamesh.config.keys import DataConfig, ModelConfig, TokenizerConfig
from megamesh.data.store.manifest import Manifest, manifest_path, read_manifest, tokenizer_facts, write_manifest
from megamesh.data.store.merge import merge
from megamesh.errors import ConfigError, DataError
from megamesh.tokenizer import build_tokenizer, tokenizer_identity
from megamesh.tokenizer.backend import CHARACTERS_TYPE
from megamesh.training.vocabulary import MOST_WARNINGS, known_vocabulary_size, warn_about_tokenizers
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


def size(vocab_size: int | None, **tokenizer: object) -> int:
    model = ModelConfig(
        num_layers=1, hidden_size=8, num_attention_heads=1, max_position_embeddings=8, vocab_size=vocab_size
    )
    return known_vocabulary_size(model, TokenizerConfig(**tokenizer))


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"tokenizer_type": "HFTokenizer", "vocab_file": "absent.json"},
        {"tokenizer_type": "TiktokenTokenizer", "vocab_file": "absent_base"},
        {"vocab_file": "v.json", "merge_file": "absent.txt"},
    ],
)
def test_a_look_ahead_without_a_tokenizer_needs_its_size_and_says_so(tokenizer: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"or, without a tokenizer, say its number of ids: --set vocab_size=50257"):
        size(None, **tokenizer)
    assert size(50257, **tokenizer) == 50257  # the mend works


def test_a_tokenizer_that_is_there_is_asked(tmp_path: Path) -> None:
    assert size(None, tokenizer_type="CharLevelTokenizer", vocab_file="v.json") > 2
    (tmp_path / "v.json").write_text("{}")
    for vocab_size in (None, 1000):
        with pytest.raises(DataError) as caught:
            size(vocab_size, tokenizer_type="CharLevelTokenizer", vocab_file="v.json")
        assert "vocab_size" not in str(caught.value)  # it would not help
    with pytest.raises(ConfigError, match="--set vocab_size=50257"):
        size(None)
