"""Blocks of a text file, or of a .dat archive → documents.

    blocks ─▶ pieces between separators, or all of it ─▶ UTF-8 ─▶ Found

A separator is matched byte for byte and nothing is stripped. Without one the whole file is a document, an empty file an empty document.
A .dat archive (lm_dataformat) is a sequence of sixteen digits, the number of bytes, and that many bytes.
"""

from collections.abc import Iterator

from megamesh.data.sources.disk import BLOCK_BYTES
from megamesh.data.sources.found import Found
from megamesh.data.sources.pieces import BYTE_ORDER_MARK
from megamesh.data.sources.streams import StreamReader
from megamesh.errors import DataError

_LENGTH_DIGITS = 16


def add_pieces(found: Found, pieces: list[bytes | None]) -> None:
    """Add one document per piece; None is one that is too long."""
    for piece in pieces:
        add_piece(found, piece)


def add_piece(found: Found, piece: bytes | None) -> None:
    """Add one document."""
    if piece is None:
        found.add_bad("too-long", found.too_long)
        return
    found.size += len(piece)
    try:
        text = piece.decode()
    except UnicodeDecodeError as error:
        found.add_bad("bad-utf-8", f"not UTF-8 ({error.reason} at byte {error.start} of the document)")
    else:
        found.add_text(text)


def whole_document(blocks: Iterator[bytes], limit: int) -> bytes | None:
    """All blocks as one document, without its byte order mark; None, and read to the end, where it is longer than the limit."""
    parts, size = [], 0
    for block in blocks:
        size += len(block)
        if size <= limit + len(BYTE_ORDER_MARK):
            parts.append(block)
        else:
            parts.clear()
    document = b"".join(parts).removeprefix(BYTE_ORDER_MARK)
    return None if size > limit + len(BYTE_ORDER_MARK) or len(document) > limit else document


def dat_documents(blocks: Iterator[bytes], limit: int, name: str) -> Iterator[bytes | None]:
    """The documents of a .dat archive; None for one that is too long."""
    stream, number = StreamReader(blocks), 0
    while digits := stream.read(_LENGTH_DIGITS):
        number += 1
        if len(digits) < _LENGTH_DIGITS or not digits.isdigit():
            raise DataError(f"{name}: no length before document {number} ({digits!r}); it is damaged: fetch it again")
        size = left = int(digits)
        parts = []
        while left > 0:
            block = stream.read(min(left, BLOCK_BYTES))
            if not block:
                raise DataError(f"{name}: ends in document {number}; fetch it again")
            left -= len(block)
            if size <= limit:
                parts.append(block)
        yield b"".join(parts) if size <= limit else None
