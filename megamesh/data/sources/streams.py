"""Compressed bytes → bytes, in bounded memory.

    read ─▶ gzip members │ zstd frames │ xz streams, one after another ─▶ blocks of about 1 MiB or less

A stream that ends too early, fails its checksum or is followed by something else is a DataError: text would be lost in silence. Zeros after
a stream are padding. A stream may ask for at most 512 MiB of memory (zstd --long=29).
"""

import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from megamesh.data.sources.disk import BLOCK_BYTES
from megamesh.data.sources.inputs import Compression, require
from megamesh.errors import DataError

Read = Callable[[int], bytes]

_INPUT_BYTES = 1 << 18
_MOST_MEMORY = 512 << 20
_ZSTD_STEP = 1 << 12  # zstandard gives at once all that its input holds; what 4 KiB hold is bounded


class _Stream(Protocol):
    """One gzip member, zstd frame or xz stream."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def blocks(self, data: bytes) -> Iterator[bytes]: ...


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)

    def blocks(self, data: bytes) -> Iterator[bytes]:
        block = b""
        while not self.eof and (data or len(block) == BLOCK_BYTES):
            block = self._stream.decompress(data, BLOCK_BYTES)
            yield block
            data = self._stream.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data


class _Xz:
    def __init__(self) -> None:
        self._stream = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MOST_MEMORY)

    def blocks(self, data: bytes) -> Iterator[bytes]:
        yield self._stream.decompress(data, BLOCK_BYTES)
        while not self.eof and not self._stream.needs_input:
            yield self._stream.decompress(b"", BLOCK_BYTES)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data


class _Zstd:
    def __init__(self, decompressor: Any):
        self._stream = decompressor.decompressobj(write_size=1 << 15)
        self.eof, self.unused_data = False, b""

    def blocks(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_STEP):
            yield self._stream.decompress(data[start : start + _ZSTD_STEP])
            if self._stream.eof:
                self.eof, self.unused_data = True, self._stream.unused_data + data[start + _ZSTD_STEP :]
                return


def decompress(read: Read, compression: Compression, name: str) -> Iterator[bytes]:
    """The blocks that a compressed file or member holds. Raises DataError, with its name, for one that is damaged."""
    if compression == "none":
        yield from iter(lambda: read(BLOCK_BYTES), b"")
        return
    make, damage = _maker(compression, name)
    try:
        yield from _joined(_streams(read, make, compression, name))
    except damage as error:
        raise DataError(
            f"{name}: damaged {compression} data ({error}); compress it again from its source, with a window of at most "
            f"{_MOST_MEMORY >> 20} MiB"
        ) from error


def _maker(compression: Compression, name: str) -> tuple[Callable[[], _Stream], tuple[type[Exception], ...]]:
    if compression == "gzip":
        return _Gzip, (zlib.error,)
    if compression == "xz":
        return _Xz, (lzma.LZMAError, MemoryError)
    require("zstandard", name)
    import zstandard

    return partial(_Zstd, zstandard.ZstdDecompressor(max_window_size=_MOST_MEMORY)), (zstandard.ZstdError,)


def _streams(read: Read, make: Callable[[], _Stream], compression: Compression, name: str) -> Iterator[bytes]:
    stream: _Stream | None = None
    left, complete = b"", 0
    while data := left or read(_INPUT_BYTES):
        left = b""
        if stream is None:
            data = data.lstrip(b"\0") if complete else data
            if not data:
                continue
            stream = make()
        yield from stream.blocks(data)
        if stream.eof:
            left, stream, complete = stream.unused_data, None, complete + 1
    if stream is not None or not complete:
        raise DataError(f"{name}: its {compression} data end too early; fetch the file again or compress it again")


def _joined(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Small blocks as fewer large ones."""
    parts, size = [], 0
    for block in blocks:
        parts.append(block)
        size += len(block)
        if size >= BLOCK_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    if size:
        yield b"".join(parts)


class StreamReader:
    """Blocks as a file that is read from its start to its end."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks, self._left = blocks, memoryview(b"")

    def read(self, size: int) -> bytes:
        """The next bytes, fewer than `size` only at the end."""
        parts = []
        while size > 0:
            if not self._left:
                block = next(self._blocks, None)
                if block is None:
                    break
                self._left = memoryview(block)
                continue
            parts.append(self._left[:size])
            self._left = self._left[size:]
            size -= len(parts[-1])
        return b"".join(parts)
