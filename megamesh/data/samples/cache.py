"""Index arrays kept in one file, written whole or not at all.

    magic, length of the header | header: JSON {name, arrays: {name: [dtype, shape, offset]}, digest} | arrays, on multiples of 64 bytes

A cache file's name holds everything that its content depends on, so a change of settings or data finds no file and builds a new one. The
header holds that name and a digest of all arrays' bytes, which are compared whenever the file is opened: a file that is damaged, cut short
or renamed is built again. Where the folder cannot be written, the arrays stay in memory.
"""

import hashlib
import json
import logging
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from megamesh.data.store.mapped import map_file, too_many_named
from megamesh.data.store.temporary import remove_left, replace_file

log = logging.getLogger(__name__)

MAGIC = b"MMINDEX1"
PREAMBLE = struct.Struct("<8sQ")
ALIGNMENT = 64
ENDING = ".index"


def cached_arrays(stem: Path, build: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of `<stem>.index`, memory-mapped; built and written where the file is missing or damaged."""
    path = stem.with_name(stem.name + ENDING)
    found = _read(path)
    if found is not None:
        return found
    arrays = {name: np.ascontiguousarray(array) for name, array in build().items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left(path)
        replace_file(path, lambda file: _write(file, path.name, arrays))
    except OSError as error:
        log.warning(
            "%s: the index cannot be kept there (%s); it stays in memory and is built at every start; "
            "data_cache_path names another folder",
            path.parent,
            error.strerror,
        )
        return arrays
    return _read(path) or arrays


def _write(file: IO[bytes], name: str, arrays: Mapping[str, np.ndarray]) -> None:
    places: dict[str, list[Any]] = {}
    end = 0
    for key, array in arrays.items():
        places[key] = [array.dtype.str, list(array.shape), end]
        end += _aligned(array.nbytes)
    header = json.dumps({"name": name, "arrays": places, "digest": _digest(arrays)}).encode()
    header += b" " * (_aligned(PREAMBLE.size + len(header)) - PREAMBLE.size - len(header))
    file.write(PREAMBLE.pack(MAGIC, len(header)) + header)
    for array in arrays.values():
        file.write(array.data if array.nbytes else b"")
        file.write(bytes(_aligned(array.nbytes) - array.nbytes))


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file that is whole; None where it is not, with a warning, or where there is none."""
    if not os.path.isfile(path):  # False, too, for a name that is too long
        return None
    try:
        return _map(path)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, SyntaxError, struct.error) as error:
        log.warning("%s: damaged (%s); building it again", path, error)
        return None


def _map(path: Path) -> dict[str, np.ndarray]:
    with too_many_named(path):
        content = map_file(path)
    magic, header_bytes = PREAMBLE.unpack(content[: PREAMBLE.size].tobytes())
    if magic != MAGIC:
        raise ValueError("not an index")
    begin = PREAMBLE.size + header_bytes
    header = json.loads(content[PREAMBLE.size : begin].tobytes())
    if header["name"] != path.name:
        raise ValueError(f"it is the index {header['name']}")
    arrays = {
        key: np.frombuffer(content, dtype, int(np.prod(shape)), begin + offset).reshape(shape)
        for key, (dtype, shape, offset) in header["arrays"].items()
    }
    if _digest(arrays) != header["digest"]:
        raise ValueError("its content does not fit its digest")
    return arrays


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for key, array in arrays.items():
        digest.update(f"{key} {array.dtype.str} {array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data if array.nbytes else b"")
    return digest.hexdigest()


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
