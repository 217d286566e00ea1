"""Folders that are either a whole checkpoint or not one: how they appear, are found, and go.

    .saving-global_step20/   being written              ┐ a kill here leaves this, removed by the next save
        ──rename──▶ global_step20/   complete           ┤ a kill here leaves an unnamed folder, replaced by the next save of step 20
        ──replace─▶ latest: "global_step20"             ┘ from here on it is the one to continue from
    older ones beyond keep_last ──rename──▶ .removing-… ──▶ gone

`latest` is replaced in one atomic operation and never names a folder that is incomplete or about to go.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from megamesh.errors import CheckpointError

log = logging.getLogger(__name__)
LATEST = "latest"
SAVING, REMOVING = ".saving-", ".removing-"
COMPLETE_MARK = ".metadata"
NAME = re.compile(r"global_step(\d+)(?:-again)?")
_GIVE = "give a run's `save` folder or a global_stepN folder in it"


def find_latest(folder: str | Path) -> Path | None:
    """The checkpoint that `latest` in a run's folder names; None where nothing was saved yet.

    Raises CheckpointError where `latest` names something that is not a complete checkpoint.
    """
    pointer = Path(folder) / LATEST
    try:
        name = pointer.read_text().strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{pointer} cannot be read: {error}") from None
    if not NAME.fullmatch(name):
        raise CheckpointError(
            f"{pointer} says {name[:80]!r}, which is not the name of a checkpoint; write e.g. global_step1000"
        )
    if not (pointer.parent / name / COMPLETE_MARK).is_file():
        others = ", ".join(path.name for path in complete_checkpoints(folder)) or "none"
        raise CheckpointError(f"{pointer} names {name}, which is missing or incomplete; complete ones there: {others}")
    return pointer.parent / name


def complete_checkpoints(folder: str | Path) -> list[Path]:
    """All complete checkpoints of a run's folder, oldest step first."""
    if not Path(folder).is_dir():
        return []
    found = [path for path in Path(folder).iterdir() if NAME.fullmatch(path.name) and (path / COMPLETE_MARK).is_file()]
    return sorted(found, key=lambda path: (_step(path), path.name))


def earlier_checkpoints(path: Path) -> list[Path]:
    """The complete checkpoints of earlier steps beside one, oldest first."""
    return [other for other in complete_checkpoints(path.parent) if (_step_of(path.name) or 0) > _step(other)]


def resolve_checkpoint(path: str | Path) -> Path:
    """A checkpoint folder as it is, or the latest checkpoint of a run's folder. Raises CheckpointError for anything else."""
    path = Path(path)
    if (path / COMPLETE_MARK).is_file():
        return path
    latest = find_latest(path)
    if latest is not None:
        return latest
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist; {_GIVE}")
    raise CheckpointError(
        f"{path} holds neither `latest` nor a complete checkpoint ({COMPLETE_MARK} is missing); {_GIVE}"
    )


def interrupted_saves(folder: str | Path) -> list[Path]:
    """What killed saves have left in a run's folder: never read, and removed when the next one begins."""
    return [*Path(folder).glob(f"{SAVING}*"), *Path(folder).glob(f"{REMOVING}*")]


def unfinished(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is while it is written."""
    return folder / f"{SAVING}global_step{step}"


def begin(temporary: Path) -> None:
    """Make the empty folder to write a checkpoint into; what earlier, killed saves left is removed."""
    folder = temporary.parent
    folder.mkdir(parents=True, exist_ok=True)
    for stale in interrupted_saves(folder):
        log.warning("removing %s, left by a save that was interrupted", stale)
        _discard(stale)
    temporary.mkdir()


def publish(temporary: Path, step: int) -> Path:
    """Give a finished folder its name, then let `latest` name it; returns where it is now."""
    folder = temporary.parent
    pointer = folder / LATEST
    named = pointer.read_text().strip() if pointer.exists() else ""
    # The folder that `latest` names stays until `latest` names another, even when the same step is saved again.
    target = folder / (f"global_step{step}" if named != f"global_step{step}" else f"global_step{step}-again")
    sync_folder(temporary)
    if target.exists():  # complete, but a kill came before `latest` named it
        _remove(target)
    os.rename(temporary, target)
    sync_folder(folder)
    replace_text(pointer, target.name)
    if named != target.name and _step_of(named) == step:
        _remove(folder / named)
    return target


def prune(folder: Path, keep_last: int) -> None:
    """Remove all but the newest `keep_last` checkpoints; the one that `latest` names always stays.

    Those of later steps go first: they are of a run that went back to an older checkpoint.
    """
    latest = find_latest(folder)
    assert latest is not None, "a checkpoint has just been published"
    others = [path for path in complete_checkpoints(folder) if path != latest]
    others.sort(key=lambda path: _step(path) <= _step(latest))
    for path in others[: max(len(others) - (keep_last - 1), 0)]:
        _remove(path)


def remove(paths: Iterable[Path]) -> None:
    """Remove checkpoints, none of which `latest` names; one that cannot be removed is a warning."""
    for path in paths:
        _remove(path)


def replace_text(path: Path, text: str) -> None:
    """Replace a small file in one atomic, durable operation."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        write_text(temporary, text + "\n")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the folder's entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a checkpoint, if it is there; its name goes first, so that no half-removed folder passes for a complete one.

    What cannot be removed is a warning: the next save tries again.
    """
    if not path.exists():
        return
    doomed = next(
        name
        for number in count()
        if not (name := path.with_name(f"{REMOVING}{path.name}{f'-{number}' * (number > 0)}")).exists()
    )
    try:
        os.rename(path, doomed)
    except OSError as error:
        log.warning("could not remove %s: %s", path, error)
        return
    _discard(doomed)


def _discard(path: Path) -> None:
    """Remove a folder, a file or a link that nothing reads any more; a warning where that fails."""
    try:
        if path.is_symlink() or path.is_file():
            path.unlink()
        else:
            shutil.rmtree(path)
    except OSError as error:
        log.warning("could not remove %s: %s", path, error)


def _step_of(name: str) -> int | None:
    match = NAME.fullmatch(name)
    return int(match[1]) if match else None


def _step(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    assert match is not None, path.name
    return int(match[1])
