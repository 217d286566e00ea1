"""What MegaMesh writes beside data, told from a corpus: no run replaces or removes a file there that is another's.

<prefix>.json             manifest                by its beginning (data/manifest.py)
<prefix>.skipped.jsonl    report of bad records   by its beginning; a line: {"place": "file:line", "reason": …, "message": …}
"""

import re
from pathlib import Path

REPORT = ".skipped.jsonl"
_REPORT_BEGINNING = re.compile(rb'\{"place": "[^\n]*", "reason": "[a-z0-9-]+", "message": "')
_BEGINNING_BYTES = 1 << 16


def report_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}{REPORT}")


def is_report(path: Path) -> bool:
    """Whether a file is a run's report of bad records."""
    try:
        with path.open("rb") as file:
            return _REPORT_BEGINNING.match(file.read(_BEGINNING_BYTES)) is not None
    except OSError:
        return False
