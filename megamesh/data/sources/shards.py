"""Input files → shards, the units of work.

    plain .jsonl, .txt with a separator ─▶ ranges of bytes        .parquet ─▶ ranges of row groups
    .arrow ─▶ ranges of record batches                            anything else ─▶ the whole file

The shards of a file, one after another, give exactly its records; their sizes on disk sum to its size.
"""

from collections.abc import Sequence
from itertools import pairwise

from megamesh.data.sources.first_bytes import check_name
from megamesh.data.sources.inputs import InputFile
from megamesh.data.sources.pieces import overlaps_itself
from megamesh.data.sources.shard import Shard


def cut_into_shards(inputs: Sequence[InputFile], shard_bytes: int, separator: str | None = None) -> list[Shard]:
    """Shards of about `shard_bytes` on disk, in the order of the inputs. An empty file has one empty shard.

    Raises DataError for a parquet or arrow file that is damaged, and for a file that is not what its name says.
    """
    for file in inputs:
        check_name(file)
    return [shard for file in inputs for shard in _cut(file, max(shard_bytes, 1), separator)]


def is_cut_by_bytes(file: InputFile, separator: str | None) -> bool:
    """Whether shards of a file are ranges of bytes. Not where a separator's place depends on where a scan begins."""
    if file.compression != "none":
        return False
    if file.kind == "text":
        return bool(separator) and not overlaps_itself((separator or "").encode())
    return file.kind == "jsonl"


def _cut(file: InputFile, shard_bytes: int, separator: str | None) -> list[Shard]:
    size = file.num_bytes
    if is_cut_by_bytes(file, separator) and size > 0:
        borders = [*range(0, size, shard_bytes), size]
        return [Shard(file, start, end, end - start, separator) for start, end in pairwise(borders)]
    if file.kind == "parquet":
        from megamesh.data.sources.parquet import row_group_bytes

        return _cut_units(file, row_group_bytes(file), shard_bytes)
    if file.kind == "arrow":
        from megamesh.data.sources.arrow import batch_bytes

        return _cut_units(file, batch_bytes(file), shard_bytes)
    return [Shard(file, 0, size, size)]


def _cut_units(file: InputFile, weights: Sequence[int], shard_bytes: int) -> list[Shard]:
    """Ranges of units that are read whole, each with its share of the file's size."""
    total, done, start, position = max(sum(weights), 1), 0, 0, 0
    shards = []
    for number, weight in enumerate(weights, start=1):
        done += weight
        border = file.num_bytes if number == len(weights) else file.num_bytes * done // total
        if border - position >= shard_bytes or number == len(weights):
            shards.append(Shard(file, start, number, border - position))
            start, position = number, border
    return shards or [Shard(file, 0, 0, file.num_bytes)]
