"""Logging for all of MegaMesh: one line format; every rank may warn, only rank 0 informs."""

import logging
import os
import sys

from megamesh.launch import read_launch


def configure_logging(level: int = logging.INFO) -> None:
    """Send MegaMesh's log to standard error: rank 0 from `level`, other ranks from WARNING with their rank named.

    The rank is the launcher's (megamesh.launch), so that this works before (and without) a process group.
    """
    rank = read_launch(os.environ).rank
    prefix = "" if rank == 0 else f"[rank {rank}] "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(levelname)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger("megamesh")
    root.handlers[:] = [handler]
    root.setLevel(level if rank == 0 else max(level, logging.WARNING))
    root.propagate = False
