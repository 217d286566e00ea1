"""Checkpoints of weights alone: what was read is what is stored, one tensor at a time, in pieces of bounded size."""

import os
import resource
import signal
from pathlib import Path

import pytest
import torch

from megamesh.checkpoint import boxes
from megamesh.checkpoint.boxes import Box, pieces
from megamesh.checkpoint.files import read_index
from megamesh.checkpoint.folder import find_latest
from megamesh.checkpoint.reader import read_meta, read_weights
from megamesh.checkpoint.weights import save_weights
from megamesh.errors import CheckpointError

GENERATOR = torch.Generator().manual_seed(0)
WEIGHTS = {
    "embedding.weight": torch.randn(50, 6, generator=GENERATOR),
    "final_norm.weight": torch.randn(33, generator=GENERATOR),
    "head.weight": torch.randn(4, 3, 5, generator=GENERATOR)[:, 1:],
    "scalar": torch.randn((), generator=GENERATOR),
}


def _save(folder: Path, read=WEIGHTS.__getitem__) -> Path:
    shapes = {name: tuple(tensor.shape) for name, tensor in WEIGHTS.items()}
    return save_weights(folder, shapes, read, config={"a": 1}, sources={"model.yml": "a: 1\n"}, seed=3)


@pytest.mark.parametrize("max_bytes", [1, 40, 1000, boxes.MAX_CHUNK_BYTES])
def test_pieces_cover_a_box_once_and_are_views_of_bounded_size(max_bytes) -> None:
    whole = torch.zeros(4, 3, 5)
    cut = list(pieces(Box("x", (9, 9, 9), (1, 2, 3), whole), max_bytes))
    assert all(piece.values.nbytes <= max(max_bytes, 4) and piece.values.is_contiguous() for piece in cut)
    for piece in cut:
        piece.values.add_(1)  # through the views into the whole
        here = tuple(
            slice(o - s, o - s + n) for o, s, n in zip(piece.offset, (1, 2, 3), piece.values.shape, strict=True)
        )
        assert whole[here].data_ptr() == piece.values.data_ptr()
    assert (whole == 1).all()
    if max_bytes >= whole.nbytes:
        assert len(cut) == 1


@pytest.mark.parametrize("max_bytes", [64, boxes.MAX_CHUNK_BYTES])
def test_weights_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_bytes) -> None:
    monkeypatch.setattr("megamesh.checkpoint.weights.pieces", lambda box: pieces(box, max_bytes))
    asked = []

    def read(name: str) -> torch.Tensor:
        asked.append(name)
        return WEIGHTS[name]

    path = _save(tmp_path / "run", read)
    assert asked == list(WEIGHTS)
    assert path == find_latest(tmp_path / "run") == tmp_path / "run" / "global_step0"
    found = dict(read_weights(tmp_path / "run"))
    assert found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)
    meta = read_meta(path)
    assert (meta.state.step, meta.state.consumed_samples, meta.state.seed, meta.config) == (0, 0, 3, {"a": 1})
    assert (path / "configs" / "model.yml").read_text() == "a: 1\n"
    largest = max(info.length for info in read_index(path).storage_data.values())
    assert largest < max_bytes + 2000, "what torch.save adds to a chunk is small"


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    _save(tmp_path)
    with pytest.raises(CheckpointError, match="already holds a checkpoint"):
        _save(tmp_path)


@pytest.mark.parametrize("bad", [torch.zeros(6, 50), torch.zeros(50, 6, dtype=torch.float64)])
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_left(tmp_path: Path, bad) -> None:
    with pytest.raises(CheckpointError, match=r"embedding\.weight"):
        _save(tmp_path, lambda name: bad)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_reader_is_passed_on(tmp_path: Path) -> None:
    def read(name: str) -> torch.Tensor:
        raise CheckpointError(f"{name} cannot be had")

    with pytest.raises(CheckpointError, match=r"^embedding\.weight cannot be had$"):
        _save(tmp_path, read)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, unlimited[1]))
    there, new = tmp_path / "there", tmp_path / "new"
    there.mkdir()
    try:
        for folder in (there, new / "deeper"):
            with pytest.raises(
                CheckpointError, match=r"File too large.*; nothing was kept; .*another --output"
            ) as refused:
                _save(folder)
            assert "previous checkpoint" not in str(refused.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["there"] and os.listdir(there) == []  # the folder that it did not make
