"""Bytes of a file on disk, read in order and counted.

    path ─▶ RawFile(position) ─▶ blocks of at most 1 MiB

A file that cannot be read, or that becomes shorter meanwhile, is a DataError that names it.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from megamesh.errors import DataError

BLOCK_BYTES = 1 << 20
_SEARCH_BYTES = 1 << 16


class RawFile:
    """A file opened for reading without a buffer; `position` is how far it was read."""

    def __init__(self, path: Path, position: int = 0):
        self.path, self.position = path, position
        try:
            self._file = path.open("rb", buffering=0)
            self._file.seek(position)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error

    def read(self, size: int = BLOCK_BYTES) -> bytes:
        """The next bytes, fewer than `size` only at the end of the file."""
        parts = []
        while size > 0:
            try:
                part = self._file.read(size)
            except OSError as error:
                raise DataError(f"{self.path}: cannot be read ({error.strerror or error})") from error
            if not part:
                break
            parts.append(part)
            size -= len(part)
            self.position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, position: int) -> None:
        self._file.seek(position)
        self.position = position

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def blocks_of_range(file: RawFile, start: int, end: int, separator: bytes) -> Iterator[bytes]:
    """The bytes of the pieces whose first byte lies in [start, end), in blocks."""
    position = first_piece(file, start, end, separator)
    file.seek(position)
    tail = b""
    while file.position < end:
        block = file.read(min(BLOCK_BYTES, end - file.position))
        if not block:
            raise DataError(f"{file.path}: became shorter while it was read; start again when it is complete")
        yield block
        tail = (tail + block[-len(separator) :])[-len(separator) :]
    if position < end and tail != separator:
        yield from _rest_of_piece(file, tail, separator)


def _rest_of_piece(file: RawFile, tail: bytes, separator: bytes) -> Iterator[bytes]:
    """What follows up to the end of the next separator, of which `tail` may hold the beginning."""
    tail = tail[1:] if len(tail) == len(separator) else tail
    while block := file.read(_SEARCH_BYTES):
        at = (tail + block).find(separator)
        if at >= 0:
            yield block[: at + len(separator) - len(tail)]
            return
        yield block
        tail = (tail + block)[max(len(tail) + len(block) - len(separator) + 1, 0) :]


def first_piece(file: RawFile, start: int, end: int, separator: bytes) -> int:
    """Where the first piece that begins at or after `start` does; `end` or later where none begins before it."""
    if start == 0:
        return 0
    position = max(start - len(separator), 0)
    file.seek(position)
    tail = b""
    while position + len(tail) < end and (block := file.read(_SEARCH_BYTES)):
        data = tail + block
        at = data.find(separator)
        if at >= 0:
            return position + at + len(separator)
        keep = min(len(separator) - 1, len(data))
        position += len(data) - keep
        tail = data[len(data) - keep :]
    return max(end, position)


def pieces_before(path: Path, position: int, separator: bytes) -> int:
    """Pieces that begin before a byte of the file."""
    if position == 0:
        return 0
    count, tail = 1, b""
    with RawFile(path) as file:
        while block := file.read(min(BLOCK_BYTES, position - 1 - file.position)):
            data = tail + block
            count += data.count(separator)
            tail = data[max(len(data) - len(separator) + 1, 0) :]
    return count
