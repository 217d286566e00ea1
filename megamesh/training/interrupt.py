"""Ctrl-C in a training run.

    SIGINT ──▶ wake-up socket ──▶ thread ──┬─ before the first step      one line, and leave at once: status 130
        │                                  ├─ then, the first time       one line; the run stops as SignalHook says
        └──▶ SignalHook, in the main       └─ again                      one line, and leave at once: status 130
             thread, when that is free

A thread, since a main thread inside a collective runs no handler, and somebody at a keyboard shall not have to wait for it. What is on
disk is made for a process that ends at any moment. A terminal signals every process of the command, and launchers (deepspeed, torchrun)
pass the signal on as well: signals within a second are one press of the key. Rank 0 speaks.
"""

import logging
import os
import signal
import socket
import threading
import time
from typing import Literal

from megamesh.engine.liveness import say_interrupted
from megamesh.launch import read_launch
from megamesh.training.hooks.signals import SignalHook

log = logging.getLogger(__name__)
SAME_PRESS_SECONDS = 1.0
INTERRUPTED_STATUS = 128 + signal.SIGINT


class KeyPresses:
    """Tells the presses of Ctrl-C apart, by the times of their signals."""

    def __init__(self) -> None:
        self._first: float | None = None

    def hear(self, seconds: float) -> Literal["first", "same", "again"]:
        """What the signal at this time is."""
        if self._first is None:
            self._first = seconds
            return "first"
        return "same" if seconds - self._first < SAME_PRESS_SECONDS else "again"


class Interrupts:
    """A context, in the main thread, in which Ctrl-C does what this module says.

    A command that its shell started in the background ignores Ctrl-C, and so does this then.
    """

    def __init__(self, signals: SignalHook):
        self._signals, self._presses = signals, KeyPresses()

    def __enter__(self) -> None:
        self._handler = signal.getsignal(signal.SIGINT)
        if self._handler == signal.SIG_IGN:
            return
        self._read_end, self._write_end = socket.socketpair()
        self._write_end.setblocking(False)
        self._thread = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self._thread.start()
        self._wakeup = signal.set_wakeup_fd(self._write_end.fileno(), warn_on_full_buffer=False)
        _awake.append(self)
        signal.signal(signal.SIGINT, self._signals.remember)

    def __exit__(self, *_: object) -> None:
        if self._handler == signal.SIG_IGN:
            return
        signal.signal(signal.SIGINT, self._handler)
        signal.set_wakeup_fd(self._wakeup)
        _awake.remove(self)
        self._write_end.shutdown(socket.SHUT_WR)
        self._thread.join()
        self._read_end.close()
        self._write_end.close()

    def _watch(self) -> None:
        while numbers := self._read_end.recv(64):
            if signal.SIGINT in numbers:
                self._hear()

    def _hear(self) -> None:
        if not self._signals.training:
            _leave("interrupted before the first step")
        press = self._presses.hear(time.monotonic())
        if press == "first" and _speaks():
            if self._signals.saves:
                log.info("Ctrl-C: this step is finished and saved; Ctrl-C again leaves at once, without")
            else:
                log.info(
                    "Ctrl-C: this step is finished, and nothing saved, as save is not given; Ctrl-C again leaves at once"
                )
        if press == "again":
            continues = "; the same command continues from the last checkpoint" if self._signals.saves else ""
            _leave(f"left at once, without saving{continues}")


def _speaks() -> bool:
    return read_launch(os.environ).rank == 0


def _leave(message: str) -> None:
    if _speaks():
        os.write(2, f"{message}\n".encode())  # unlocked: the main thread may be stuck in a line of its own
    say_interrupted()
    os._exit(INTERRUPTED_STATUS)


_awake: list[Interrupts] = []


def _sleep() -> None:
    """In a forked child (a data loader's worker): its signals are no matter of this process."""
    if _awake:
        _awake.clear()
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_sleep)
