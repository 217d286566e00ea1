"""Text files: whole or between separators, exact, at any shard size, in every format that holds them."""

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from megamesh.data.sources import ReadOptions, disk, find_inputs, read_texts
from megamesh.data.sources.pieces import split_pieces
from megamesh.errors import DataError
from tests.data.sources.formats import MARK, dat_of, read_all, tar_of, zip_of

TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "a.txt": bytes,
    "a.txt.gz": gzip.compress,
    "a.txt.zst": zstandard.compress,
    "a.txt.xz": lzma.compress,
    "a.tar": lambda content: tar_of({"a.txt": content}),
    "a.tar.xz": lambda content: lzma.compress(tar_of({"a.txt.gz": gzip.compress(content)})),
    "a.zip": lambda content: zip_of({"a.txt": content}),
}
NASTY = [
    b"",
    MARK,
    b"a",
    "é字🙂\r\n\x00\u2028 ".encode(),
    MARK + b"a<|>b<|>" + MARK + b"c",
    b"<|><|>a<|><|>",
    b"<<|>|><|<|>",
    b"a<|>\xe9<|>\xff\xfe<|>b",
    b"a\n\n\nb\n\n\n\nc\n\n",
    b"a" * 50 + b"<|>b<|>" + b"c" * 30 + b"<|",
]


def slow_texts(content: bytes, separator: str | None, limit: int) -> tuple[list[tuple], list[tuple[int, str]], int]:
    """What `read_all` must give."""
    content = content.removeprefix(MARK)
    pieces = content.split(separator.encode()) if separator else [content]
    if separator and not pieces[-1]:
        pieces.pop()
    records, bad = [], []
    for number, piece in enumerate(pieces, start=1):
        try:
            if len(piece) > limit:
                bad.append((number, "too-long"))
            else:
                records.append((piece.decode(),))
        except UnicodeDecodeError:
            bad.append((number, "bad-utf-8"))
    return records, bad, len(pieces)


@pytest.mark.parametrize("name", TEXTS)
def test_texts_in_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in NASTY:
        path.write_bytes(TEXTS[name](content))
        for separator in (None, "<|>", "\n\n", "|><|"):
            for limit in (3, 20, 1 << 20):
                expected = slow_texts(content, separator, limit)
                found = read_all(path, ReadOptions(separator=separator, max_document_bytes=limit))
                assert found == expected, (content, separator, limit)


def test_pieces_do_not_depend_on_blocks() -> None:
    for content in NASTY:
        for separator in (b"<|>", b"\n\n", b"|", b"|><|", b"aa"):
            for limit in (0, 3, 20, 1 << 20):
                pieces = content.removeprefix(MARK).split(separator)
                if not pieces[-1]:
                    pieces.pop()
                expected = [None if len(piece) > limit else piece for piece in pieces]
                for size in (1, 2, 3, 5, 100):
                    blocks = [content[start : start + size] for start in range(0, len(content), size)]
                    groups = split_pieces(blocks, separator, limit, marked=True)
                    assert [piece for group in groups for piece in group] == expected, (content, separator, limit, size)


def test_shards_of_any_size_join_to_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    for content in NASTY:
        path.write_bytes(content)
        for separator in ("<|>", "\n\n", "|", "🙂"):
            for block_bytes in (1, 2, 1 << 20):
                monkeypatch.setattr(disk, "BLOCK_BYTES", block_bytes)
                monkeypatch.setattr(disk, "_SEARCH_BYTES", block_bytes)
                expected = slow_texts(content, separator, 10)
                for shard_bytes in range(1, len(content) + 2):
                    found = read_all(path, ReadOptions(separator=separator, max_document_bytes=10), shard_bytes)
                    assert found == expected, (content, separator, block_bytes, shard_bytes)


def test_a_bad_document_is_placed_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a<|>b<|>\xe9<|>c")
    with pytest.raises(DataError, match=r"a\.txt:3: not UTF-8"):
        list(read_texts(find_inputs([str(path)]), ReadOptions(separator="<|>")))


def test_dat_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.dat.zst"
    documents = ["a", "", "é字🙂" * 100, "\x00\n"]
    path.write_bytes(dat_of([*(document.encode() for document in documents), b"\xff", b"x" * 2000]))
    records, bad, lines = read_all(path, ReadOptions(max_document_bytes=1000))
    assert [text for (text,) in records] == documents
    assert (bad, lines) == ([(5, "bad-utf-8"), (6, "too-long")], 6)
    for damaged in (
        zstandard.compress(b"0" * 15 + b"9" + b"abc"),
        zstandard.compress(b"x" * 16),
        zstandard.compress(b"0" * 5),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.dat\.zst"):
            read_all(path)


def test_a_text_counts_once_whatever_the_number_of_keys(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text('{"a": "1", "b": "2"}\n')
    assert list(read_texts(find_inputs([str(tmp_path)]), ReadOptions(keys=("a", "b")))) == ["text", "1", "2"]
