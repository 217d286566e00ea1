"""Text files → documents.

    a.jsonl ─▶ byte ranges ─▶ lines that begin in the range ─▶ one record {key: text} per line
    b.txt   ─▶ the whole file ─▶ one record

A shard is a byte range of one file; a line belongs to the shard in which its first byte lies, so shards join without loss at any size.
Blank lines are skipped. Anything else that is not an object with text under every key stops the reading, with file and line.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megamesh.errors import DataError

SUPPORTED = {".jsonl": "one JSON object per line", ".txt": "one document per file"}
KEYS_MEND = "see --jsonl-keys"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Shard:
    """The bytes [start, end) of a file."""

    path: Path
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


def find_inputs(values: Sequence[str], option: str = "--input") -> list[Path]:
    """Existing input files from an option's values, each a path or several separated by commas. Raises DataError."""
    paths = [Path(part) for value in values for part in value.split(",") if part]
    if not paths:
        raise DataError(f"{option} names no file")
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"{path}: {'is a folder' if path.is_dir() else 'does not exist'}; {option} takes files separated by commas"
            )
        if path.suffix not in SUPPORTED:
            kinds = ", ".join(f"{suffix} ({meaning})" for suffix, meaning in SUPPORTED.items())
            raise DataError(f"{path}: cannot read {path.suffix or 'a file without a suffix'}; supported: {kinds}")
    return paths


def cut_into_shards(paths: Sequence[Path], shard_bytes: int) -> list[Shard]:
    """Byte ranges of about `shard_bytes` for line-based files; a text file is one shard."""
    shards = []
    for path in paths:
        size = path.stat().st_size
        step = shard_bytes if path.suffix == ".jsonl" else max(size, 1)
        shards += [Shard(path, start, min(start + step, size)) for start in range(0, size, step)]
    return shards


def read_shard(shard: Shard, keys: Sequence[str], *, mend: str = KEYS_MEND) -> Iterator[dict[str, str]]:
    """The records of a shard, in order. A .txt file has its text under every key. Raises DataError with file and line.

    `mend` says what to do about a key that is missing.
    """
    if shard.path.suffix == ".txt":
        text = _decode(shard.path.read_bytes().removeprefix(BYTE_ORDER_MARK), shard.path)
        yield dict.fromkeys(keys, text)
        return
    with shard.path.open("rb") as file:
        position = shard.start
        if position > 0:
            file.seek(position - 1)
            position += len(file.readline()) - 1
        while position < shard.end:
            line = file.readline()
            if not line:
                break
            start, position = position, position + len(line)
            if start == 0:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if line.strip():
                yield _parse_line(line, keys, shard.path, start, mend)


def _parse_line(line: bytes, keys: Sequence[str], path: Path, start: int, mend: str) -> dict[str, str]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{_place(path, start)}: not UTF-8 ({error.reason} at byte {error.start} of the line)"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{_place(path, start)}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise DataError(
            f"{_place(path, start)}: a {type(record).__name__} instead of a JSON object with {', '.join(keys)}"
        )
    texts = {}
    for key in keys:
        if key not in record:
            raise DataError(
                f"{_place(path, start)}: no key {key!r}; found {', '.join(map(repr, record)) or 'none'}; {mend}"
            )
        text = record[key]
        if not isinstance(text, str):
            found = "null" if text is None else f"a {type(text).__name__}"
            raise DataError(f"{_place(path, start)}: {key!r} is {found} instead of text; mend or remove the line")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{_place(path, start)}: {key!r} holds half of a surrogate pair at character {error.start}"
            ) from error
        texts[key] = text
    return texts


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 ({error.reason} at byte {error.start} of the file)") from error


def _place(path: Path, start: int) -> str:
    """file:line of the line that begins at byte `start`; counts the lines before it, so for errors only."""
    number, left = 1, start
    with path.open("rb") as file:
        while left > 0:
            block = file.read(min(left, 1 << 20))
            if not block:
                break
            number += block.count(b"\n")
            left -= len(block)
    return f"{path}:{number}"
