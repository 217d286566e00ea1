"""Archives of text and jsonl files → records, member by member in the archive's order.

    .tar ─▶ (decompressed) ─▶ headers and members, read once from start to end ─┐
    .zip ─▶ members by its directory ───────────────────────────────────────────┴▶ (decompressed) ─▶ lines or documents ─▶ Found

Members may be compressed themselves (.jsonl.zst.tar of lm_dataformat). Hidden members and those of other kinds are left out with one
warning. An archive that is cut short, or followed by anything but zeros, is a DataError.
"""

import logging
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from megamesh.data.sources.content import add_content
from megamesh.data.sources.disk import BLOCK_BYTES, RawFile
from megamesh.data.sources.found import Found, ReadOptions
from megamesh.data.sources.inputs import file_kind
from megamesh.data.sources.shard import Shard
from megamesh.data.sources.streams import Read, StreamReader, decompress
from megamesh.data.store.manifest import name_as_text
from megamesh.errors import DataError

log = logging.getLogger(__name__)

_NAMED = 3


def read_tar(shard: Shard, options: ReadOptions, found: Found) -> Iterator[int]:
    """Adds the records of every member, and yields the bytes of the archive read so far."""
    name, left_out = str(shard.file.path), list[str]()
    with RawFile(shard.file.path) as file:
        stream = StreamReader(decompress(file.read, shard.file.compression, name))
        try:
            with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK_BYTES) as archive:  # type: ignore[call-overload]
                while member := archive.next():
                    archive.members = []  # or it would keep every header
                    content = archive.extractfile(member) if member.isfile() else None
                    if content is not None:
                        for _ in _add_member(found, member.name, content.read, options, name, left_out):
                            yield file.position
                    elif not member.isdir():
                        left_out.append(member.name)
                _check_end(archive, name)
        except tarfile.TarError as error:
            raise DataError(f"{name}: damaged archive ({error}); fetch or pack it again") from error
    _warn(name, left_out)


def _check_end(archive: tarfile.TarFile, name: str) -> None:
    """DataError unless zeros follow, of which an archive has at least one block after the header of zeros that ended it."""
    num_bytes = 0
    while rest := archive.fileobj.read(BLOCK_BYTES):
        num_bytes += len(rest)
        if rest.strip(b"\0"):
            raise DataError(
                f"{name}: damaged, or several archives one after another; fetch it again, or pack it as one"
            )
    if num_bytes == 0:
        raise DataError(f"{name}: the archive is cut short (no end mark); fetch or pack it again")


def read_zip(shard: Shard, options: ReadOptions, found: Found) -> Iterator[int]:
    """Adds the records of every member, and yields the bytes of the archive read so far."""
    name, left_out, position = str(shard.file.path), list[str](), 0
    try:
        with zipfile.ZipFile(shard.file.path) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    with archive.open(member) as content:
                        for _ in _add_member(found, member.filename, content.read, options, name, left_out):
                            yield position
                position += member.compress_size
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{name}: damaged archive ({error}); fetch or pack it again") from error
    except (RuntimeError, NotImplementedError) as error:  # a password, an unknown compression
        raise DataError(f"{name}: cannot be unpacked ({error}); pack it again without") from error
    _warn(name, left_out)


def _add_member(
    found: Found, member: str, read: Read, options: ReadOptions, archive: str, left_out: list[str]
) -> Iterator[None]:
    name = name_as_text(member)
    kind, compression = file_kind(name) or ("", "none")
    if kind not in ("jsonl", "text") or PurePosixPath(name).name.startswith("."):
        left_out.append(name)
        return
    found.enter_member(name)
    yield from add_content(found, decompress(read, compression, f"{archive}!{name}"), kind, options)


def _warn(name: str, left_out: list[str]) -> None:
    if left_out:
        more = ", …" if len(left_out) > _NAMED else ""
        log.warning(
            "%s: left out %d members of other kinds: %s%s", name, len(left_out), ", ".join(left_out[:_NAMED]), more
        )
