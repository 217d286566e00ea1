"""Record batches of an arrow file → records, for the stream format (Hugging Face datasets) and the file format.

    file ─▶ memory map ─▶ batch ─▶ slices ─▶ Found, and the pages read are given back

A batch that is not compressed is never held as a whole. A stream must end with its end mark, and nothing may follow: what was lost or comes
later would be missing in silence.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from megamesh.data.sources.found import Found, ReadOptions
from megamesh.data.sources.inputs import InputFile
from megamesh.data.sources.shard import Shard
from megamesh.data.sources.tables import add_rows, check_columns, slices
from megamesh.errors import DataError

_FILE_FORMAT = b"ARROW1"
_END_MARKS = (b"\xff\xff\xff\xff\0\0\0\0", b"\0\0\0\0")  # the second one before arrow 0.15
_MEND = "fetch or write it again"


def batch_bytes(file: InputFile) -> list[int]:
    """Bytes of every record batch (of the file format, which does not tell, 1 each)."""
    with _mapped(file) as pages:
        if _is_file_format(pages):
            return [1] * pa.ipc.open_file(pa.py_buffer(pages)).num_record_batches
        source = pa.BufferReader(pa.py_buffer(pages))
        messages = pa.ipc.MessageReader.open_stream(source)
        sizes = [message.body.size for message in messages if message.type == "record batch"]
        position = source.tell()
        if position < len(pages):
            raise DataError(
                f"{file.path}: {len(pages) - position:,} bytes follow the end of its stream; write it as one stream"
            )
        if not any(pages[position - len(mark) : position] == mark for mark in _END_MARKS):
            raise DataError(f"{file.path}: has no end mark, its writer was stopped; {_MEND}")
        return sizes


def batch_rows(file: InputFile) -> list[int]:
    """Rows of every record batch."""
    with _mapped(file) as pages:
        return [batch.num_rows for batch in _batches(pages, 0, None)]


def read_arrow(shard: Shard, options: ReadOptions, found: Found) -> Iterator[int]:
    """Adds the rows of the shard's batches, and yields the bytes of the shard read so far."""
    with _mapped(shard.file) as pages:
        check_columns(_reader(pages).schema, shard.file, options)
        columns = list(dict.fromkeys(options.keys))
        num_batches = max(shard.end - shard.start, 1)
        for number, whole in enumerate(_batches(pages, shard.start, shard.end), start=1):
            batch, done = whole.select(columns), 0
            batch.validate()
            for part in slices(batch):
                _check_offsets(part)
                add_rows(found, part)
                pages.madvise(mmap.MADV_DONTNEED)  # they stay in the cache of the system, not in this process
                done += part.num_rows
                batches = number - 1 + done / batch.num_rows
                yield int(shard.num_bytes * batches / num_batches)


_AS_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}


def _check_offsets(batch: pa.RecordBatch) -> None:
    """ArrowInvalid for offsets outside their buffer, which would be read as they are. Text need not be UTF-8."""
    for column in batch.columns:
        values = column
        if pa.types.is_dictionary(column.type):
            column.validate()
            values, limits = column.dictionary, pc.min_max(column.indices).as_py()
            if limits["min"] is not None and not 0 <= limits["min"] <= limits["max"] < len(values):
                raise pa.ArrowInvalid(f"indices {limits['min']} to {limits['max']} into {len(values)} values")
        if values.type in _AS_BYTES:
            values = values.cast(_AS_BYTES[values.type])
        values.validate(full=not pa.types.is_nested(values.type))


def _is_file_format(pages: mmap.mmap) -> bool:
    return pages[: len(_FILE_FORMAT)] == _FILE_FORMAT


def _reader(pages: mmap.mmap) -> Any:
    """All columns: to ask for a few would copy the batch, as it is they refer to the mapped pages."""
    options = pa.ipc.IpcReadOptions(use_threads=False)
    open_pages = pa.ipc.open_file if _is_file_format(pages) else pa.ipc.open_stream
    return open_pages(pa.py_buffer(pages), options=options)


def _batches(pages: mmap.mmap, start: int, end: int | None) -> Iterator[pa.RecordBatch]:
    reader = _reader(pages)
    if _is_file_format(pages):
        last = reader.num_record_batches if end is None else end
        return (reader.get_batch(number) for number in range(start, last))
    return islice(reader, start, end)


@contextmanager
def _mapped(file: InputFile) -> Iterator[mmap.mmap]:
    try:
        with file.path.open("rb") as opened:
            pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        yield pages  # unmapped with the last batch that refers to it
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file.path}: damaged arrow file ({error}); {_MEND}") from error
