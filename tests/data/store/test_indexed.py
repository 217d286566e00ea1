"""The .bin/.idx format: megatron-core as the oracle both ways, and every kind of damage."""

import os
import pickle
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset as MegatronDataset
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder as MegatronBuilder

from megamesh.data.store.format import token_dtype
from megamesh.data.store.indexed import IndexedDataset, IndexedWriter
from megamesh.data.store.token_range import scan
from megamesh.errors import DataError
from tests.data import corpora

DTYPES = [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16]


def random_documents(dtype: type) -> list[list[list[int]]]:
    """Documents of sequences of ids, with empty sequences among them."""
    draw, largest = random.Random(1), np.iinfo(dtype).max
    return [
        [[draw.randint(0, largest) for _ in range(draw.choice([0, 1, 7, 30]))] for _ in range(draw.choice([1, 1, 3]))]
        for _ in range(40)
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_megatron_reads_what_we_write(tmp_path: Path, dtype: type) -> None:
    documents = random_documents(dtype)
    with IndexedWriter(tmp_path / "ours", dtype) as writer:
        for document in documents:
            for sequence in document:
                writer.add_sequence(sequence)
            writer.end_document()
    theirs = MegatronDataset(str(tmp_path / "ours"))
    assert [theirs[i].tolist() for i in range(len(theirs))] == [
        sequence for document in documents for sequence in document
    ]
    assert theirs.document_indices.tolist() == np.cumsum([0, *map(len, documents)]).tolist()
    assert theirs.index.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_we_read_what_megatron_writes_and_the_bytes_are_equal(
    tmp_path: Path, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megamesh.data.store.writer.CHUNK", 7)  # the index is written and checked in many pieces
    monkeypatch.setattr("megamesh.data.store.indexed.CHUNK", 5)
    documents = random_documents(dtype)
    builder = MegatronBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    with IndexedWriter(tmp_path / "ours", dtype) as writer:
        for document in documents:
            for sequence in document:
                builder.add_item(torch.tensor(sequence, dtype=torch.int64))
                writer.add_sequence(sequence)
            builder.end_document()
            writer.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    found = IndexedDataset(tmp_path / "theirs")
    assert [found[i].tolist() for i in range(len(found))] == [
        sequence for document in documents for sequence in document
    ]
    assert found.document_index.tolist() == np.cumsum([0, *map(len, documents)]).tolist()
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"theirs.{suffix}").read_bytes() == (tmp_path / f"ours.{suffix}").read_bytes()


def test_reading_is_a_view_and_survives_pickling(tmp_path: Path) -> None:
    documents = corpora.write(tmp_path / "data", [4, 0, 9])
    dataset = pickle.loads(pickle.dumps(IndexedDataset(tmp_path / "data")))
    assert dataset.get(2, 3, 4).tolist() == documents[2][3:7]
    assert dataset.get(2, 3).tolist() == documents[2][3:]
    assert not dataset[0].flags.owndata
    assert not dataset[0].flags.writeable
    assert dataset.num_tokens == 13


def test_joined_files_equal_one_stream(tmp_path: Path) -> None:
    lengths = [3, 0, 5, 1]
    documents = corpora.write(tmp_path / "one", lengths, dtype=np.uint16)
    with IndexedWriter(tmp_path / "joined", np.uint16) as writer:
        for part in (slice(0, 2), slice(2, 4)):
            piece = tmp_path / "piece"
            piece.write_bytes(np.concatenate([np.array(d, np.uint16) for d in documents[part]]).tobytes())
            writer.append_file(piece, np.array(lengths[part]))
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"joined.{suffix}").read_bytes() == (tmp_path / f"one.{suffix}").read_bytes()


def test_dataset_of_empty_sequences_only(tmp_path: Path) -> None:
    corpora.write(tmp_path / "data", [0, 0])
    dataset = IndexedDataset(tmp_path / "data")
    assert [dataset[i].tolist() for i in range(2)] == [[], []]


def test_dtype_follows_the_unpadded_vocabulary() -> None:
    assert token_dtype(65_499) == np.uint16
    assert token_dtype(65_500) == np.int32


def test_interrupted_writer_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    corpora.write(tmp_path / "data", [3])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with (
        pytest.raises(DataError, match="does not fit uint16"),
        IndexedWriter(tmp_path / "data", np.uint16, overwrite=True) as writer,
    ):
        writer.add_document([1, 70_000])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(DataError, match=r"data\.bin: exists"):
        IndexedWriter(tmp_path / "data", np.uint16)


def damage_truncated_bin(prefix: Path) -> None:
    path = prefix.with_suffix(".bin")
    path.write_bytes(path.read_bytes()[:-1])


def damage_truncated_idx(prefix: Path) -> None:
    path = prefix.with_suffix(".idx")
    path.write_bytes(path.read_bytes()[:-1])


def damage_short_header(prefix: Path) -> None:
    prefix.with_suffix(".idx").write_bytes(b"MMIDIDX\0\0\1")


def patch(prefix: Path, offset: int, content: bytes) -> None:
    path = prefix.with_suffix(".idx")
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(bytes(raw))


N = 3
DAMAGES = {
    "bin truncated": (damage_truncated_bin, r"data\.bin: truncated: 39 bytes.*ends at 40"),
    "idx truncated": (damage_truncated_idx, r"data\.idx: truncated"),
    "header short": (damage_short_header, r"data\.idx: truncated: 10 bytes"),
    "magic": (lambda p: patch(p, 0, b"NOTANIDX\0"), r"data\.idx: bad header"),
    "version": (lambda p: patch(p, 9, struct.pack("<Q", 2)), r"data\.idx: version 2"),
    "float": (lambda p: patch(p, 17, b"\x07"), r"data\.idx: holds floating-point"),
    "unknown dtype": (lambda p: patch(p, 17, b"\x2a"), r"data\.idx: unknown dtype 42"),
    "too many sequences": (lambda p: patch(p, 18, struct.pack("<Q", 2**40)), r"data\.idx: truncated"),
    "too few sequences": (lambda p: patch(p, 18, struct.pack("<Q", 1)), r"data\.idx: .* sequences end at"),
    "negative length": (lambda p: patch(p, 34, struct.pack("<i", -1)), r"data\.idx: sequence 0 has the length -1"),
    "unordered": (
        lambda p: patch(p, 34 + 4 * N + 8, struct.pack("<q", 2)),
        r"data\.idx: sequence 1 begins before.*out of order",
    ),
    "pointer past the end": (
        lambda p: patch(p, 34 + 4 * N + 16, struct.pack("<q", 1 << 40)),
        r"data\.bin: truncated: .*sequence 2",
    ),
    "pointer past all": (
        lambda p: patch(p, 34 + 4 * N + 16, struct.pack("<q", (1 << 63) - 2)),
        r"data\.bin: truncated: .*sequence 2",
    ),
    "no bin": (lambda p: p.with_suffix(".bin").unlink(), r"data\.bin: does not exist"),
    "no idx": (lambda p: p.with_suffix(".idx").unlink(), r"data\.idx: does not exist"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_when_the_file_is_opened(tmp_path: Path, damage: str) -> None:
    corpora.write(tmp_path / "data", [4, 2, 4])
    inflict, message = DAMAGES[damage]
    inflict(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        IndexedDataset(tmp_path / "data")


def test_multimodal_index_is_refused(tmp_path: Path) -> None:
    corpora.write(tmp_path / "data", [4, 2, 4])
    with (tmp_path / "data.idx").open("ab") as file:
        file.write(b"\0" * N)
    with pytest.raises(DataError, match="multimodal"):
        IndexedDataset(tmp_path / "data")


def test_token_range_is_checked_once_per_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora.write(tmp_path / "data", [100])
    dataset = IndexedDataset(tmp_path / "data")
    with pytest.raises(DataError, match=r"data\.bin: token id 99 is outside the vocabulary of 99"):
        dataset.check_token_ids(99)
    monkeypatch.setattr("megamesh.data.store.token_range.scan", lambda *_: pytest.fail("scanned again"))
    dataset.check_token_ids(100)
    monkeypatch.undo()
    corpora.write(tmp_path / "data", [100], first=1)  # a file of the same size
    os.utime(tmp_path / "data.bin", ns=(1, 1))
    with pytest.raises(DataError, match="token id 100"):
        IndexedDataset(tmp_path / "data").check_token_ids(100)


def test_token_range_is_that_of_all_pieces_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megamesh.data.store.token_range.CHUNK_BYTES", 8)
    with IndexedWriter(tmp_path / "data", np.int32) as writer:
        writer.add_document([5, 6, 7, 90, 8, 9, -3])
    assert scan(tmp_path / "data.bin", np.dtype("<i4")) == (-3, 90)


def test_negative_ids_are_found(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "data", np.int32) as writer:
        writer.add_document([5, -1, 3])
    with pytest.raises(DataError, match="token id -1"):
        IndexedDataset(tmp_path / "data").check_token_ids(10)
