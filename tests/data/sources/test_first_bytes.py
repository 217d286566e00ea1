"""A file of another kind than its name says is told by what it is, with the mend that mends it."""

import gzip
import lzma
from pathlib import Path

import pytest

from megamesh.errors import DataError
from tests.data.sources.formats import LINES, read_all
from tests.data.sources.test_damage import CONTENT, PACKED, parquet_of


@pytest.mark.parametrize(
    ("name", "content", "kind", "ending"),
    [
        ("a.jsonl.gz", CONTENT, "text", ".jsonl"),
        ("a.jsonl.zst", CONTENT, "text", ".jsonl"),
        ("a.txt.xz", CONTENT, "text", ".txt"),
        ("a.parquet", CONTENT, "text", ".jsonl"),
        ("a.zip", CONTENT, "text", ".jsonl"),
        ("a.tar", CONTENT, "text", ".jsonl"),
        ("a.jsonl", gzip.compress(CONTENT), "gzip", ".gz"),
        ("a.jsonl.zst", gzip.compress(CONTENT), "gzip", ".gz"),
        ("a.jsonl.gz", LINES["a.jsonl.zst"](CONTENT), "zstd", ".zst"),
        ("a.txt", lzma.compress(CONTENT), "xz", ".xz"),
        ("a.jsonl", parquet_of(CONTENT), "parquet", ".parquet"),
        ("a.arrow", parquet_of(CONTENT), "parquet", ".parquet"),
        ("a.parquet", PACKED["file.arrow"](CONTENT), "arrow", ".arrow"),
        ("a.jsonl", PACKED["a.zip"](CONTENT), "a zip archive", ".zip"),
        ("a.tar.gz", PACKED["a.tar"](CONTENT), "a tar archive", ".tar"),
    ],
)
def test_a_wrong_name_is_told_with_the_right_one(
    tmp_path: Path, name: str, content: bytes, kind: str, ending: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_all(tmp_path / name)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / name}: is named as ") and f"but is {kind} by its first bytes" in message
    assert ending in message.rsplit("rename it", 1)[1] and "again" not in message


@pytest.mark.parametrize(
    "content", [b"PAR1 is how a parquet file begins", b"ARROW1\n", b"", b"ab", "字".encode() * 400]
)
def test_text_is_text_however_it_begins(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert read_all(tmp_path / "a.txt")[0] == [(content.decode(),)]
