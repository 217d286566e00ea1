"""What MegaMesh writes beside data, told from a corpus: no search for text takes it, and no run replaces or removes a file there that is
another's.

    <prefix>.json                 manifest                 by its beginning (data/manifest.py)
    <prefix>.skipped.jsonl        report of bad records    by its beginning; a line: {"place": "file:line", "reason": …, "message": …}
    <prefix>.stdin.jsonl, .txt    standard input           by its name: whole, of a run that has not ended
    <name>.token_range.json       of a .bin file           by its name
"""

import re
from pathlib import Path

from megamesh.data.store.manifest import is_manifest
from megamesh.data.store.token_range import ENDING as TOKEN_RANGE

REPORT = ".skipped.jsonl"
_REPORT_BEGINNING = re.compile(rb'\{"place": "[^\n]*", "reason": "[a-z0-9-]+", "message": "')
_STANDARD_INPUT = re.compile(r".*\.stdin\.(jsonl|txt)")
_BEGINNING_BYTES = 1 << 16


def report_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}{REPORT}")


def spool_path(prefix: str | Path, kind: str) -> Path:
    return Path(f"{prefix}.stdin.{kind}")


def is_report(path: Path) -> bool:
    """Whether a file is a run's report of bad records."""
    try:
        with path.open("rb") as file:
            return _REPORT_BEGINNING.match(file.read(_BEGINNING_BYTES)) is not None
    except OSError:
        return False


def is_own(path: Path) -> bool:
    """Whether a file is one of those above; it is looked into where its name alone does not tell."""
    name = path.name
    if name.endswith(TOKEN_RANGE) or _STANDARD_INPUT.fullmatch(name):
        return True
    return (name.endswith(REPORT) and is_report(path)) or (name.endswith(".json") and is_manifest(path))
