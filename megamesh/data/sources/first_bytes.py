"""What a file is by its first bytes, told where its name says otherwise: the mend is a right name, not to compress again."""

import codecs

from megamesh.data.sources.inputs import InputFile
from megamesh.errors import DataError

_BYTES = 512
_TAR_MARK, _TAR_PLACE = b"ustar", 257
_BEHIND = ", behind the ending of what is in it"
_MARKS = (
    (b"\x1f\x8b", "gzip", f"….gz{_BEHIND}"),
    (b"\x28\xb5\x2f\xfd", "zstd", f"….zst{_BEHIND}"),
    (b"\xfd7zXZ\0", "xz", f"….xz{_BEHIND}"),
    (b"PK\x03\x04", "a zip archive", "….zip"),
    (b"PAR1", "parquet", "….parquet"),
    (b"ARROW1", "arrow", "….arrow"),
)
_TEXT = (b"\t", b"\n", b"\r", b"\f", b"\b", b"\x1b")


def check_name(file: InputFile) -> None:
    """Raise DataError where a file is of a known kind that its name does not say. One that cannot be told passes."""
    try:
        with file.path.open("rb") as opened:
            begin = opened.read(_BYTES)
    except OSError:
        return  # the reader tells it
    found = _kind(begin)
    named = _named(file)
    may_be_text = named in ("text", "a dat archive")
    if found is None or named == found[0] or (may_be_text and _is_text(begin)):
        return
    what, name = found
    raise DataError(f"{file.path}: is named as {named}, but is {what} by its first bytes; rename it (to {name})")


def _named(file: InputFile) -> str:
    if file.compression != "none":
        return str(file.compression)
    return {"jsonl": "text", "tar": "a tar archive", "zip": "a zip archive", "dat": "a dat archive"}.get(
        file.kind, str(file.kind)
    )


def _kind(begin: bytes) -> tuple[str, str] | None:
    """Kind and the name that says it; None where that is not certain."""
    for mark, kind, name in _MARKS:
        if begin.startswith(mark):
            return kind, name
    if begin[_TAR_PLACE:].startswith(_TAR_MARK):
        return "a tar archive", "….tar"
    return ("text", "….jsonl or .txt") if begin and _is_text(begin) else None


def _is_text(begin: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(begin)  # a character may be cut at the end
    except UnicodeDecodeError:
        return False
    return len(begin) >= 4 and not any(byte < 32 and bytes([byte]) not in _TEXT for byte in begin)
