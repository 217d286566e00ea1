"""The same bytes in every format of lines, and a slow reader to compare with."""

import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import zstandard

from megamesh.data.sources import ReadOptions, cut_into_shards, find_inputs, read_shard

OPTIONS = ReadOptions()
MARK = b"\xef\xbb\xbf"


def tar_of(members: dict[str, bytes]) -> bytes:
    """A tar archive."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return packed.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    """A zip archive."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def dat_of(documents: list[bytes]) -> bytes:
    """A .dat.zst archive of lm_dataformat."""
    return zstandard.compress(b"".join(b"%016d" % len(document) + document for document in documents))


def _halves(pack: Callable[[bytes], bytes], content: bytes) -> bytes:
    """Two streams one after another."""
    return pack(content[: len(content) // 2]) + pack(content[len(content) // 2 :])


LINES: dict[str, Callable[[bytes], bytes]] = {
    "a.jsonl": bytes,
    "a.json": bytes,
    "a.ndjson.gz": gzip.compress,
    "two.jsonl.gz": lambda content: _halves(gzip.compress, content),
    "a.jsonl.zst": zstandard.compress,
    "two.jsonl.zst": lambda content: _halves(zstandard.compress, content) + b"\x50\x2a\x4d\x18\x03\0\0\0abc",
    "a.jsonl.xz": lzma.compress,
    "two.jsonl.xz": lambda content: _halves(lzma.compress, content) + b"\0" * 8,
    "a.tar": lambda content: tar_of({"d/a.jsonl": content}),
    "a.tgz": lambda content: gzip.compress(tar_of({"d/a.jsonl": content})),
    "a.jsonl.zst.tar": lambda content: tar_of({"a.jsonl.zst": zstandard.compress(content)}),
    "a.tar.zst": lambda content: zstandard.compress(tar_of({"a.jsonl.gz": gzip.compress(content)})),
    "a.zip": lambda content: zip_of({"a.jsonl": content}),
}


def read_all(
    path: Path, options: ReadOptions = OPTIONS, shard_bytes: int = 1 << 20
) -> tuple[list[tuple], list[tuple[int, str]], int]:
    """Records, (line, reason) of the bad ones by line of the file, and lines; checks the sums that are promised."""
    records, bad, lines = [], [], 0
    files = find_inputs([str(path)])
    for shard in cut_into_shards(files, shard_bytes, options.separator):
        parts = list(read_shard(shard, options))
        assert sum(part.num_bytes for part in parts) == shard.num_bytes
        assert all(part.num_bytes >= 0 for part in parts)
        for part in parts:
            assert len({len(values) for values in part.values}) == 1
            records += list(zip(*part.values, strict=True))
            bad += [(lines + entry.line, entry.reason) for entry in part.bad]
        lines += sum(part.num_lines for part in parts)
    assert (
        sum(shard.num_bytes for shard in cut_into_shards(files, shard_bytes, options.separator)) == path.stat().st_size
    )
    return records, bad, lines


def slow_lines(content: bytes, limit: int = 1 << 30) -> tuple[list[tuple], list[tuple[int, str]], int]:
    """What `read_all` must give for lines of JSON with the key text, one line and one rule at a time."""
    records, bad = [], []
    lines = content.removeprefix(MARK).split(b"\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        reason = ""
        if len(line) > limit:
            reason = "too-long"
        elif not line.strip():
            continue
        else:
            try:
                record = json.loads(line.decode(), parse_int=float)
            except UnicodeDecodeError:
                reason = "bad-utf-8"
            except (ValueError, RecursionError):
                reason = "bad-json"
            else:
                reason, text = slow_text(record)
        if reason:
            bad.append((number, reason))
        else:
            records.append((text,))
    return records, bad, len(lines)


def slow_text(record: object) -> tuple[str, str]:
    """(reason, text) of a record."""
    if not isinstance(record, dict):
        return "not-an-object", ""
    if "text" not in record:
        return "missing-key", ""
    text = record["text"]
    if text is None:
        return "null", ""
    if not isinstance(text, str):
        return "not-a-string", ""
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        return "surrogate", ""
    return "", text
