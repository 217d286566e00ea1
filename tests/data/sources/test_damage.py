"""Files from which something is missing are an error that names them: text is never lost in silence."""

import gzip
import lzma
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from megamesh.errors import DataError
from tests.data.sources.formats import LINES, read_all, tar_of, zip_of

CONTENT = b"".join(b'{"text": "%d %s"}\n' % (i, b"word " * (i % 7)) for i in range(300))
COMPRESSED = [name for name in LINES if name not in ("a.jsonl", "a.json")]


def parquet_of(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": content.decode().splitlines()}), sink)
    return sink.getvalue().to_pybytes()


def arrow_of(make: Callable, content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"text": content.decode().splitlines()})
    with make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return sink.getvalue().to_pybytes()


PACKED = {
    **{name: LINES[name] for name in COMPRESSED},
    "a.parquet": parquet_of,
    "stream.arrow": lambda content: arrow_of(pa.ipc.new_stream, content),
    "file.arrow": lambda content: arrow_of(pa.ipc.new_file, content),
}


@pytest.mark.parametrize("name", [name for name in PACKED if not name.startswith("two")])
def test_a_file_cut_anywhere_is_an_error_or_complete(tmp_path: Path, name: str) -> None:
    whole, path, errors = PACKED[name](CONTENT), tmp_path / name, list[str]()
    path.write_bytes(whole)
    records = read_all(path)
    assert len(records[0]) == 300
    lengths = {0, 1, 5, len(whole) - 9, len(whole) - 1, *range(0, len(whole), max(len(whole) // 23, 1))}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        try:
            found = read_all(path)
        except DataError as error:
            errors.append(str(error))
        else:
            assert found == records and not whole[length:].strip(b"\0"), f"cut at {length} of {len(whole)}"
    assert len(errors) >= 5 and all(str(path) in error for error in errors)


@pytest.mark.parametrize(
    "name", [name for name in PACKED if name.endswith((".gz", ".zst", ".xz", ".tgz", ".tar", "stream.arrow"))]
)
def test_what_follows_the_end_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for more in (b"garbage", b"\0\0x", PACKED[name](CONTENT) if name.endswith((".tar", ".arrow")) else b"x" * 600):
        path.write_bytes(PACKED[name](CONTENT) + more)
        with pytest.raises(DataError, match=name):
            read_all(path)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.xz", "two.jsonl.gz", "a.zip", "a.tgz"])
def test_changed_bytes_are_an_error(tmp_path: Path, name: str) -> None:
    compress = zstandard.ZstdCompressor(write_checksum=True).compress
    whole = bytearray(compress(CONTENT) if name == "a.jsonl.zst" else PACKED[name](CONTENT))
    whole[len(whole) // 3] ^= 0x55
    (tmp_path / name).write_bytes(whole)
    with pytest.raises(DataError, match=name):
        read_all(tmp_path / name)


@pytest.mark.parametrize("name", PACKED)
def test_changed_bytes_never_end_in_another_error(tmp_path: Path, name: str) -> None:
    whole, path, draw, errors = PACKED[name](CONTENT[:1000]), tmp_path / name, random.Random(5), 0
    for _ in range(60):
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            read_all(path)
        except DataError:
            errors += 1
    assert errors > 0


def test_windows_of_zstd(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    for window_log, allowed in ((27, True), (29, True), (30, False)):
        parameters = zstandard.ZstdCompressionParameters(
            window_log=window_log, enable_ldm=False, hash_log=6, chain_log=6
        )
        writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # the size is not known to it
        path.write_bytes(writer.compress(CONTENT) + writer.flush())
        if allowed:
            assert len(read_all(path)[0]) == 300
        else:
            with pytest.raises(DataError, match="at most 512 MiB"):
                read_all(path)


def test_members_of_other_kinds_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {
        "README.md": b"no",
        "b/.hidden.txt": b"no",
        "b/c.txt": b"c",
        "a.jsonl": b'{"text": "a"}\n',
        "empty.jsonl": b"",
        "x.bin": b"",
        "é.txt": b"d",
    }
    for name, pack in (("a.tar", tar_of), ("a.zip", zip_of)):
        caplog.clear()
        (tmp_path / name).write_bytes(pack(members))
        assert read_all(tmp_path / name)[0] == [("c",), ("a",), ("d",)], "the archive's order"
        assert [record.getMessage() for record in caplog.records] == [
            f"{tmp_path / name}: left out 3 members of other kinds: README.md, b/.hidden.txt, x.bin"
        ]


def test_long_names_links_and_folders_in_a_tar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    deep = tmp_path / "in" / ("d" * 150)
    deep.mkdir()
    (deep / ("n" * 120 + ".txt")).write_text("long")
    (tmp_path / "in" / "link.txt").symlink_to("nowhere.txt")
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        if kind == tarfile.USTAR_FORMAT:
            continue  # it cannot hold such names
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=kind) as archive:
            archive.add(tmp_path / "in", "in")
        assert read_all(tmp_path / "a.tar.gz")[0] == [("long",)]
    assert "in/link.txt" in caplog.text


def test_packed_zeros_are_read_in_little_memory(tmp_path: Path) -> None:
    """16 MiB of blanks in a few KB: every block that comes out is small."""
    from megamesh.data.sources.streams import decompress

    content = b" " * (16 << 20)
    packs = {
        "gzip": gzip.compress(content, 6),
        "zstd": zstandard.compress(content),
        "xz": lzma.compress(content, preset=0),
    }
    for name, packed in packs.items():
        left = [packed, b""]
        sizes = [len(block) for block in decompress(lambda size, left=left: left.pop(0), name, "name")]  # type: ignore[arg-type]
        assert sum(sizes) == len(content)
        if name != "zstd":
            assert max(sizes) <= 2 << 20
