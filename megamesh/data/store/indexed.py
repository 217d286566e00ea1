"""Read an indexed dataset (bytes: format.py) without copying it.

    .idx ─mmap─▶ lengths, pointers, document_index ─┐
    .bin ─mmap───────────────────────────────────────┴─▶ get(i) = a view of sequence i's tokens

Everything that can be wrong with the files is found when they are opened, and names the file: header, sizes, order of the pointers, a
.bin shorter than the index says. Token ids are compared with a vocabulary by `check_token_ids`. After that a read is a slice.
"""

import logging
from pathlib import Path

import numpy as np

from megamesh.data.store.format import FLOAT_CODES, HEADER, MAGIC, TOKEN_DTYPES, VERSION, bin_path, idx_path
from megamesh.data.store.mapped import map_file, too_many_named
from megamesh.data.store.token_range import largest_and_smallest_id
from megamesh.data.store.writer import IndexedWriter
from megamesh.errors import DataError

log = logging.getLogger(__name__)

__all__ = ["IndexedDataset", "IndexedWriter"]

CHUNK = 1 << 24
MEND = "write it again with tools/preprocess_data.py"
_ANYWHERE = np.int64(1 << 62)


class IndexedDataset:
    """The sequences of `<prefix>.bin` and `<prefix>.idx`; opened anew, not copied, when sent to another process."""

    def __init__(self, prefix: str | Path):
        self.prefix = str(prefix)
        idx, tokens = idx_path(prefix), bin_path(prefix)
        for path in (idx, tokens):
            if not path.is_file():
                raise DataError(
                    f"{path}: does not exist; a data path is the prefix of a .bin/.idx pair, without the ending"
                )
        with too_many_named(self.prefix):
            self.dtype, num_sequences, num_documents = _read_header(idx)
            buffer, self._tokens = map_file(idx), map_file(tokens)
        self._num_sequences = num_sequences
        self.lengths = np.frombuffer(buffer, "<i4", num_sequences, HEADER.size)
        self.pointers = np.frombuffer(buffer, "<i8", num_sequences, HEADER.size + 4 * num_sequences)
        self.document_index = np.frombuffer(buffer, "<i8", num_documents, HEADER.size + 12 * num_sequences)
        self.num_tokens = _check_layout(self.lengths, self.pointers, self.dtype.itemsize, idx, tokens)
        self._warn_about_documents(idx)

    def __len__(self) -> int:
        return self._num_sequences

    def get(self, index: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Tokens [offset, offset + length) of a sequence (to its end where no length is given), as a read-only view."""
        available = int(self.lengths[index]) - offset
        length = available if length is None else length
        assert offset >= 0 and 0 <= length <= available, (
            f"{self.prefix}: tokens {offset}+{length} of sequence {index} do not exist"
        )
        return np.frombuffer(self._tokens, self.dtype, length, int(self.pointers[index]) + offset * self.dtype.itemsize)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.get(index)

    def check_token_ids(self, vocab_size: int, cache_folder: Path | None = None) -> None:
        """Raise DataError where a token id is negative or not below `vocab_size`.

        The scan's result is kept in `<prefix>.token_range.json` or in `cache_folder` (rule: token_range.py), so that it runs once per file.
        """
        smallest, largest = largest_and_smallest_id(Path(bin_path(self.prefix)), self.dtype, vocab_size, cache_folder)
        if smallest < 0 or largest >= vocab_size:
            wrong = smallest if smallest < 0 else largest
            raise DataError(
                f"{bin_path(self.prefix)}: token id {wrong} is outside the vocabulary of {vocab_size}; "
                "the data was written with another tokenizer: preprocess it again, or set vocab_file to that one"
            )

    def _warn_about_documents(self, idx: Path) -> None:
        documents = self.document_index
        whole = len(documents) > 0 and documents[0] == 0 and documents[-1] == len(self)
        if not whole and len(self) > 0:
            log.warning(
                "%s: its document index is not whole; of no effect here, as every sequence counts as a document", idx
            )

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.prefix,)


def _read_header(idx: Path) -> tuple[np.dtype, int, int]:
    """dtype, number of sequences and length of the document index. Raises DataError."""
    size = idx.stat().st_size
    with idx.open("rb") as file:
        raw = file.read(HEADER.size)
    if len(raw) < HEADER.size:
        raise DataError(f"{idx}: truncated: {size} bytes are less than the header's {HEADER.size}; {MEND}")
    magic, version, code, num_sequences, num_documents = HEADER.unpack(raw)
    if magic != MAGIC:
        raise DataError(f"{idx}: bad header {magic!r}: not an indexed dataset; {MEND}")
    if version != VERSION:
        raise DataError(f"{idx}: version {version} of the format; only version {VERSION} is known")
    if code in FLOAT_CODES:
        raise DataError(f"{idx}: holds floating-point numbers (dtype {code}) where token ids are needed; {MEND}")
    if code not in TOKEN_DTYPES:
        raise DataError(f"{idx}: unknown dtype {code}; known: {', '.join(map(str, TOKEN_DTYPES))}")
    expected = HEADER.size + 12 * num_sequences + 8 * num_documents
    if size < expected:
        raise DataError(
            f"{idx}: truncated: {size} bytes, but its {num_sequences} sequences need {expected}; copy it again, or {MEND}"
        )
    if size == expected + num_sequences and num_sequences > 0:
        raise DataError(f"{idx}: a multimodal index (a mode for every sequence); only text is supported")
    if size > expected:
        raise DataError(f"{idx}: {size} bytes, but its {num_sequences} sequences end at {expected}; {MEND}")
    return TOKEN_DTYPES[code], num_sequences, num_documents


def _check_layout(lengths: np.ndarray, pointers: np.ndarray, itemsize: int, idx: Path, tokens: Path) -> int:
    """Number of tokens; raises DataError where sequences are out of order, overlap or end beyond the .bin file."""
    available = tokens.stat().st_size
    total, end = 0, 0
    for start in range(0, len(lengths), CHUNK):
        sizes = lengths[start : start + CHUNK].astype(np.int64)
        begins = pointers[start : start + CHUNK].astype(np.int64)
        if sizes.min() < 0:
            raise DataError(f"{idx}: sequence {start + int(sizes.argmin())} has the length {sizes.min()}; {MEND}")
        begins = np.minimum(begins, _ANYWHERE)  # the sums below stay within int64
        ends = begins + sizes * itemsize
        early = begins < np.concatenate(([end], ends[:-1]))
        if early.any():
            raise DataError(
                f"{idx}: sequence {start + int(early.argmax())} begins before the one ahead of it ends: pointers out of order; {MEND}"
            )
        end = int(ends[-1])
        total += int(sizes.sum())
        if end > available:
            bad = start + int((ends > available).argmax())
            raise DataError(
                f"{tokens}: truncated: {available} bytes, but sequence {bad} of {idx.name} ends at "
                f"{int(ends[bad - start])}; copy it again, or {MEND}"
            )
    if end < available:
        log.warning("%s: %d bytes at its end belong to no sequence of %s", tokens, available - end, idx.name)
    return total
