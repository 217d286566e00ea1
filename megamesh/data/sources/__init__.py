"""Text corpora of every supported format → records, in order, none lost without being named."""

from megamesh.data.sources.inputs import InputFile, find_inputs
from megamesh.data.sources.records import (
    BadRecord,
    ReadOptions,
    Reason,
    Records,
    estimate_text_bytes,
    place,
    read_records,
    read_shard,
    read_texts,
)
from megamesh.data.sources.shard import Shard
from megamesh.data.sources.shards import cut_into_shards

__all__ = [
    "BadRecord",
    "InputFile",
    "ReadOptions",
    "Reason",
    "Records",
    "Shard",
    "cut_into_shards",
    "estimate_text_bytes",
    "find_inputs",
    "place",
    "read_records",
    "read_shard",
    "read_texts",
]
