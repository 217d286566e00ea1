"""Every token but the first is predicted once, within a window of the model's length."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from megamesh.errors import DataError
from megamesh.evaluation.text_loss import read_windows, text_loss
from tests.hf.small_models import PLAIN, build, model_config, tokenizer

LENGTH = 16
TEXTS = ["The quick brown fox jumps over the lazy dog.", "", "Pack my box.\n"]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    jsonl, txt = tmp_path / "a.jsonl", tmp_path / "b.txt"
    jsonl.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    txt.write_text("Another document")
    return [jsonl, txt]


def stream(folder: Path) -> list[int]:
    known = tokenizer(folder)
    documents = [*filter(None, TEXTS), "Another document"]
    return [token for text in documents for token in [*known.encode(text), known.eod_id]]


def test_windows_are_those_of_training(files: list[Path], tmp_path: Path) -> None:
    tokens, windows = stream(tmp_path), read_windows(files, tokenizer(tmp_path), LENGTH)
    assert [len(window) for window in windows[:-1]] == [LENGTH + 1] * (len(windows) - 1)
    assert 2 <= len(windows[-1]) <= LENGTH + 1
    assert [tokens[0]] + [token for window in windows for token in window[1:]] == tokens
    assert all(one[-1] == other[0] for one, other in pairwise(windows))
    assert read_windows(files, tokenizer(tmp_path), LENGTH, most=2) == windows[:2]


def test_a_compressed_file_gives_the_same_windows(files: list[Path], tmp_path: Path) -> None:
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(files[0].read_bytes()))
    known = tokenizer(tmp_path)
    assert read_windows([packed, files[1]], known, LENGTH) == read_windows(files, known, LENGTH)


@pytest.mark.parametrize("length", range(1, 12))
def test_no_window_is_too_short_to_predict_anything(length: int, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    for size in range(1, 24):
        path.write_text("a" * size)
        windows = read_windows([path], tokenizer(tmp_path), length)
        assert sum(len(window) - 1 for window in windows) == size  # the end of the document is predicted too
        assert all(2 <= len(window) <= length + 1 for window in windows)


def test_the_loss_is_the_mean_over_tokens(files: list[Path], tmp_path: Path) -> None:
    """Whether the last window, which is shorter, is read beside others or alone."""
    model = build(model_config(), PLAIN)
    windows = read_windows(files, tokenizer(tmp_path), LENGTH)
    assert len(windows[-1]) < LENGTH
    for some in (windows, windows[-2:], windows[-1:]):
        losses = []
        for window in some:
            with torch.no_grad():
                scores = model.logits(torch.tensor([window[:-1]]))[0].double().log_softmax(-1)
            losses += [-float(scores[position, label]) for position, label in enumerate(window[1:])]
        found = text_loss(model, some)
        assert found.num_tokens == len(losses)
        assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_files_without_text_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "code.py").write_text("pass")
    for name, text in (
        ("empty.txt", "no text"),
        ("code.py", r"cannot read \.py"),
        ("none.txt", "does not exist"),
    ):
        with pytest.raises(DataError, match=text):
            read_windows([tmp_path / name], tokenizer(tmp_path), LENGTH)
