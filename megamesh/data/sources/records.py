"""Shards → records.

    Shard ─▶ the reader of its kind ─▶ Found ─▶ Records (about 1 MiB of text) ─▶ tokenizer

A bad record never stops the reading and is never lost: it is in `Records.bad` with its line and the reason. A damaged file, one from which
nothing certain can be read any more, is a DataError. Lines, rows and documents in = values + bad + blank lines, and the sum of `num_bytes`
is exactly the shard's size on disk.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from megamesh.data.sources.content import add_content, splitter
from megamesh.data.sources.disk import RawFile, blocks_of_range, pieces_before
from megamesh.data.sources.found import BadRecord, Found, ReadOptions, Reason, Records
from megamesh.data.sources.inputs import InputFile
from megamesh.data.sources.pieces import split_pieces
from megamesh.data.sources.shard import Shard
from megamesh.data.sources.shards import cut_into_shards, is_cut_by_bytes
from megamesh.data.sources.streams import decompress
from megamesh.data.sources.texts import add_piece, dat_documents
from megamesh.data.store.manifest import name_as_text
from megamesh.errors import DataError

__all__ = [
    "BadRecord",
    "ReadOptions",
    "Reason",
    "Records",
    "estimate_text_bytes",
    "place",
    "read_records",
    "read_shard",
    "read_texts",
]

RECORDS_BYTES = 1 << 20
_SHARD_BYTES = 16 << 20
_SAMPLE_BYTES = 8 << 20


def read_shard(shard: Shard, options: ReadOptions) -> Iterator[Records]:
    """The records of a shard, in order, in parts of about 1 MiB of text.

    Raises DataError for a damaged file, and for a table without the columns; never for a bad record.
    """
    found, given = Found(options), 0
    for position in _reader(shard, options, found):
        if found.size >= RECORDS_BYTES:
            reached = min(max(position, given), shard.num_bytes)
            yield found.take(reached - given)
            given = reached
    if not found.is_empty or given < shard.num_bytes:
        yield found.take(shard.num_bytes - given)


def place(shard: Shard, bad: BadRecord, lines_before: int | None = None) -> str:
    """file:line of a bad record (row or document where there are no lines), file!member:line in an archive.

    `lines_before`: the sum of `num_lines` over the earlier shards of the file. Without it they are counted, so for errors only.
    """
    path = name_as_text(shard.file.path)
    if bad.member:
        return f"{path}!{bad.member}:{bad.line}"
    before = _lines_before(shard) if lines_before is None else lines_before
    return f"{path}:{before + bad.line}"


def read_records(
    inputs: Sequence[InputFile], options: ReadOptions, progress: Callable[[int], object] = lambda num_bytes: None
) -> Iterator[dict[str, str]]:
    """Every record of the files, {key: text}. Raises DataError with file and line at the first bad one."""
    for _, records in _good(inputs, options, progress):
        for values in zip(*records.values, strict=True):
            yield dict(zip(options.keys, values, strict=True))


def read_texts(
    inputs: Sequence[InputFile], options: ReadOptions, progress: Callable[[int], object] = lambda num_bytes: None
) -> Iterator[str]:
    """Every text of the files; a text file's once, whatever the number of keys. Raises DataError as `read_records` does."""
    for shard, records in _good(inputs, options, progress):
        columns = records.values[:1] if shard.file.kind in ("text", "dat") else records.values
        for values in zip(*columns, strict=True):
            yield from values


def estimate_text_bytes(inputs: Sequence[InputFile], options: ReadOptions) -> int:
    """About how many bytes of text the files hold, from the beginning of the first file of every kind that is compressed."""
    ratios: dict[tuple[str, str], float] = {}
    for file in inputs:
        kind = (file.kind, file.compression)
        if kind not in ratios:
            ratios[kind] = (
                1.0 if file.compression == "none" and file.kind in ("jsonl", "text") else _expansion(file, options)
            )
    return int(sum(file.num_bytes * ratios[file.kind, file.compression] for file in inputs))


def _expansion(file: InputFile, options: ReadOptions) -> float:
    """Bytes of text per byte on disk."""
    text, disk = 0, 0
    for shard in cut_into_shards([file], _SHARD_BYTES, options.separator):
        for records in read_shard(shard, options):
            text += sum(len(value.encode()) for values in records.values for value in values)
            disk += records.num_bytes
            if text >= _SAMPLE_BYTES:
                return text / max(disk, 1)
    return text / max(disk, 1)


def _good(
    inputs: Sequence[InputFile], options: ReadOptions, progress: Callable[[int], object]
) -> Iterator[tuple[Shard, Records]]:
    for shard in cut_into_shards(inputs, _SHARD_BYTES, options.separator):
        for records in read_shard(shard, options):
            for bad in islice(records.bad, 1):
                raise DataError(f"{place(shard, bad)}: {bad.message}; mend or remove the record")
            yield shard, records
            progress(records.num_bytes)


def _reader(shard: Shard, options: ReadOptions, found: Found) -> Iterator[int]:
    """Adds to `found`, and yields the bytes of the shard read so far."""
    kind = shard.file.kind
    if kind in ("jsonl", "text") and is_cut_by_bytes(shard.file, options.separator):
        return _read_range(shard, options, found)
    if kind in ("jsonl", "text", "dat"):
        return _read_stream(shard, options, found)
    if kind == "parquet":
        from megamesh.data.sources.parquet import read_parquet

        return read_parquet(shard, options, found)
    if kind == "arrow":
        from megamesh.data.sources.arrow import read_arrow

        return read_arrow(shard, options, found)
    from megamesh.data.sources.archives import read_tar, read_zip

    return read_tar(shard, options, found) if kind == "tar" else read_zip(shard, options, found)


def _read_range(shard: Shard, options: ReadOptions, found: Found) -> Iterator[int]:
    separator, add = splitter(shard.file.kind, options)
    with RawFile(shard.file.path) as file:
        blocks = blocks_of_range(file, shard.start, shard.end, separator)
        for pieces in split_pieces(blocks, separator, options.max_document_bytes, marked=shard.start == 0):
            add(found, pieces)
            yield file.position - shard.start


def _read_stream(shard: Shard, options: ReadOptions, found: Found) -> Iterator[int]:
    name = str(shard.file.path)
    with RawFile(shard.file.path) as file:
        blocks = decompress(file.read, shard.file.compression, name)
        if shard.file.kind == "dat":
            for document in dat_documents(blocks, options.max_document_bytes, name):
                add_piece(found, document)
                yield file.position
        else:
            for _ in add_content(found, blocks, shard.file.kind, options):
                yield file.position


def _lines_before(shard: Shard) -> int:
    """Lines, rows or documents of the file before a shard."""
    file = shard.file
    if shard.start == 0:
        return 0
    if file.kind == "parquet":
        from megamesh.data.sources.parquet import row_group_rows

        return sum(row_group_rows(file)[: shard.start])
    if file.kind == "arrow":
        from megamesh.data.sources.arrow import batch_rows

        return sum(batch_rows(file)[: shard.start])
    return pieces_before(file.path, shard.start, b"\n" if file.kind == "jsonl" else (shard.separator or "").encode())
