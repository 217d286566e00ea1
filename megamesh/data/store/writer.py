"""Write an indexed dataset (bytes: format.py).

    add_sequence / add_document / append_file ─▶ <prefix>.bin.tmp-… ─close─▶ <prefix>.bin, then <prefix>.idx

The .bin is streamed; lengths (4 bytes per sequence) stay in memory until the end. Final names appear only when everything is on disk, the
.idx last, so a pair that has its .idx is complete. Leaving the `with` block by an exception removes what was written.
"""

import os
import shutil
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from megamesh.data.store.format import DTYPE_CODES, HEADER, MAGIC, VERSION, bin_path, idx_path
from megamesh.errors import DataError

CHUNK = 1 << 22


class IndexedWriter:
    """Writes `<prefix>.bin` and `<prefix>.idx`; use as a context manager. dtype: the number format of the tokens."""

    def __init__(self, prefix: str | Path, dtype: np.dtype | type, *, overwrite: bool = False):
        self.prefix = str(prefix)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        assert self.dtype in DTYPE_CODES, f"{self.dtype} cannot hold token ids"
        self._bin, self._idx = bin_path(prefix), idx_path(prefix)
        for path in (self._bin, self._idx):
            if path.exists() and not overwrite:
                raise DataError(f"{path}: exists; name another output or allow it to be overwritten (--overwrite)")
        self._bin.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = [path.with_name(f"{path.name}.tmp-{os.getpid()}") for path in (self._bin, self._idx)]
        self._file = self._temporary[0].open("wb")
        self._lengths = array("i")
        self._documents = array("q", [0])

    def add_sequence(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Append one sequence to the current document. Raises DataError for an id that the dtype cannot hold."""
        ids = np.asarray(tokens)
        if ids.size and ids.dtype != self.dtype:
            bounds = np.iinfo(self.dtype)
            smallest, largest = int(ids.min()), int(ids.max())
            if smallest < bounds.min or largest > bounds.max:
                wrong = smallest if smallest < bounds.min else largest
                raise DataError(
                    f"{self._bin}: token id {wrong} does not fit {self.dtype.name} ({bounds.min} … {bounds.max})"
                )
        self._check_length(ids.size)
        self._file.write(ids.astype(self.dtype, copy=False).tobytes())
        self._lengths.append(ids.size)

    def end_document(self) -> None:
        """End the current document; it may hold any number of sequences."""
        self._documents.append(len(self._lengths))

    def add_document(self, tokens: Sequence[int] | np.ndarray) -> None:
        """Append a document of one sequence."""
        self.add_sequence(tokens)
        self.end_document()

    def append_file(self, tokens: Path, lengths: np.ndarray) -> None:
        """Append documents of one sequence each whose tokens, in this writer's dtype, are the bytes of a file."""
        expected = int(lengths.sum(dtype=np.int64)) * self.dtype.itemsize
        found = tokens.stat().st_size
        assert found == expected, f"{tokens} has {found} bytes instead of {expected}"
        first = len(self._lengths)
        with tokens.open("rb") as source:
            shutil.copyfileobj(source, self._file, CHUNK)
        self._lengths.frombytes(lengths.astype(np.int32).tobytes())
        self._documents.frombytes(np.arange(first + 1, len(self._lengths) + 1, dtype=np.int64).tobytes())

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens > np.iinfo(np.int32).max:
            raise DataError(
                f"{self._bin}: a document of {num_tokens} tokens; the format holds at most {np.iinfo(np.int32).max}"
            )

    def _write_index(self) -> None:
        lengths = np.frombuffer(self._lengths, np.int32)
        ends = np.frombuffer(self._documents, np.int64)[1:]
        pieces = [lengths[start : start + CHUNK] for start in range(0, len(lengths), CHUNK)]
        write_index(self._temporary[1], self.dtype, pieces, len(lengths), ends=[ends], num_documents=len(ends))

    def close(self) -> None:
        """Put both files under their final names."""
        self.complete()
        self.publish()

    def complete(self) -> None:
        """Bring both files to disk, still under temporary names."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._write_index()

    def publish(self) -> None:
        """Rename the completed files."""
        self._idx.unlink(missing_ok=True)  # an old index must never stand beside the new tokens
        os.replace(self._temporary[0], self._bin)
        os.replace(self._temporary[1], self._idx)

    def abort(self) -> None:
        """Remove what was written; final names are untouched."""
        self._file.close()
        for path in self._temporary:
            path.unlink(missing_ok=True)

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.close()
        except BaseException:
            self.abort()
            raise


def write_index(
    path: Path,
    dtype: np.dtype,
    lengths: Iterable[np.ndarray],
    num_sequences: int,
    *,
    ends: Iterable[np.ndarray] | None = None,
    num_documents: int | None = None,
) -> None:
    """Write an .idx whose sequences lie end to end in their .bin, and bring it to disk.

    `lengths`: those of all sequences, in pieces [n] int32 of any size; gone through twice, one piece in memory at a time.
    `ends`, `num_documents`: for each document the number of sequences up to its end, int64, in pieces too; without them every sequence is
    a document.
    """
    if ends is None or num_documents is None:
        num_documents = num_sequences
        ends = (np.arange(start + 1, min(start + CHUNK, num_sequences) + 1) for start in range(0, num_sequences, CHUNK))
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, DTYPE_CODES[np.dtype(dtype)], num_sequences, num_documents + 1))
        found = 0
        for piece in lengths:
            file.write(piece.astype("<i4", copy=False).tobytes())
            found += len(piece)
        assert found == num_sequences, f"{path}: {found} lengths for {num_sequences} sequences"
        begin = 0
        for piece in lengths:
            stops = begin + np.cumsum(piece, dtype=np.int64) * np.dtype(dtype).itemsize
            file.write(np.concatenate(([begin], stops[:-1])).astype("<i8").tobytes() if len(piece) else b"")
            begin = int(stops[-1]) if len(piece) else begin
        found = 0
        file.write(np.zeros(1, "<i8").tobytes())
        for piece in ends:
            file.write(piece.astype("<i8", copy=False).tobytes())
            found += len(piece)
        assert found == num_documents, f"{path}: {found} ends of documents instead of {num_documents}"
        file.flush()
        os.fsync(file.fileno())
