"""Columns of a table → records, for parquet and arrow.

    record batch ─▶ slices of about 1 MiB ─▶ texts at once where all are sound, else row by row ─▶ Found

Columns of strings, bytes (read as UTF-8) and dictionaries of these; a null, bytes that are not UTF-8 and a text that is too long are bad
records. A list is read where the options of reading say what it means. A column that is missing or of another type concerns every row, so
it is a DataError.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from megamesh.data.sources.found import Found, ReadOptions
from megamesh.data.sources.inputs import InputFile
from megamesh.data.sources.json_lines import BadValueError, checked_value
from megamesh.errors import DataError

SLICE_BYTES = 1 << 20

pa.set_cpu_count(1)  # one core per worker
pa.set_io_thread_count(1)


def check_columns(schema: pa.Schema, file: InputFile, options: ReadOptions) -> None:
    """DataError where a key is not a column with text."""
    for key in options.keys:
        if schema.names.count(key) != 1:
            problem = "two columns" if key in schema.names else "no column"
            nested = "; a field inside a column cannot be named" if "." in key else ""
            raise DataError(
                f"{file.path}: {problem} {key!r}; found {', '.join(map(repr, schema.names))}{nested}; {options.mend}"
            )
        kind = schema.field(key).type
        if not _is_text(kind) and not (_is_list(kind) and (options.join_paragraphs or options.messages)):
            raise DataError(f"{file.path}: column {key!r} holds {kind} instead of text; {options.mend}")


def slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch in parts of about SLICE_BYTES, of at least one row."""
    step = max(batch.num_rows * SLICE_BYTES // max(batch.nbytes, 1), 1)
    for start in range(0, batch.num_rows, step):
        yield batch.slice(start, step)


def add_rows(found: Found, batch: pa.RecordBatch) -> None:
    """Add one record per row."""
    columns = [_plain(batch.column(key)) for key in found.options.keys]
    found.size += sum(column.nbytes for column in columns)
    if not _add_at_once(found, columns):
        for row in range(batch.num_rows):
            try:
                record = [
                    _value(column, row, key, found) for key, column in zip(found.options.keys, columns, strict=True)
                ]
            except BadValueError as error:
                found.add_bad(*error.args)
            else:
                found.add_values(record)


def _add_at_once(found: Found, columns: Sequence[pa.Array]) -> bool:
    """The usual case: every value is text. Changes nothing where one is not."""
    limit = found.options.max_document_bytes
    texts = []
    for column in columns:
        if not pa.types.is_large_string(column.type) or column.null_count:
            return False
        if column.nbytes > limit and (pc.max(pc.binary_length(column)).as_py() or 0) > limit:
            return False
        try:
            texts.append(column.to_numpy(zero_copy_only=False).tolist())
        except (pa.ArrowException, UnicodeDecodeError):  # not UTF-8
            return False
    for values, column_texts in zip(found.values, texts, strict=True):
        values.extend(column_texts)
    found.line += len(columns[0])
    return True


def _value(column: pa.Array, row: int, key: str, found: Found) -> Any:
    value = column[row]
    if pa.types.is_large_string(column.type) and value.is_valid:
        buffer = value.as_buffer()
        if buffer.size > found.options.max_document_bytes:
            raise BadValueError("too-long", found.too_long)
        value = _decoded(bytes(buffer), key)
    else:
        try:
            value = value.as_py()
        except UnicodeDecodeError as error:
            raise BadValueError("bad-utf-8", f"{key!r} is not UTF-8 ({error.reason})") from error
    return checked_value(value, key, found.options)


def _decoded(content: bytes, key: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise BadValueError("bad-utf-8", f"{key!r} is not UTF-8 ({error.reason} at byte {error.start})") from error


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    tests = (
        "is_string",
        "is_large_string",
        "is_string_view",
        "is_binary",
        "is_large_binary",
        "is_binary_view",
        "is_null",
    )
    return any(getattr(pa.types, test)(kind) for test in tests)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _plain(column: pa.Array) -> pa.Array:
    """Text of any type as large_string, not yet known to be UTF-8; other columns as they are."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not _is_text(column.type) or pa.types.is_null(column.type):
        return column
    binary = column.cast(pa.large_binary())
    return pa.Array.from_buffers(pa.large_string(), len(binary), binary.buffers(), offset=binary.offset)
