"""The unit of work: a part of an input file that is read by one worker."""

from dataclasses import dataclass

from megamesh.data.sources.inputs import InputFile


@dataclass(frozen=True)
class Shard:
    """A part of a file.

    start, end: bytes, row groups or record batches, see shards.py; 0 and the file's size where the shard is the whole file.
    num_bytes: its part of the file's size on disk. separator: between the documents of a text file that is cut.
    """

    file: InputFile
    start: int
    end: int
    num_bytes: int
    separator: str | None = None
