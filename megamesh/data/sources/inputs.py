"""Values of an option → input files, in a fixed order.

    a.jsonl,b.parquet   data/*.jsonl.zst   data/   saved_dataset/ ──▶ [InputFile(path, kind, compression, num_bytes), …]

The order is the order given; what a glob or a folder holds is sorted by path, and a folder of Hugging Face datasets keeps the order in its
state.json. A file found twice, also through a link, is an error: its text would count twice. Files of other kinds are left out of folders
and globs with one warning, and are an error where they are named; what MegaMesh itself writes (data/own_files.py) is left out of them too,
and is read where it is named. Folders *.unfinished are not searched. Packages that a format needs are asked for here, before any work.
"""

import glob
import importlib.util
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megamesh.data.store.own_files import is_own
from megamesh.data.store.stored import UNFINISHED
from megamesh.errors import ConfigError, DataError

log = logging.getLogger(__name__)

Kind = Literal["jsonl", "text", "parquet", "arrow", "tar", "zip", "dat"]
Compression = Literal["none", "gzip", "zstd", "xz"]

SUPPORTED = (
    ".jsonl .ndjson .json (one object per line), .txt, .tar, each also with .gz .zst .xz; .tgz, .zip, .dat.zst, "
    ".parquet .pq, .arrow, and folders saved by Hugging Face datasets"
)
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".xz": "xz"}
_STREAMS: dict[str, Kind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".txt": "text", ".tar": "tar"}
_WHOLE: dict[str, Kind] = {".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".zip": "zip"}
_HIDDEN = (".", "_SUCCESS")
_NAMED = 3


@dataclass(frozen=True)
class InputFile:
    """A file with text: what it holds, how it is compressed, and its size on disk."""

    path: Path
    kind: Kind
    compression: Compression
    num_bytes: int


@dataclass
class _Search:
    """Files found so far, by identity, and those left out."""

    option: str
    found: list[InputFile] = field(default_factory=list)
    names: dict[tuple[int, int], Path] = field(default_factory=dict)
    left_out: list[Path] = field(default_factory=list)

    def add(self, path: Path, *, named: bool) -> None:
        kind = file_kind(path.name)
        if kind is None or (not named and (path.name.startswith(_HIDDEN) or is_own(path))):
            if named:
                suffix = "".join(path.suffixes[-2:]) or "a file without a suffix"
                raise DataError(f"{path}: cannot read {suffix}; {self.option} takes {SUPPORTED}")
            self.left_out.append(path)
            return
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); mend or remove the link") from error
        identity = (status.st_dev, status.st_ino)
        if identity in self.names:
            first = self.names[identity]
            same = "is named twice" if first == path else f"is the same file as {first}"
            raise DataError(f"{path}: {same} in {self.option}, so its text would count twice; name it once")
        self.names[identity] = path
        self.found.append(InputFile(path, *kind, status.st_size))


def find_inputs(values: Sequence[str], option: str = "--input") -> list[InputFile]:
    """The files that an option's values name: paths, globs and folders, one or several separated by commas in a value.

    Raises DataError for a value that names nothing readable, ConfigError where a package is missing.
    """
    search = _Search(option)
    for name in (name for value in values for name in _names(value)):
        before = len(search.found)
        _add(search, name)
        if len(search.found) == before:
            raise DataError(f"{option}={name}: holds no file that can be read; supported: {SUPPORTED}")
    if not search.found:
        raise DataError(f"{option} names no file")
    if search.left_out:
        first = ", ".join(map(str, search.left_out[:_NAMED]))
        more = ", …" if len(search.left_out) > _NAMED else ""
        log.warning("%s: left out %d files of other kinds: %s%s", option, len(search.left_out), first, more)
    for file in search.found:
        _check_packages(file)
    return search.found


def file_kind(name: str) -> tuple[Kind, Compression] | None:
    """What a file of this name holds; None where its suffix is not known."""
    name = name.lower()
    if name.endswith(".tgz"):
        return "tar", "gzip"
    if name.endswith(".dat.zst"):
        return "dat", "zstd"
    stem, suffix = os.path.splitext(name)
    if suffix in _WHOLE:
        return _WHOLE[suffix], "none"
    compression: Compression = "none"
    if suffix in _COMPRESSIONS:
        compression = _COMPRESSIONS[suffix]
        suffix = os.path.splitext(stem)[1]
    return (_STREAMS[suffix], compression) if suffix in _STREAMS else None


def _names(value: str) -> list[str]:
    return [value] if os.path.exists(value) else [name for name in value.split(",") if name]


def _add(search: _Search, name: str) -> None:
    path = Path(name)
    if path.is_file():
        search.add(path, named=True)
    elif path.is_dir():
        _add_folder(search, path, ())
    elif path.exists():
        raise DataError(f"{search.option}={path}: is neither a file nor a folder; name one of these")
    elif glob.has_magic(name):
        matches = sorted(map(Path, glob.glob(name, recursive=True)))
        if not matches:
            raise DataError(f"{search.option}={name}: no file matches; name files, globs or folders")
        num_literal = [glob.has_magic(part) for part in path.parts].index(True)
        for match in matches:
            if any(part.endswith(UNFINISHED) for part in match.parts[num_literal:]):
                continue
            if match.is_file():
                search.add(match, named=False)
            elif "**" not in name:  # ** gives the files in a folder as well as the folder
                _add_folder(search, match, ())
    else:
        raise DataError(f"{search.option}={path}: does not exist; name files, globs or folders")


def _add_folder(search: _Search, folder: Path, above: tuple[tuple[int, int], ...]) -> None:
    try:
        status, entries = folder.stat(), sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise DataError(f"{folder}: a link to a folder above it; remove the link or name the files")
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(str(entry) for entry in entries if (entry / "state.json").is_file())
        raise DataError(f"{folder}: a saved DatasetDict; name one split's folder: {splits or 'it has none'}")
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        for path in _saved_dataset(folder):
            search.add(path, named=True)
        return
    for entry in entries:
        if entry.is_dir() and not entry.name.startswith(".") and not entry.name.endswith(UNFINISHED):
            _add_folder(search, entry, (*above, identity))
        elif entry.is_file() or entry.is_symlink():
            search.add(entry, named=False)


def _saved_dataset(folder: Path) -> Iterator[Path]:
    """The files of a folder that `Dataset.save_to_disk` wrote, in order."""
    state = folder / "state.json"
    try:
        content = json.loads(state.read_text())
        names = [entry["filename"] for entry in content["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{state}: not the state of a saved dataset ({error!r}); save it again with save_to_disk"
        ) from error
    if content.get("_indices_data_files"):
        raise DataError(f"{folder}: a selection of its rows (indices); save ds.flatten_indices() instead")
    for name in names:
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: does not exist, but {state} lists it; copy the whole folder again")
        yield folder / name


def _check_packages(file: InputFile) -> None:
    names = file.path.name.lower()
    if file.kind in ("parquet", "arrow"):
        require("pyarrow", file.path)
    elif file.compression == "zstd" or ".zst" in names:
        require("zstandard", file.path)


def require(package: str, name: object) -> None:
    """ConfigError where a package that a format needs is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{name}: needs the package {package}: pip install 'megamesh[data]'")
