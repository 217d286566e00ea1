"""Row groups of a parquet file → records; only the columns that are asked for are read, a few pages at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from megamesh.data.sources.disk import BLOCK_BYTES
from megamesh.data.sources.found import Found, ReadOptions
from megamesh.data.sources.inputs import InputFile
from megamesh.data.sources.shard import Shard
from megamesh.data.sources.tables import SLICE_BYTES, add_rows, check_columns, slices
from megamesh.errors import DataError

_MOST_ROWS = 8192
_RELEASE_EVERY = 8  # batches; freed pages would pile up, and to release them costs time


def row_group_bytes(file: InputFile) -> list[int]:
    """Bytes of every row group."""
    with _opened(file) as table:
        return [table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups)]


def row_group_rows(file: InputFile) -> list[int]:
    """Rows of every row group."""
    with _opened(file) as table:
        return [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]


def read_parquet(shard: Shard, options: ReadOptions, found: Found) -> Iterator[int]:
    """Adds the rows of the shard's row groups, and yields the bytes of the shard read so far."""
    with _opened(shard.file) as table:
        check_columns(table.schema_arrow, shard.file, options)
        groups = range(shard.start, shard.end)
        num_rows = sum(table.metadata.row_group(group).num_rows for group in groups)
        num_bytes = sum(table.metadata.row_group(group).total_byte_size for group in groups)
        step = min(max(num_rows * SLICE_BYTES // max(num_bytes, 1), 1), _MOST_ROWS)
        columns = list(dict.fromkeys(options.keys))
        done = 0
        batches = table.iter_batches(step, row_groups=list(groups), columns=columns, use_threads=False)
        for number, batch in enumerate(batches):
            if number % _RELEASE_EVERY == 0:
                pa.default_memory_pool().release_unused()
            for part in slices(batch):
                add_rows(found, part)
                done += part.num_rows
                yield shard.num_bytes * done // max(num_rows, 1)
        if done != num_rows:
            raise DataError(
                f"{shard.file.path}: {done} of {num_rows} rows could be read; fetch or write the file again"
            )


@contextmanager
def _opened(file: InputFile) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(
            file.path, pre_buffer=False, buffer_size=BLOCK_BYTES, page_checksum_verification=True
        ) as table:
            yield table
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file.path}: damaged parquet file ({error}); fetch or write it again") from error
