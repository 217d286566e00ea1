"""Arrays kept beside the data, written whole or not at all.

A cache file's name holds everything that its content depends on, so a change of settings or data finds no file and builds a new one. A
file that cannot be read is built again; where the folder cannot be written, the array stays in memory.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

log = logging.getLogger(__name__)


def replace_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside its final name and rename it: readers see the old content or the new, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cached_arrays(
    stem: Path, names: tuple[str, ...], build: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays `<stem>_<name>.npy`, memory-mapped; built and written where one is missing or damaged."""
    paths = {name: stem.with_name(f"{stem.name}_{name}.npy") for name in names}
    found = {name: _read(path) for name, path in paths.items()}
    if all(array is not None for array in found.values()):
        return {name: array for name, array in found.items() if array is not None}
    arrays = build()
    try:
        for name, path in paths.items():
            content = arrays[name]
            replace_file(path, lambda file, content=content: np.save(file, content, allow_pickle=False))  # type: ignore[misc]
    except OSError as error:
        log.warning(
            "%s: the index cannot be kept there (%s); it stays in memory and is built at every start",
            stem.parent,
            error.strerror,
        )
        return dict(arrays)
    reread = {name: _read(path) for name, path in paths.items()}
    return {name: arrays[name] if array is None else array for name, array in reread.items()}


def _read(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s: damaged (%s); building it again", path, error)
        return None
