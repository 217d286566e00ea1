"""Ranges of documents of datasets, side by side as new datasets: what merging and splitting share.

    Spans ─ bytes copied inside the kernel ─▶ <prefix>.bin ─┐
          └ index streamed ─────────────────▶ <prefix>.idx ─┼─ all under temporary names ─ publish ─▶ final names
    manifests of the sources, or the bytes ─▶ <prefix>.json ┘

Documents keep their sequences, tokens and order: the bytes are those that one pass over the same documents would write. Memory does not
grow with the data. Of several outputs none has its name before all are complete; the .idx is renamed last.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from megamesh.data.store.byte_copy import copy_range
from megamesh.data.store.format import bin_path, check_prefix, idx_path
from megamesh.data.store.manifest import (
    Manifest,
    Output,
    Part,
    digest_of_file,
    find_manifest,
    is_manifest,
    manifest_path,
    read_manifest,
    write_manifest,
)
from megamesh.data.store.stored import Sections, Stored
from megamesh.data.store.temporary import remove_left, temporary_path
from megamesh.data.store.token_range import keep_range
from megamesh.data.store.writer import write_index
from megamesh.errors import DataError

COPY_BYTES = 1 << 26
READ_BYTES = 1 << 23
PART_BYTES = 1 << 28


@dataclass(frozen=True)
class Span:
    """Documents [first, last) of a dataset; `known`: what a manifest says of the dataset, where the span is all of it."""

    stored: Stored
    first: int
    last: int
    known: Output | None = None


@dataclass
class Assembly:
    """A new dataset, of tokens or labels. `spans` can be gone through several times; `describe` makes the finished output's manifest."""

    prefix: str
    dtype: np.dtype
    spans: Iterable[Span]
    describe: Callable[[Output], Manifest]
    labels: bool
    output: Output | None = field(default=None, init=False)
    was_read: bool = field(default=False, init=False)  # all tokens passed by, so that their bounds are certain

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        return bin_path(self.prefix), manifest_path(self.prefix), idx_path(self.prefix)

    @cached_property
    def temporary(self) -> tuple[Path, Path, Path]:
        tokens, manifest, index = map(temporary_path, self.paths)
        return tokens, manifest, index


def assemble(assemblies: Sequence[Assembly], on_bytes: Callable[[int], object]) -> None:
    """Write datasets; `on_bytes` hears of bytes copied and, where no manifest knows their digests, read. Raises DataError."""
    try:
        for assembly in assemblies:
            with _disk_errors(assembly.prefix):
                Path(assembly.prefix).parent.mkdir(parents=True, exist_ok=True)
                for path in assembly.paths:
                    remove_left(path)
                _stage(assembly, on_bytes)
        for (
            assembly
        ) in assemblies:  # an old index must never stand beside new tokens, nor an old dataset beside new ones
            with _disk_errors(assembly.prefix):
                idx_path(assembly.prefix).unlink(missing_ok=True)
        for assembly in assemblies:
            with _disk_errors(assembly.prefix):
                _publish(assembly)
    finally:
        for assembly in assemblies:
            for path in assembly.temporary:
                with suppress(OSError):  # a read-only folder refuses even where there is nothing to remove
                    path.unlink()


def check_outputs(prefixes: Sequence[str], sources: Sequence[Stored], overwrite: bool) -> None:
    """Raise DataError where an output exists and may not be overwritten, is an input, or its manifest's place is taken."""
    inputs = {path.resolve() for stored in sources for path in (bin_path(stored.prefix), idx_path(stored.prefix))}
    for prefix in prefixes:
        check_prefix(prefix)
        for path in (bin_path(prefix), idx_path(prefix)):
            if path.resolve() in inputs:
                raise DataError(f"{path}: is an input; choose another --output-prefix")
        manifest = manifest_path(prefix)
        for path in (bin_path(prefix), idx_path(prefix), manifest):
            if path.exists() and not overwrite:
                raise DataError(f"{path}: exists; choose another --output-prefix or add --overwrite")
        if manifest.exists() and not (
            is_manifest(manifest) and set(read_manifest(manifest).outputs) == {Path(prefix).name}
        ):
            raise DataError(
                f"{manifest}: is needed for the manifest, but is of something else; choose another --output-prefix"
            )


def known_output(stored: Stored) -> tuple[Manifest, Output] | None:
    """What a manifest says of a dataset. Raises DataError where the files are not those that it describes."""
    found = find_manifest(stored.prefix)
    if found is None:
        return None
    path, manifest = found
    output = manifest.outputs[Path(stored.prefix).name]
    same = output.idx_digest == digest_of_file(idx_path(stored.prefix))
    if not same or output.bin_bytes != bin_path(stored.prefix).stat().st_size:
        raise DataError(
            f"{stored.prefix}: not the files that {path} describes; see what is damaged with tools/inspect_dataset.py --verify; if they "
            "were replaced on purpose, remove the manifest"
        )
    return manifest, output


def _stage(assembly: Assembly, on_bytes: Callable[[int], object]) -> None:
    """The three files under temporary names, on disk."""
    tokens, manifest, index = assembly.temporary
    described = _copy_tokens(assembly, tokens, on_bytes)
    assembly.was_read = described.was_read
    spans = _Counted(assembly.spans)
    write_index(
        index,
        assembly.dtype,
        _Lengths(assembly.spans),
        spans.sequences,
        ends=_ends(assembly.spans),
        num_documents=spans.documents,
    )
    assembly.output = Output(
        documents=spans.documents,
        sequences=spans.sequences,
        tokens=described.num_bytes // assembly.dtype.itemsize,
        dtype=assembly.dtype.name,
        bin_bytes=described.num_bytes,
        idx_digest=digest_of_file(index),
        smallest_id=described.smallest or 0,
        largest_id=described.largest or 0,
        parts=described.parts,
        labels=assembly.labels,
    )
    write_manifest(manifest, assembly.describe(assembly.output))


def _publish(assembly: Assembly) -> None:
    for temporary, path in zip(assembly.temporary, assembly.paths, strict=True):
        os.replace(temporary, path)
    output = assembly.output
    if output is not None and output.tokens and assembly.was_read:  # spares training the scan of the ids
        keep_range(bin_path(assembly.prefix), assembly.dtype, output.smallest_id, output.largest_id)


class _Described:
    """Parts of a .bin so far, with the smallest and largest id in them."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.num_bytes = 0
        self.smallest: int | None = None
        self.largest: int | None = None
        self.was_read = True

    def add(self, parts: Sequence[Part], smallest: int, largest: int) -> None:
        if not parts:
            return
        self.parts += parts
        self.num_bytes += sum(part.num_bytes for part in parts)
        self.smallest = smallest if self.smallest is None else min(self.smallest, smallest)
        self.largest = largest if self.largest is None else max(self.largest, largest)

    def read(self, file: int, end: int, dtype: np.dtype, on_bytes: Callable[[int], object]) -> None:
        """Describe what lies between the last part and `end`."""
        while self.num_bytes < end:
            stop = min(self.num_bytes + PART_BYTES, end)
            digest, bounds, place = hashlib.sha256(), [], self.num_bytes
            while place < stop:
                content = os.pread(file, min(READ_BYTES, stop - place), place)
                ids = np.frombuffer(content, dtype)
                digest.update(content)
                bounds += [int(ids.min()), int(ids.max())]
                place += len(content)
                on_bytes(len(content))
            part = Part(num_bytes=stop - self.num_bytes, digest=digest.hexdigest())
            self.add([part], min(bounds), max(bounds))


def _copy_tokens(assembly: Assembly, path: Path, on_bytes: Callable[[int], object]) -> _Described:
    described, end, sections = _Described(), 0, None
    with path.open("wb+") as target, ExitStack() as stack:
        file = target.fileno()
        for span in assembly.spans:
            if sections is None or sections.stored is not span.stored:
                stack.close()
                sections = Sections(span.stored)
                source = stack.enter_context(bin_path(span.stored.prefix).open("rb"))
            if span.known is not None and span.known.parts and span.stored.dtype == assembly.dtype:
                described.read(file, end, assembly.dtype, on_bytes)
                described.add(span.known.parts, span.known.smallest_id, span.known.largest_id)
                described.was_read = False
            for start, num_bytes in sections.byte_runs(span.first, span.last):
                for copied in _copy(source.fileno(), span.stored.dtype, file, assembly.dtype, start, end, num_bytes):
                    end += copied
                    on_bytes(copied)
        described.read(file, end, assembly.dtype, on_bytes)
        os.fsync(file)
    return described


def _copy(
    source: int, dtype: np.dtype, target: int, wanted: np.dtype, start: int, offset: int, num_bytes: int
) -> Iterator[int]:
    """Copy in steps, yielding the bytes written in each; ids change their number format where another one is wanted."""
    for begin in range(0, num_bytes, COPY_BYTES):
        size = min(COPY_BYTES, num_bytes - begin)
        if dtype == wanted:
            copy_range(source, target, start + begin, offset, size)
            written = size
        else:
            written = _widen(source, dtype, target, wanted, start + begin, offset, size)
        offset += written
        yield written


def _widen(source: int, dtype: np.dtype, target: int, wanted: np.dtype, start: int, offset: int, num_bytes: int) -> int:
    written = 0
    for begin in range(0, num_bytes, READ_BYTES):
        size = min(READ_BYTES, num_bytes - begin)
        content = os.pread(source, size, start + begin)
        if len(content) < size:
            raise EOFError(f"the source ends {size - len(content)} bytes early")
        wide = memoryview(np.frombuffer(content, dtype).astype(wanted).tobytes())
        done = 0
        while done < len(wide):
            done += os.pwrite(target, wide[done:], offset + written + done)
        written += len(wide)
    return written


class _Counted:
    """Numbers of documents and sequences in spans."""

    def __init__(self, spans: Iterable[Span]):
        self.documents, self.sequences = 0, 0
        for span, sections in _opened(spans):
            self.documents += span.last - span.first
            self.sequences += sections.boundary(span.last) - sections.boundary(span.first)


class _Lengths:
    """The lengths of all sequences, in pieces; can be gone through again."""

    def __init__(self, spans: Iterable[Span]):
        self._spans = spans

    def __iter__(self) -> Iterator[np.ndarray]:
        for span, sections in _opened(self._spans):
            yield from sections.lengths(span.first, span.last)


def _ends(spans: Iterable[Span]) -> Iterator[np.ndarray]:
    done = 0
    for span, sections in _opened(spans):
        begin = sections.boundary(span.first)
        for ends in sections.ends(span.first, span.last):
            yield ends - begin + done
        done += sections.boundary(span.last) - begin


def _opened(spans: Iterable[Span]) -> Iterator[tuple[Span, Sections]]:
    """Each span with the index of its dataset, mapped once for all neighbouring spans of the dataset."""
    sections = None
    for span in spans:
        if sections is None or sections.stored is not span.stored:
            sections = Sections(span.stored)
        yield span, sections


@contextmanager
def _disk_errors(prefix: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or prefix}: {error.strerror or error}; the outputs are not complete. Free space there or make it "
            "writable, or choose another --output-prefix"
        ) from error
    except EOFError as error:
        raise DataError(f"{prefix}: an input changed while it was read ({error}); run it again") from error
