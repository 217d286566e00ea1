"""The bytes of many files at once, without copying large ones.

A run may read from thousands of datasets, three to five files each, and every mapping holds a descriptor. So small files are read, and the
process's limit on open files is raised to what it may be (`allow_many_files`). Where that is not enough, one error says so.
"""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from megamesh.errors import DataError

SMALL_BYTES = 1 << 16
MOST_FILES = 1 << 20  # where there is no limit; Linux refuses more
_TOO_MANY = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def map_file(path: Path) -> np.ndarray:
    """A file's bytes, read-only [bytes] uint8: memory-mapped, or read where it is small."""
    if path.stat().st_size > SMALL_BYTES:
        return np.memmap(path, mode="r", dtype=np.uint8)
    content = np.fromfile(path, np.uint8)
    content.flags.writeable = False
    return content


@contextmanager
def too_many_named(path: str | Path) -> Iterator[None]:
    """DataError where the system gives no more descriptors or mappings."""
    try:
        yield
    except OSError as error:
        if error.errno not in _TOO_MANY:
            raise
        raise DataError(
            f"{path}: cannot be opened beside so many others ({error.strerror}); raise the limits (ulimit -n, here "
            f"{resource.getrlimit(resource.RLIMIT_NOFILE)[1]}; sysctl vm.max_map_count), or merge data sets (tools/merge_datasets.py)"
        ) from error


def allow_many_files() -> None:
    """Raise this process's limit on open files to the most that it may set."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
