"""Splitting: the parts together are the original bytes; shares are training's own; drawn documents are a fair, repeatable choice."""

import collections
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from megamesh.data.store import assemble, split, stored
from megamesh.data.store.indexed import IndexedDataset
from megamesh.data.store.manifest import read_manifest, write_manifest
from megamesh.data.store.merge import merge
from megamesh.data.store.split import Drawn, by_parts, by_range, by_shares
from megamesh.data.store.splits import split_documents
from megamesh.data.store.stored import open_stored
from megamesh.data.store.verification import verify
from megamesh.errors import DataError
from tests.data import corpora
from tests.data.store.test_merge import describe, pair, random_documents, write

SHARES = (0.7, 0.2, 0.1)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stored, "PIECE", 5)
    monkeypatch.setattr(assemble, "COPY_BYTES", 64)
    monkeypatch.setattr(assemble, "READ_BYTES", 32)
    monkeypatch.setattr(assemble, "PART_BYTES", 96)
    write(tmp_path / "corpus", random_documents(4, 100))
    return tmp_path / "corpus"


@pytest.mark.parametrize("num_parts", [1, 2, 7, 30])
def test_parts_together_are_the_original(source: Path, num_parts: int) -> None:
    out = source.parent / "out"
    written = split.split(str(source), str(out), lambda one: by_parts(one, num_parts))
    assert len(written) == num_parts
    merge(list(written), str(source.parent / "again"))
    assert pair(source.parent / "again") == pair(source)
    assert not any(verify(prefix) for prefix in written)


def test_parts_are_cut_where_tokens_are_nearest_to_equal(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(0, 200, 300).tolist()
    corpora.write(tmp_path / "corpus", lengths)
    ends = np.cumsum([0, *lengths])
    shares = by_parts(open_stored(tmp_path / "corpus"), 8)
    cuts = [next(iter(share.documents))[0] for share in shares]
    for i, cut in enumerate(cuts):
        assert abs(ends[cut] - ends[-1] * i / 8) <= np.abs(ends - ends[-1] * i / 8).min() + 1


def test_no_part_is_without_documents(tmp_path: Path) -> None:
    corpora.write(tmp_path / "corpus", [0, 0, 1000, 0, 1, 0])
    for num_parts in range(1, 7):
        ranges = [next(iter(share.documents)) for share in by_parts(open_stored(tmp_path / "corpus"), num_parts)]
        assert [number for first, last in ranges for number in range(first, last)] == list(range(6))
        assert all(first < last for first, last in ranges)


def test_shares_are_those_of_training(source: Path) -> None:
    written = split.split(str(source), str(source.parent / "out"), lambda one: by_shares(one, SHARES))
    assert [Path(prefix).name for prefix in written] == ["out_train", "out_valid", "out_test"]
    ranges = split_documents(SHARES, 100)
    assert [output.documents for output in written.values()] == [last - first for first, last in ranges]
    documents = random_documents(4, 100)
    for prefix, (first, last) in zip(written, ranges, strict=True):
        expected = source.parent / f"expected{first}"
        write(expected, documents[first:last])
        assert pair(Path(prefix)) == pair(expected)


def test_drawn_shares_hold_every_document_once_in_order(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split, "DRAW_AT_ONCE", 9)
    documents = random_documents(4, 100)
    sizes = [70, 20, 10]
    written = split.split(str(source), str(source.parent / "out"), lambda one: by_shares(one, SHARES, seed=3))
    numbers = []
    for i, prefix in enumerate(written):
        mine = [number for first, last in Drawn(sizes, i, 3) for number in range(first, last)]
        assert len(mine) == sizes[i]
        expected = source.parent / f"expected{i}"
        write(expected, [documents[number] for number in mine])
        assert pair(Path(prefix)) == pair(expected)
        assert verify(prefix) == []
        numbers += mine
    assert sorted(numbers) == list(range(100))
    assert [*Drawn(sizes, 1, 3)] != [*Drawn(sizes, 1, 4)]


def test_drawing_is_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair out of five documents, drawn in pieces of two, is as likely as any other: 10 pairs, 5000 draws, 6 deviations."""
    monkeypatch.setattr(split, "DRAW_AT_ONCE", 2)
    counts = collections.Counter(
        tuple(number for first, last in Drawn([3, 2], 1, seed) for number in range(first, last)) for seed in range(5000)
    )
    assert len(counts) == 10
    assert max(abs(count - 500) for count in counts.values()) < 6 * np.sqrt(5000 * 0.1 * 0.9)


def test_a_range_of_documents(source: Path) -> None:
    describe(source)
    documents = random_documents(4, 100)
    split.split(str(source), str(source.parent / "out"), lambda one: by_range(one, 10, 20))
    write(source.parent / "expected", documents[10:20])
    assert pair(source.parent / "out") == pair(source.parent / "expected")
    split.split(str(source), str(source.parent / "tail"), lambda one: by_range(one, 95, None))
    assert len(IndexedDataset(source.parent / "tail").document_index) == 6
    manifest = read_manifest(source.parent / "out.json")
    assert manifest.made_from == [str(source)]
    assert manifest.options["documents"] == [10, 20]


def test_refusals(source: Path) -> None:
    one = open_stored(source)
    with pytest.raises(DataError, match=r"--parts=101, but it has 100 documents"):
        by_parts(one, 101)
    with pytest.raises(DataError, match=r"--split leaves no document for valid out of 100"):
        by_shares(one, (0.998, 0.001, 0.001))
    for first, last in ((20, 20), (30, 20), (0, 101), (100, None)):
        with pytest.raises(DataError, match=r"are not in it; it has 100 documents"):
            by_range(one, first, last)
    write(source.parent / "out_valid", [[[1]]])
    with pytest.raises(DataError, match=r"out_valid.bin: exists"):
        split.split(str(source), str(source.parent / "out"), lambda one: by_shares(one, SHARES))
    assert not list(source.parent.glob("out_train*"))


def test_parts_of_an_earlier_split_are_not_left_beside_new_ones(source: Path) -> None:
    """Merged by a pattern they would hold the documents twice."""
    split.split(str(source), str(source.parent / "out"), lambda one: by_parts(one, 4))
    with pytest.raises(DataError, match=r"out_part2.idx: is of an earlier split of .*hold its documents twice"):
        split.split(str(source), str(source.parent / "out"), lambda one: by_parts(one, 2), overwrite=True)
    split.split(str(source), str(source.parent / "out"), lambda one: by_parts(one, 4), overwrite=True)
    split.split(str(source), str(source.parent / "out"), lambda one: by_range(one, 0, 9))


def test_an_earlier_split_is_known_however_its_data_was_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another way, or from another folder; a manifest that names it relative to the folder in which one works is understood too."""
    (source.parent / "sub").mkdir()
    (source.parent / "link.idx").symlink_to(source.with_suffix(".idx"))
    (source.parent / "link.bin").symlink_to(source.with_suffix(".bin"))
    out, manifest = str(source.parent / "out"), source.parent / "out_part2.json"
    monkeypatch.chdir(source.parent)
    split.split("corpus", out, lambda one: by_parts(one, 3))
    relative = read_manifest(manifest).model_copy(update={"made_from": ["corpus"]})
    for folder, prefix in ((".", "./corpus"), ("sub", "../corpus"), (".", "link"), (".", str(source))):
        monkeypatch.chdir(source.parent / folder)
        with pytest.raises(DataError, match=r"out_part2.idx: is of an earlier split"):
            split.split(prefix, out, lambda one: by_parts(one, 2), overwrite=True)
        if folder == "sub":
            write_manifest(manifest, relative)


def test_a_killed_split_leaves_no_mixture(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old parts go before the first new one has its name; what the killed process wrote goes with the next run."""
    split.split(str(source), str(source.parent / "out"), lambda one: by_shares(one, SHARES))
    child = os.fork()
    if child == 0:
        left, rename = 8, os.replace

        def replace(one: Path, other: Path) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(one, other)

        os.replace = replace  # type: ignore[assignment]
        split.split(str(source), str(source.parent / "out"), lambda one: by_shares(one, SHARES, 1), overwrite=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [path.name for path in source.parent.glob("out*.idx")] == ["out_train.idx"]
    assert list(source.parent.glob("*.tmp-*"))
    split.split(str(source), str(source.parent / "out"), lambda one: by_shares(one, SHARES, 1), overwrite=True)
    assert not list(source.parent.glob("*.tmp-*"))
