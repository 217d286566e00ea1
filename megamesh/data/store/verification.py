"""Is a dataset what its manifest says, byte for byte?

    .idx ─ digest ─┐
    .bin ─ parts ──┼─ compared with the manifest ─▶ Problems, each with the bytes and documents that are damaged
    inputs ────────┘

Everything is read once, in order. A part that is as it was is so in every byte; in one that is not, any byte may be wrong.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megamesh.data.store.format import bin_path, idx_path
from megamesh.data.store.manifest import (
    CHUNK_BYTES,
    Input,
    Manifest,
    Output,
    combine,
    digest,
    find_manifest,
    holds_labels,
)
from megamesh.data.store.stored import Sections, Stored, open_stored
from megamesh.errors import DataError

READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Problem:
    """`bytes`: a range [start, end) of the file; `documents`: the first and the last of those that lie in it, where that is known."""

    file: str
    message: str
    bytes: tuple[int, int] | None = None
    documents: tuple[int, int] | None = None

    def __str__(self) -> str:
        place = f" bytes {self.bytes[0]} to {self.bytes[1]}" if self.bytes is not None else ""
        place += f" (documents {self.documents[0]} to {self.documents[1]})" if self.documents is not None else ""
        return f"{self.file}{place}: {self.message}"


def verify(
    prefix: str | Path, *, inputs: bool = False, on_bytes: Callable[[int, int], Any] = lambda done, total: None
) -> list[Problem]:
    """What of `<prefix>.bin/.idx`, and of the files that it was made from, is not as the manifest says.

    A dataset without a manifest, or with a damaged one, is a problem too. `on_bytes` hears of bytes read and how many there are in all.
    Raises DataError where the manifest lists none of the inputs.
    """
    try:
        found = find_manifest(prefix)
    except DataError as error:
        return [Problem(str(prefix), str(error))]
    if found is None:
        return [
            Problem(
                str(prefix),
                "no manifest to verify it against; preprocess it again, or keep what there is: merging it alone "
                "(tools/merge_datasets.py) writes a copy with a manifest",
            )
        ]
    path, manifest = found
    sources = _inputs(path, manifest) if inputs else []
    files = [bin_path(prefix), idx_path(prefix), *(Path(one.path) for one in sources)]
    total = sum(file.stat().st_size for file in files if file.is_file())

    def on_read(num_bytes: int) -> None:
        on_bytes(num_bytes, total)

    problems = _verify_dataset(prefix, manifest.outputs[Path(prefix).name], on_read)
    return problems + [problem for one in sources if (problem := _input_problem(one, on_read)) is not None]


def id_problem(stored: Stored, vocab_size: int) -> Problem | None:
    """The first token id outside a vocabulary, if there is one. Raises DataError where the manifest is damaged.

    Labels are below 0 where nothing counts.
    """
    path, start = bin_path(stored.prefix), 0
    smallest = np.iinfo(stored.dtype).min if holds_labels(stored.prefix) else 0
    with path.open("rb") as file:
        while content := file.read(READ_BYTES):
            ids = np.frombuffer(content, stored.dtype, len(content) // stored.dtype.itemsize)
            outside = np.flatnonzero((ids < smallest) | (ids >= vocab_size))
            if len(outside):
                begin = start + int(outside[0]) * stored.dtype.itemsize
                place = (begin, begin + stored.dtype.itemsize)
                message = f"token id {ids[outside[0]]} is outside the vocabulary of {vocab_size}"
                return Problem(str(path), message, place, _documents_in(stored, *place))
            start += len(content)
    return None


def _inputs(path: Path, manifest: Manifest) -> list[Input]:
    if not manifest.inputs:
        made_from = f": it was made from {', '.join(manifest.made_from[:5])}; verify the inputs of these"
        raise DataError(f"{path}: lists no inputs{made_from if manifest.made_from else ''}")
    return manifest.inputs


def _verify_dataset(prefix: str | Path, output: Output, on_read: Callable[[int], None]) -> list[Problem]:
    tokens, index = bin_path(prefix), idx_path(prefix)
    problems: list[Problem] = []
    num_bytes = tokens.stat().st_size if tokens.is_file() else None
    stored = None
    if not index.is_file():
        problems.append(Problem(str(index), "is missing"))
    elif _file_digest(index, on_read) != output.idx_digest:
        problems.append(Problem(str(index), "is not the file that was written"))
    elif num_bytes == output.bin_bytes:
        try:
            stored = open_stored(prefix)
        except DataError as error:
            problems.append(Problem(str(index), str(error)))
        else:
            problems += _contradictions(stored, output)
    if num_bytes is None:
        return [*problems, Problem(str(tokens), "is missing")]
    if num_bytes != output.bin_bytes:
        problems.append(Problem(str(tokens), f"has {num_bytes} bytes instead of {output.bin_bytes}"))
    return problems + _damaged_parts(tokens, output, stored, on_read)


def _contradictions(stored: Stored, output: Output) -> list[Problem]:
    """Where the manifest is not about this dataset, or was changed."""
    pairs = {
        "documents": (output.documents, stored.num_documents),
        "sequences": (output.sequences, stored.num_sequences),
        "tokens": (output.tokens, stored.num_tokens),
        "dtype": (output.dtype, stored.dtype.name),
        "bytes in parts": (sum(part.num_bytes for part in output.parts), output.bin_bytes),
    }
    return [
        Problem(stored.prefix, f"the manifest says {said} {what}, the files {found}")
        for what, (said, found) in pairs.items()
        if said != found
    ]


def _damaged_parts(
    tokens: Path, output: Output, stored: Stored | None, on_read: Callable[[int], None]
) -> list[Problem]:
    problems, start = [], 0
    with tokens.open("rb") as file:
        for part in output.parts:
            found, left = hashlib.sha256(), part.num_bytes
            while left and (content := file.read(min(READ_BYTES, left))):
                found.update(content)
                left -= len(content)
                on_read(len(content))
            place = (start, start + part.num_bytes)
            if left:
                problems.append(Problem(str(tokens), "is missing, from some byte of these on", place))
            elif found.hexdigest() != part.digest:
                documents = None if stored is None else _documents_in(stored, *place)
                problems.append(Problem(str(tokens), "is not what was written", place, documents))
            start = place[1]
    return problems


def _documents_in(stored: Stored, start: int, end: int) -> tuple[int, int]:
    """The first and the last document with tokens in a range of bytes."""
    sections = Sections(stored)
    sequences = [max(0, int(np.searchsorted(sections.pointers, byte, "right")) - 1) for byte in (start, end - 1)]
    return sections.document_of(sequences[0]), sections.document_of(sequences[1])


def _input_problem(one: Input, on_read: Callable[[int], None]) -> Problem | None:
    path = Path(one.path)
    if not path.is_file():
        return Problem(one.path, "the input is missing")
    num_bytes = path.stat().st_size
    if num_bytes != one.bytes:
        return Problem(one.path, f"the input has {num_bytes} bytes instead of {one.bytes}")
    same = _file_digest(path, on_read) == one.digest
    return None if same else Problem(one.path, "the input is not what was read")


def _file_digest(path: Path, on_read: Callable[[int], None]) -> str:
    """manifest.digest_of_file, telling of its progress."""
    chunks = []
    with path.open("rb") as file:
        while content := file.read(CHUNK_BYTES):
            chunks.append(digest(content))
            on_read(len(content))
    return combine(chunks)
