"""A dataset as ranges of documents and bytes, for tools that copy parts of it.

    names given ─ find_prefixes ─▶ prefixes ─ open_stored ─▶ Stored ─ sections ─▶ lengths, byte runs, ends of documents, piece by piece

Opening goes through the whole index once and finds what is wrong with it. A Stored keeps no file open and no array, so there may be
thousands.
"""

import glob
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megamesh.data.store.format import HEADER, bin_path, idx_path
from megamesh.data.store.indexed import IndexedDataset
from megamesh.data.store.names import ENDINGS, existing_prefix, without_ending
from megamesh.errors import DataError

log = logging.getLogger(__name__)

PIECE = 1 << 20
UNFINISHED = ".unfinished"  # folders of preprocessing runs under way


@dataclass(frozen=True)
class Stored:
    """Facts of a dataset. `num_indexed`: length of its document index, 0 where every sequence is to count as a document."""

    prefix: str
    dtype: np.dtype
    num_sequences: int
    num_documents: int
    num_tokens: int
    num_indexed: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the tokens; the .bin has more where some belong to no sequence."""
        return self.num_tokens * self.dtype.itemsize


class Sections:
    """The index of a dataset, memory-mapped: for reading in pieces."""

    def __init__(self, stored: Stored):
        content = np.memmap(idx_path(stored.prefix), mode="r", dtype=np.uint8)
        count = stored.num_sequences
        self.stored = stored
        self.all_lengths = np.frombuffer(content, "<i4", count, HEADER.size)
        self.pointers = np.frombuffer(content, "<i8", count, HEADER.size + 4 * count)
        self._documents = np.frombuffer(content, "<i8", stored.num_indexed, HEADER.size + 12 * count)
        # sequences are in order and do not overlap (open_stored has looked), so that gaps would show at the end
        self._has_gaps = count > 0 and self.byte_of(stored.num_documents) != stored.num_bytes

    def boundary(self, document: int) -> int:
        """Number of sequences ahead of a document."""
        return int(self._documents[document]) if self.stored.num_indexed else document

    def document_of(self, sequence: int) -> int:
        """The document that holds a sequence."""
        return int(np.searchsorted(self._documents, sequence, "right")) - 1 if self.stored.num_indexed else sequence

    def ends(self, first: int, last: int) -> Iterator[np.ndarray]:
        """For documents [first, last) the number of sequences up to their ends, int64."""
        for start in range(first, last, PIECE):
            stop = min(start + PIECE, last)
            yield self._documents[start + 1 : stop + 1] if self.stored.num_indexed else np.arange(start + 1, stop + 1)

    def lengths(self, first: int, last: int) -> Iterator[np.ndarray]:
        """Of the sequences of documents [first, last), int32."""
        begin, end = self.boundary(first), self.boundary(last)
        for start in range(begin, end, PIECE):
            yield self.all_lengths[start : min(start + PIECE, end)]

    def document_lengths(self, first: int, last: int) -> Iterator[np.ndarray]:
        """Tokens of each of the documents [first, last), int64."""
        begin = self.boundary(first)
        for ends in self.ends(first, last):
            sums = np.cumsum(self.all_lengths[begin : int(ends[-1])], dtype=np.int64)
            yield np.diff(np.concatenate(([0], sums))[np.concatenate(([begin], ends)) - begin])
            begin = int(ends[-1])

    def byte_runs(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Where the tokens of documents [first, last) lie in the .bin: start and number of bytes; one run unless there are gaps."""
        if not self._has_gaps:
            start, stop = self.byte_of(first), self.byte_of(last)
            if stop > start:
                yield start, stop - start
            return
        begin, end = self.boundary(first), self.boundary(last)
        run_start, run_end = 0, 0
        for start in range(begin, end, PIECE):
            part = slice(start, min(start + PIECE, end))
            lengths = self.all_lengths[part]
            filled = lengths > 0
            starts = self.pointers[part][filled]
            if not len(starts):
                continue
            stops = starts + lengths[filled].astype(np.int64) * self.stored.dtype.itemsize
            breaks = np.flatnonzero(starts[1:] != stops[:-1])
            for left, right in zip(
                starts[np.concatenate(([0], breaks + 1))].tolist(),
                stops[np.concatenate((breaks, [len(stops) - 1]))].tolist(),
                strict=True,
            ):
                if left != run_end:
                    if run_end > run_start:
                        yield run_start, run_end - run_start
                    run_start = left
                run_end = right
        if run_end > run_start:
            yield run_start, run_end - run_start

    def byte_of(self, document: int) -> int:
        """Where a document's first sequence begins in the .bin; the end of the last one behind all documents."""
        sequence = self.boundary(document)
        if sequence < self.stored.num_sequences:
            return int(self.pointers[sequence])
        if not sequence:
            return 0
        return int(self.pointers[-1]) + int(self.all_lengths[-1]) * self.stored.dtype.itemsize


def open_stored(prefix: str | Path, *, sequences_are_documents: bool = False) -> Stored:
    """Check a dataset's files. Raises DataError where one is missing or damaged, or the document index is not whole."""
    indexed = IndexedDataset(prefix)
    documents = indexed.document_index
    facts = (str(prefix), indexed.dtype, len(indexed))
    if sequences_are_documents:
        return Stored(*facts, len(indexed), indexed.num_tokens, 0)
    whole = len(documents) > 0 and documents[0] == 0 and documents[-1] == len(indexed)
    if not whole or any(
        (np.diff(documents[start : start + PIECE + 1]) < 0).any() for start in range(0, len(documents), PIECE)
    ):
        raise DataError(
            f"{idx_path(prefix)}: its document index is not whole ({len(documents)} entries for {len(indexed)} sequences), as merges by "
            "other programs leave it; write it again, or add --sequences-are-documents to count every sequence as one document"
        )
    return Stored(*facts, len(documents) - 1, indexed.num_tokens, len(documents))


def find_prefixes(names: Sequence[str]) -> list[str]:
    """Datasets by prefix (whole, or as names.py completes it), by one of their files, by a pattern or by a folder (searched); order as
    given, within a name by path.

    A name that ends as one of the files stands for that file of a pair, and all others for both, so that a pattern which the shell
    resolved names a dataset once. Raises DataError where a name finds nothing, or a file is named twice.
    """
    found: dict[Path, str] = {}
    named: set[tuple[Path, str]] = set()
    for name in names:
        prefixes = _prefixes(name)
        suffix = Path(name).suffix
        endings = (suffix,) if suffix in ENDINGS and name not in prefixes else ENDINGS
        for prefix in prefixes:
            place = idx_path(prefix).resolve()
            files = {(place, ending) for ending in endings}
            if files & named:
                raise DataError(f"{prefix} is named twice; name every dataset once")
            named |= files
            found.setdefault(place, prefix)
    return list(found.values())


def _prefixes(name: str) -> list[str]:
    if idx_path(name).is_file() or bin_path(name).is_file():
        return [name]
    if Path(name).is_dir():
        indexes = sorted(Path(name).rglob("*.idx"))
        found = [str(path) for path in indexes if not any(p.suffix == UNFINISHED for p in path.parents)]
    else:
        found = sorted(glob.glob(name, recursive=True) + glob.glob(f"{name}.idx", recursive=True))
    prefixes = [without_ending(file) for file in found if Path(file).suffix in ENDINGS]
    return list(dict.fromkeys(prefixes)) or [completed_prefix(name)]


def completed_prefix(name: str) -> str:
    """The one dataset that a name means (names.py), said where it is another name. DataError where it means none, or several."""
    prefix = existing_prefix(name)
    if prefix != without_ending(name):
        log.info("%s is %s", name, prefix)
    return prefix
