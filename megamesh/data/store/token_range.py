"""The smallest and largest token id of a .bin file, scanned once.

The result is kept in `<prefix>.token_range.json` with the file's size, modification time (ns) and dtype, and is believed while these are
unchanged: a file that is replaced by another of the same size *and* the same modification time keeps the old answer. In a folder
for caches (data_cache_path) the name also holds a digest of the file's place. Where the folder cannot be written, the file is scanned at
each start. A dtype whose every value lies in the vocabulary needs no scan.
"""

import hashlib
import json
import logging
import time
from pathlib import Path

import numpy as np

from megamesh.data.store.temporary import replace_file

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 26
ENDING = ".token_range.json"


def largest_and_smallest_id(
    path: Path, dtype: np.dtype, vocab_size: int, cache_folder: Path | None = None
) -> tuple[int, int]:
    """(smallest, largest) id in a .bin file; (0, 0) where it is empty, the dtype's own bounds where these lie in the vocabulary."""
    bounds = np.iinfo(dtype)
    if bounds.min >= 0 and bounds.max < vocab_size:
        return int(bounds.min), int(bounds.max)
    for folder in {None, cache_folder}:
        known = _read(_cache(path, folder), _identity(path, dtype))
        if known is not None:
            return known
    smallest, largest = scan(path, dtype)
    keep_range(path, dtype, smallest, largest, cache_folder)
    return smallest, largest


def keep_range(path: Path, dtype: np.dtype, smallest: int, largest: int, cache_folder: Path | None = None) -> None:
    """Note what a .bin file's ids are, so that nobody scans it."""
    content = json.dumps({**_identity(path, dtype), "smallest": smallest, "largest": largest}) + "\n"
    cache = _cache(path, cache_folder)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        replace_file(cache, lambda file: file.write(content.encode()))
    except OSError as error:
        log.warning("%s: cannot be written (%s); token ids will be checked at every start", cache, error.strerror)


def _cache(path: Path, folder: Path | None) -> Path:
    if folder is None:
        return path.with_name(f"{path.stem}{ENDING}")
    place = hashlib.blake2b(str(path.absolute()).encode(), digest_size=8).hexdigest()
    return folder / f"{path.stem}_{place}{ENDING}"


def _identity(path: Path, dtype: np.dtype) -> dict[str, int | str]:
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "dtype": dtype.str}


def scan(path: Path, dtype: np.dtype) -> tuple[int, int]:
    """(smallest, largest) id, read in chunks."""
    num_items = path.stat().st_size // dtype.itemsize
    if num_items == 0:
        return 0, 0
    started = time.monotonic()
    tokens = np.memmap(path, mode="r", dtype=dtype, shape=(num_items,))
    step = CHUNK_BYTES // dtype.itemsize
    smallest, largest = int(tokens[0]), int(tokens[0])
    for start in range(0, num_items, step):
        chunk = tokens[start : start + step]
        smallest, largest = min(smallest, int(chunk.min())), max(largest, int(chunk.max()))
    log.info("%s: token ids %d … %d (checked in %.1f s)", path, smallest, largest, time.monotonic() - started)
    return smallest, largest


def _read(cache: Path, identity: dict[str, int | str]) -> tuple[int, int] | None:
    try:
        content = json.loads(cache.read_text())
        if {key: content[key] for key in identity} == identity:
            return int(content["smallest"]), int(content["largest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
