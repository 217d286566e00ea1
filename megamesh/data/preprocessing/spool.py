"""Standard input in a file, where it can be cut into shards and read again after an interruption.

    stream ─▶ a file without its name yet ─▶ <prefix>.stdin.jsonl or .txt, when the stream has ended

A file of that name is therefore a whole stream, and one that exists already is never written to. A kill in the instant between taking the
name and moving the stream there leaves the file empty, and the stream beside it under its temporary name.
"""

import os
from pathlib import Path
from typing import IO

from tqdm import tqdm

from megamesh.data.store.own_files import spool_path
from megamesh.data.store.temporary import replace_file
from megamesh.errors import DataError

BLOCK_BYTES = 1 << 20


class Spool:
    """A stream's file; `is_ours` when this process has made it."""

    def __init__(self, prefix: str | Path, kind: str):
        self.path = spool_path(prefix, kind)
        self.is_ours = False

    def fill(self, stream: IO[bytes]) -> None:
        """Bring the stream to the disk. Raises DataError where the file exists or cannot be written."""

        def copy(file: IO[bytes]) -> None:
            with tqdm(unit="B", unit_scale=True, desc="reading standard input", disable=None) as bar:
                while block := stream.read(BLOCK_BYTES):
                    bar.update(file.write(block))
            file.flush()
            os.fsync(file.fileno())
            self.path.touch(exist_ok=False)  # the name is taken last, and from nobody

        try:
            if os.path.lexists(self.path):
                raise FileExistsError
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, copy)
        except FileExistsError as error:
            raise DataError(
                f"{self.path}: holds the standard input of an earlier run; continue with --input {self.path}, or remove it"
            ) from error
        except OSError as error:
            raise DataError(
                f"{self.path}: {error.strerror}; standard input is kept there while it is tokenized"
            ) from error
        self.is_ours = True

    def remove(self) -> None:
        """Remove the file if this process has made it."""
        if self.is_ours:
            self.path.unlink(missing_ok=True)
