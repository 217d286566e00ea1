"""Files that are written beside their final names, and those that killed processes left.

    <name>.tmp-<host>-<process>-<8 hex digits>

A file is left over where its process, of this host, is gone; what another host's processes write is never touched. Containers that share a
host's name but not its process numbers cannot be told from it.
"""

import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

NAME_BYTES = 150  # of the final name, so that the host and the rest fit into the 255 that a file's name may have
_REST = re.compile(r"(\d+)-[0-9a-f]{8}")


def temporary_path(path: Path) -> Path:
    """A new name beside `path` that no other process, on any host, gives to its file."""
    return path.with_name(f"{_start(path)}{os.getpid()}-{secrets.token_hex(4)}")


def replace_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside its final name and rename it: readers see the old content or the new, never a part."""
    temporary = temporary_path(path)
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove_left(path: Path) -> None:
    """Remove what killed processes of this host wrote to become `path`, where that is allowed."""
    start = _start(path)
    for name in os.listdir(path.parent):
        rest = _REST.fullmatch(name.removeprefix(start)) if name.startswith(start) else None
        if rest is not None and _is_gone(int(rest[1])):
            with suppress(OSError):
                path.with_name(name).unlink()


def _start(path: Path) -> str:
    name = os.fsencode(path.name)[:NAME_BYTES].decode(errors="ignore")
    return f"{name}.tmp-{os.uname().nodename}-"


def _is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # another user's; not a process's number
        return False
    return False
