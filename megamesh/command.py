"""What every command-line tool does around its work: it logs, and ends a user's error in one message and status 1."""

import os
import sys
from collections.abc import Callable

from megamesh.errors import DataError, MegaMeshError
from megamesh.launch import read_launch
from megamesh.log import configure_logging


def run_command(work: Callable[[], None]) -> int:
    """Do a tool's work; the exit status. Of several processes rank 0 tells the error: all find the same.

    Only bad data may be one rank's alone, so that every rank tells it.
    """
    configure_logging()
    try:
        work()
    except MegaMeshError as error:
        if read_launch(os.environ).rank == 0 or isinstance(error, DataError):
            text = str(error)
            sys.stderr.write(f"errors:\n{text}\n" if "\n" in text else f"error: {text}\n")
        return 1
    return 0
