"""A folder that appears under its name whole, on the disk, or not at all.

.NAME.partial-HOST-PID/NAME   being written   ──▶ every file on the disk ──rename──▶ NAME
          └── an error: removed; a kill: removed by the next one to write NAME on HOST ──┘
"""

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megamesh.checkpoint.folder import sync_folder
from megamesh.errors import CheckpointError

log = logging.getLogger(__name__)


def refuse_existing(output: Path) -> None:
    """CheckpointError where something stands under the name of what is to be written."""
    if output.exists() or output.is_symlink():
        raise CheckpointError(f"--output={output} exists; name a folder that does not, or remove it first")


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A folder to write, which becomes `output` at the end of the block, and goes where the block raises. OSError as from the disk."""
    prefix = f".{output.name}.partial-{socket.gethostname()}-"
    _remove_stale(output.parent, prefix)
    # A folder of the final name inside another: transformers caches remote code under the last part of the path.
    outside = output.parent / f"{prefix}{os.getpid()}"
    inside = outside / output.name
    try:
        inside.mkdir(parents=True)
        yield inside
        _sync(inside)
        refuse_existing(output)
        inside.rename(output)
        sync_folder(output.parent)
    finally:
        shutil.rmtree(outside, ignore_errors=True)


def _remove_stale(folder: Path, prefix: str) -> None:
    """Remove what exports and imports left whose processes run no more on this host."""
    for path in folder.iterdir() if folder.is_dir() else ():
        pid = path.name.removeprefix(prefix)
        if path.name.startswith(prefix) and pid.isdecimal() and not _runs(int(pid)):
            log.warning("removing %s, left by a conversion that was interrupted", path)
            shutil.rmtree(path, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_folder(folder)
