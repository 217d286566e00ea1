"""Signals that are the parent's to answer: a terminal or a scheduler sends them to every process of a command, its children too."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def children_without(numbers: Iterable[int]) -> Iterator[None]:
    """Processes that are started inside never see these signals: they inherit the mask, through fork and exec, and keep it."""
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
