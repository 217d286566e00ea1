"""What every command-line tool does around its work: it logs, ends a user's error in one message and status 1, and Ctrl-C in one line
and status 130, and writes JSON."""

import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from megamesh.errors import DataError, HookError, MegaMeshError
from megamesh.launch import read_launch
from megamesh.log import configure_logging


def run_command(work: Callable[[], None]) -> int:
    """Do a tool's work; the exit status. Of several processes rank 0 tells the error: all find the same.

    Only bad data may be one rank's alone, so that every rank tells it, and a user's hook, whose first error is told.
    """
    configure_logging()
    try:
        work()
    except MegaMeshError as error:
        if _tells(error):
            text = str(error)
            sys.stderr.write(f"errors:\n{text}\n" if "\n" in text else f"error: {text}\n")
        return 1
    except KeyboardInterrupt:
        if threading.current_thread() is threading.main_thread():
            signal.signal(
                signal.SIGINT, signal.SIG_DFL
            )  # once more, while the interpreter ends, is no traceback either
        if read_launch(os.environ).rank == 0:
            sys.stderr.write("interrupted\n")
        return 128 + signal.SIGINT
    return 0


def _tells(error: MegaMeshError) -> bool:
    if isinstance(error, HookError):
        return error.first
    return read_launch(os.environ).rank == 0 or isinstance(error, DataError)


def json_text(values: Any) -> str:
    """What a tool prints for --json: paths as text, and null for the numbers that JSON does not know (infinite, not a number)."""
    return json.dumps(_plain(values), indent=2)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
