"""Where unfinished work lives: `<prefix>.unfinished/`, beside the outputs.

    lock                          held while a run works here
    <identity>.json               a complete shard's facts; written last
    <identity>.<n>.tokens         its ids for output n
    <identity>.<n>.lengths        its documents' lengths, int32
    <identity>.skipped            its bad records, one JSON list per line
    joined/                       final files, complete or being joined
    publish.json                  joined/ is complete, and its files are being given their final names

A shard's identity is a digest of all that its files depend on, so a later run finds the shards that are still right and no others. The
folder is removed when the outputs have their names.
"""

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megamesh.data.store.stored import UNFINISHED
from megamesh.data.store.temporary import replace_file
from megamesh.errors import DataError

log = logging.getLogger(__name__)

PUBLISHING = "publish.json"
LOCK_SECONDS = 5.0  # workers of a run that was killed end within this time


class WorkFolder:
    """Paths in the folder, and how its content becomes final."""

    def __init__(self, prefix: str | Path):
        self.prefix = Path(prefix)
        self.path = Path(f"{prefix}{UNFINISHED}")
        self.joined = self.path / "joined"

    def facts(self, identity: str) -> Path:
        return self.path / f"{identity}.json"

    def tokens(self, identity: str, output: int) -> Path:
        return self.path / f"{identity}.{output}.tokens"

    def lengths(self, identity: str, output: int) -> Path:
        return self.path / f"{identity}.{output}.lengths"

    def skipped(self, identity: str) -> Path:
        return self.path / f"{identity}.skipped"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, made where it is missing. Raises DataError where another run holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            _lock(file.fileno(), self.path)
            if not _is_open_as(file.fileno(), self.path / "lock"):  # the run that was waited for removed it at its end
                raise DataError(
                    f"{self.path}: another run was writing there until now; start again if this one is still needed"
                )
            yield

    def publish(self, plan: str, outdated: Path) -> None:
        """Give the files in joined/ their final names, the .idx of each pair after its .bin, and remove the folder.

        `outdated`: a file of the final folder that goes unless joined/ has a new one. A publication that was interrupted is finished by
        the next run (`finish_publication`).
        """
        names = sorted(path.name for path in self.joined.iterdir())
        content = json.dumps({"plan": plan, "names": names}).encode()
        replace_file(self.path / PUBLISHING, lambda file: file.write(content))
        if outdated.name not in names:
            outdated.unlink(missing_ok=True)
        self._rename(names)

    def finish_publication(self) -> str | None:
        """Finish what a killed run had begun to publish; its plan's digest, or None where nothing was or it has been deleted."""
        try:
            content = json.loads((self.path / PUBLISHING).read_bytes())
        except FileNotFoundError:
            return None
        names: list[str] = content["names"]
        deleted = [n for n in names if not ((self.joined / n).exists() or (self.prefix.parent / n).exists())]
        if deleted:
            (self.path / PUBLISHING).unlink()
            return None
        self._rename(names)
        return str(content["plan"])

    def _rename(self, names: list[str]) -> None:
        for name in names:
            if (
                name.endswith(".idx") and (self.joined / name).exists()
            ):  # an old index must never stand beside new tokens
                (self.prefix.parent / name).unlink(missing_ok=True)
        for name in sorted(names, key=lambda name: (name.endswith(".idx"), name)):
            if (self.joined / name).exists():
                os.replace(self.joined / name, self.prefix.parent / name)
        for path in self.path.iterdir():
            if path.name != PUBLISHING:  # last: as long as it is there, the next run knows that all is done
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.exists():
            log.warning("%s: cannot be removed; nothing in it is needed any more", self.path)


def _is_open_as(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: int, path: Path) -> None:
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise DataError(
                    f"{path}: another run is writing there; wait for it, or choose another --output-prefix"
                ) from error
            time.sleep(0.1)
        except OSError as error:
            log.warning("%s: cannot be locked (%s); two runs there at once would not be noticed", path, error.strerror)
            return
