"""Blocks of bytes → the pieces between separators, whatever the blocks' borders.

    b"ab", b"c\\nde", b"\\n" ──▶ [b"abc"], [b"de"]

The separators are those that a scan from the left finds. A piece longer than the limit comes as None and is not held. What follows the last
separator is a piece unless it is empty. A byte order mark at the start is removed where `marked` says that the file begins here.
"""

from collections.abc import Iterable, Iterator

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def split_pieces(
    blocks: Iterable[bytes], separator: bytes, limit: int, *, marked: bool
) -> Iterator[list[bytes | None]]:
    """Groups of pieces: those that end in the same block."""
    edge_bytes = len(separator) - 1
    parts: list[bytes] = []  # of the piece that is under way
    held, too_long, edge = 0, False, b""
    for block in blocks:
        straddles = separator in edge + block[:edge_bytes]
        if not straddles and separator not in block:
            parts.append(block)
            held += len(block)
            edge = (edge + block[-edge_bytes:])[-edge_bytes:] if edge_bytes else b""
            if too_long or held - edge_bytes > limit + len(BYTE_ORDER_MARK):
                parts, held, too_long, marked = [edge], len(edge), True, False
            continue
        pieces: list[bytes | None]
        if straddles:
            pieces = list(b"".join([*parts, block]).split(separator))
        else:  # the usual case: one copy less
            first, *others = block.split(separator)
            pieces = [b"".join([*parts, first]), *others]
        rest = pieces.pop() or b""
        yield _checked(pieces, limit, first_too_long=too_long, marked=marked)
        parts, held, too_long, marked = [rest], len(rest), False, False
        edge = rest[-edge_bytes:] if edge_bytes else b""
    last = _checked([b"".join(parts)], limit, first_too_long=too_long, marked=marked)
    if last != [b""]:
        yield last


def _checked(pieces: list[bytes | None], limit: int, *, first_too_long: bool, marked: bool) -> list[bytes | None]:
    if marked and pieces[0] is not None:
        pieces[0] = pieces[0].removeprefix(BYTE_ORDER_MARK)
    if first_too_long:
        pieces[0] = None
    return [None if piece is None or len(piece) > limit else piece for piece in pieces]


def overlaps_itself(separator: bytes) -> bool:
    """Whether a beginning of the separator is also its end, so that where it stands depends on where a scan begins."""
    return any(separator.startswith(separator[-length:]) for length in range(1, len(separator)))
