"""The bytes of a file or an archive's member → records, by kind.

blocks ─▶ lines of JSON │ pieces between separators │ one document ─▶ Found
"""

from collections.abc import Callable, Iterator

from megamesh.data.sources.found import Found, ReadOptions
from megamesh.data.sources.json_lines import add_lines
from megamesh.data.sources.pieces import split_pieces
from megamesh.data.sources.texts import add_pieces, whole_document

Add = Callable[[Found, list[bytes | None]], None]


def splitter(kind: str, options: ReadOptions) -> tuple[bytes, Add]:
    """What stands between the records of a jsonl or text file, and what adds the pieces; no separator where the file is one document."""
    return (b"\n", add_lines) if kind == "jsonl" else ((options.separator or "").encode(), add_pieces)


def add_content(found: Found, blocks: Iterator[bytes], kind: str, options: ReadOptions) -> Iterator[None]:
    """Add the records of a jsonl or text file; yields now and then."""
    separator, add = splitter(kind, options)
    if not separator:
        add(found, [whole_document(blocks, options.max_document_bytes)])
        yield
        return
    for pieces in split_pieces(blocks, separator, options.max_document_bytes, marked=True):
        add(found, pieces)
        yield
