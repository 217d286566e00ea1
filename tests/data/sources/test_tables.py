"""Parquet and arrow: every type of column that holds text, every bad row, ranges of groups and batches, bounded parts."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megamesh.data.sources import ReadOptions, cut_into_shards, find_inputs, place, read_records, read_shard
from megamesh.errors import DataError
from tests.data.sources.formats import read_all

VALUES = [
    b"plain",
    "é字🙂\u2028\x00".encode(),
    b"",
    None,
    b"caf\xe9",
    b"x" * 200,
    b"\xed\xa0\x80",
    b"last",
    b"\xef\xbb\xbfmark",
]
RECORDS = [("plain",), ("é字🙂\u2028\x00",), ("",), ("last",), ("\ufeffmark",)]
BAD = [(4, "null"), (5, "bad-utf-8"), (6, "too-long"), (7, "bad-utf-8")]
LIMIT = ReadOptions(max_document_bytes=100)


def as_text(binary: pa.Array, kind: pa.DataType) -> pa.Array:
    """Bytes under the name of text, whether they are UTF-8 or not."""
    return pa.Array.from_buffers(kind, len(binary), binary.buffers(), offset=binary.offset)


COLUMNS: dict[str, Callable[[], pa.Array]] = {
    "string": lambda: as_text(pa.array(VALUES, pa.binary()), pa.string()),
    "large_string": lambda: as_text(pa.array(VALUES, pa.large_binary()), pa.large_string()),
    "binary": lambda: pa.array(VALUES, pa.binary()),
    "large_binary": lambda: pa.array(VALUES, pa.large_binary()),
    "dictionary": lambda: pa.array(VALUES, pa.binary()).dictionary_encode(),
    "dictionary of strings": lambda: pa.DictionaryArray.from_arrays(
        pa.array([3, 1, 2, None, 4, 5, 6, 7, 0], pa.int8()),
        as_text(pa.array([b"\xef\xbb\xbfmark", VALUES[1], b"", b"plain", *VALUES[4:8]], pa.binary()), pa.string()),
    ),
    "string_view": lambda: as_text(pa.array(VALUES, pa.binary_view()), pa.string_view()),
    "binary_view": lambda: pa.array(VALUES, pa.binary_view()),
}


def write(path: Path, table: pa.Table, rows: int = 3) -> Path:
    """A table as the file's name and format say, `rows` rows per group or batch."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
    else:
        make = pa.ipc.new_file if path.name.startswith("file") else pa.ipc.new_stream
        options = pa.ipc.IpcWriteOptions(
            compression="zstd" if "packed" in path.name else None, emit_dictionary_deltas=True
        )
        with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=rows)
    return path


FILES = ["a.parquet", "stream.arrow", "file.arrow", "packed.arrow", "file-packed.arrow"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("column", COLUMNS)
def test_every_bad_row_of_every_type_is_counted(tmp_path: Path, name: str, column: str) -> None:
    table = pa.table({"n": range(len(VALUES)), "text": COLUMNS[column]()})
    path = write(tmp_path / name, table)
    if name == "a.parquet" and column == "dictionary of strings":  # pyarrow refuses the column as a whole
        with pytest.raises(DataError, match=r"a\.parquet: damaged .*UTF"):
            read_all(path, LIMIT)
        return
    for shard_bytes in (1, 1000, 1 << 30):
        assert read_all(path, LIMIT, shard_bytes) == (RECORDS, BAD, len(VALUES))
    if "dictionary" not in column or "file" not in name:
        assert len(cut_into_shards(find_inputs([str(path)]), 1)) == 3, "one shard per group"


@pytest.mark.parametrize("name", FILES)
def test_a_bad_row_is_placed_in_its_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, pa.table({"text": ["a", "b", "c", "d", None, "e"]}), rows=2)
    places = []
    for shard in cut_into_shards(find_inputs([str(path)]), 1):
        places += [place(shard, bad) for records in read_shard(shard, ReadOptions()) for bad in records.bad]
    assert places == [f"{path}:5"]
    with pytest.raises(DataError, match=rf"{name}:5: 'text' is null"):
        list(read_records(find_inputs([str(path)]), ReadOptions()))


@pytest.mark.parametrize("name", FILES)
def test_columns_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    table = pa.table({"id": [1], "meta": [{"text": "inside"}], "title": ["t"], "parts": [["a", "b"]]})
    path = write(tmp_path / name, table)
    for key, words in (
        ("text", r"no column 'text'; found 'id', 'meta', 'title', 'parts'"),
        ("meta.text", "a field inside a column cannot be named"),
        ("id", "column 'id' holds int64 instead of text"),
        ("meta", "column 'meta' holds struct"),
        ("parts", "column 'parts' holds list"),
    ):
        with pytest.raises(DataError, match=words):
            read_all(path, ReadOptions(keys=(key,)))
    assert read_all(path, ReadOptions(keys=("title",)))[0] == [("t",)]
    assert read_all(path, ReadOptions(keys=("title", "parts"), join_paragraphs=True))[0] == [("t", "a\n\nb")]


@pytest.mark.parametrize("name", FILES)
def test_conversations(tmp_path: Path, name: str) -> None:
    conversation = [{"role": "user", "content": "é"}, {"role": "assistant", "content": "b"}]
    path = write(tmp_path / name, pa.table({"messages": [conversation, None, []]}))
    records, bad, _ = read_all(path, ReadOptions(keys=("messages",), messages=True))
    assert (records, bad) == ([(conversation,), ([],)], [(2, "null")])


@pytest.mark.parametrize("name", FILES)
def test_large_groups_come_in_small_parts(tmp_path: Path, name: str) -> None:
    texts = [f"{number} " + "word " * 2000 for number in range(800)]  # 8 MB in one group
    path = write(tmp_path / name, pa.table({"text": texts, "more": ["x" * 1000] * 800}), rows=800)
    (shard,) = cut_into_shards(find_inputs([str(path)]), 1)
    parts = list(read_shard(shard, ReadOptions()))
    assert [text for part in parts for text in part.values[0]] == texts
    assert max(sum(map(len, part.values[0])) for part in parts) < 3 << 20
    assert sum(part.num_bytes for part in parts) == path.stat().st_size
    assert max(part.num_bytes for part in parts) < path.stat().st_size / 2, "progress is even"


@pytest.mark.parametrize("name", FILES)
def test_tables_without_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, pa.table({"text": pa.array([], pa.string())}))
    assert read_all(path) == ([], [], 0)


def test_offsets_outside_the_data_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "stream.arrow", pa.table({"text": ["abcdefgh"] * 4}), rows=4)
    content = bytearray(path.read_bytes())
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 8, 16, 24, 32))
    at = content.index(offsets)
    content[at + 8 : at + 12] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"stream\.arrow: damaged"):
        read_all(path)
