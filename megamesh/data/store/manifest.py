"""What a dataset was made of: `<prefix>.json`, written beside it.

    preprocess, merge, split ─▶ Manifest ─▶ inspected, verified, compared with the tokenizer of a run

Digests are SHA-256 in hex. A file's digest is that of the digests (binary, in order) of its 16 MiB chunks, so that several processes can
share the reading; a .bin has one per part, so that a merge knows its own without reading.
"""

import hashlib
import importlib.metadata
import json
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import megamesh
from megamesh.data.store.temporary import replace_file
from megamesh.errors import DataError

VERSION = 1
CHUNK_BYTES = 1 << 24
PACKAGES = (
    "megamesh",
    "numpy",
    "tokenizers",
    "gigatoken",
    "sentencepiece",
    "tiktoken",
    "orjson",
    "pyarrow",
    "zstandard",
    "ftfy",
)
_BEGINNING = re.compile(rb'.{0,8}"manifest": ?-?\d+,', re.DOTALL)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Model):
    """Consecutive bytes of a .bin and their digest."""

    num_bytes: int = Field(ge=0)
    digest: str


class Output(_Model):
    """A .bin/.idx pair; `idx_digest` is the .idx file's. `labels`: it holds what counts in the loss, beside the tokens of another."""

    documents: int
    sequences: int
    tokens: int
    dtype: str
    bin_bytes: int
    idx_digest: str
    smallest_id: int
    largest_id: int
    parts: list[Part]
    labels: bool = False


class Tokenizer(_Model):
    """`digest` covers the type, the files' bytes and the traits; `files`: name → digest; `traits`: what else decides the ids."""

    type: str
    vocab_size: int
    digest: str
    files: dict[str, str]
    traits: dict[str, Any]


class Input(_Model):
    """A file that was read."""

    path: str
    bytes: int
    digest: str


class Counts(_Model):
    """records = documents + empty + skipped."""

    records: int
    documents: int
    empty: int
    skipped: dict[str, int]


class Counted(Protocol):
    """What has such counts."""

    @property
    def records(self) -> int: ...
    @property
    def documents(self) -> int: ...
    @property
    def empty(self) -> int: ...
    @property
    def skipped(self) -> dict[str, int]: ...


def sum_counts(parts: Sequence[Counted]) -> Counts:
    """Of all parts together."""
    skipped = Counter[str]()
    for part in parts:
        skipped.update(part.skipped)
    return Counts(
        records=sum(part.records for part in parts),
        documents=sum(part.documents for part in parts),
        empty=sum(part.empty for part in parts),
        skipped=dict(skipped),
    )


class Manifest(_Model):
    """`outputs` by the pair's name without folder and ending; `made_from`: absolute prefixes of what a merge or a part came from."""

    manifest: int = VERSION
    outputs: dict[str, Output]
    tokenizer: Tokenizer | None = None
    inputs: list[Input] = Field(default_factory=list)
    made_from: list[str] = Field(default_factory=list)
    options: dict[str, Any] = Field(default_factory=dict)
    counts: Counts | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def name_as_text(name: str | Path) -> str:
    """A file's name for what must be UTF-8: those of its bytes that are not become \\xff."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of_range(path: str | Path, start: int, end: int) -> list[str]:
    """Digests of the 16 MiB chunks of bytes [start, end) of a file."""
    found = []
    with Path(path).open("rb") as file:
        file.seek(start)
        while start < end:
            content = file.read(min(CHUNK_BYTES, end - start))
            if not content:
                raise DataError(f"{path}: ends at byte {start} instead of {end}; was it truncated meanwhile?")
            found.append(digest(content))
            start += len(content)
    return found


def combine(chunk_digests: Iterable[str]) -> str:
    """A file's digest from those of its chunks."""
    return digest(b"".join(map(bytes.fromhex, chunk_digests)))


def digest_of_file(path: str | Path) -> str:
    return combine(digest_of_range(path, 0, Path(path).stat().st_size))


def tokenizer_facts(kind: str, vocab_size: int, files: Sequence[str | Path], traits: Mapping[str, Any]) -> Tokenizer:
    """What a manifest says of a tokenizer; `files`: its vocab_file and merge_file, where it has them; `traits`: JSON values."""
    digests = [digest_of_file(path) for path in files]
    whole = digest(json.dumps([kind, digests, dict(traits)], sort_keys=True).encode())
    return Tokenizer(
        type=kind, vocab_size=vocab_size, digest=whole, traits=dict(traits),
        files={name_as_text(Path(path).name): found for path, found in zip(files, digests, strict=True)},
    )  # fmt: skip


def manifest_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.json")


def write_manifest(path: Path, manifest: Manifest) -> None:
    content = manifest.model_dump_json(indent=2, exclude_defaults=False).encode() + b"\n"
    replace_file(path, lambda file: file.write(content))


def read_manifest(path: Path) -> Manifest:
    """Raises DataError where it is missing, damaged or of another version."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a readable manifest ({error}); remove it to do without, or preprocess the data again"
        ) from error
    if not isinstance(content, Mapping) or "manifest" not in content:
        raise DataError(f"{path}: not a manifest of a dataset")
    if content["manifest"] != VERSION:
        raise DataError(f"{path}: manifest version {content['manifest']!r}; this version of MegaMesh knows {VERSION}")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise DataError(f"{path}: {_misfit(content, error)}; or remove it, to do without a manifest") from error


def _misfit(content: Mapping[str, Any], error: ValidationError) -> str:
    """What of a manifest this version does not know, and which version wrote it."""
    versions = content.get("versions")
    writer = versions.get("megamesh", "") if isinstance(versions, Mapping) else ""
    unknown = [_dotted(problem["loc"]) for problem in error.errors() if problem["type"] == "extra_forbidden"]
    if unknown:
        return (
            f"holds {', '.join(unknown)}, which MegaMesh {megamesh.__version__} does not know; it was written by "
            f"{f'MegaMesh {writer}' if writer else 'another program or version'}: update MegaMesh"
        )
    first = error.errors()[0]
    return f"{_dotted(first['loc'])}: {first['msg']}; it is damaged, or written by another program: preprocess the data again"


def _dotted(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place))


def is_manifest(path: Path) -> bool:
    """Whether a file is a dataset's manifest, of any version, whole or damaged: seen from its beginning, as it may be a corpus."""
    try:
        with path.open("rb") as file:
            return _BEGINNING.match(file.read(64)) is not None
    except OSError:
        return False


def find_manifest(prefix: str | Path) -> tuple[Path, Manifest] | None:
    """The manifest that lists a dataset: `<prefix>.json`, or for out_text_document that of its run, `out.json`."""
    prefix = Path(prefix)
    name = prefix.name
    stems = [name]
    if name.endswith("_document"):
        stems += [name[:i] for i in range(len(name) - 1, 0, -1) if name[i] == "_"]
    for stem in stems:
        path = prefix.with_name(f"{stem}.json")
        if is_manifest(path):
            manifest = read_manifest(path)
            if name in manifest.outputs:
                return path, manifest
    return None


def holds_labels(prefix: str | Path) -> bool:
    """Whether a dataset's manifest says so; False where it has none."""
    found = find_manifest(prefix)
    return found is not None and found[1].outputs[Path(prefix).name].labels


def tokenizer_disagreement(prefix: str | Path, ours: Tokenizer) -> str | None:
    """What to warn of where a dataset's manifest names another tokenizer than a run's; None where all is well or unknown."""
    try:
        found = find_manifest(prefix)
    except DataError as error:
        return f"{error}; whether {prefix} was tokenized with this run's tokenizer is not known"
    if found is None or found[1].tokenizer is None:
        return None
    path, written = found[0], found[1].tokenizer
    if ours.digest == written.digest:
        return None
    return (
        f"{prefix}: tokenized with {_named(written)}, but this run has {_named(ours)}; token ids may mean other text "
        f"({path} says so): check tokenizer_type and vocab_file"
    )


def _named(tokenizer: Tokenizer) -> str:
    files = ", ".join(f"{name} {found[:12]}" for name, found in tokenizer.files.items())
    traits = ", ".join(f"{name} {value}" for name, value in tokenizer.traits.items())
    return f"{tokenizer.type} ({files or 'no file'}; {traits})"


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that had a part in the result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
