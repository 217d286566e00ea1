"""Inputs for runs of the preprocessor."""

from pathlib import Path

import pytest

from tests.data.preprocessing import corpora


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return corpora.make_texts()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """Inputs in every format, a tokenizer and megatron-core's output `expected`."""
    folder = tmp_path_factory.mktemp("corpus")
    corpora.write_formats(folder, texts)
    corpora.write_with_megatron(texts, corpora.train_vocabulary(folder, texts), folder / "expected")
    return folder


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megamesh.data.preprocessing.run.SMALLEST_SHARD", 7_000)
