"""Ctrl-C in a training run.

    SIGINT ──▶ wake-up socket ──▶ thread ──┬─ before the first step      one line, and leave at once: status 130
        │                                  ├─ then, the first time       one line; the run stops as SignalHook says
        └──▶ SignalHook, in the main       └─ again                      one line, and leave at once: status 130
             thread, when that is free

A thread, since a main thread inside a collective runs no handler, and somebody at a keyboard shall not have to wait for it. What is on
disk is made for a process that ends at any moment. A terminal signals every process of the command, and launchers (deepspeed, torchrun)
pass the signal on as well: signals within a second are one press of the key. Rank 0 speaks. Behind torchrun a terminal reaches its agent
only, and what that passes on of the second press is SIGTERM.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Collection, Mapping
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

    def among(self, signals: Collection[int], environment: Mapping[str, str]) -> bool:
        """Whether these signals tell of a press. torchrun's agent, a second time, sends SIGTERM, and the first time SIGINT alone."""
        passed_on = self._first is not None and "TORCHELASTIC_RUN_ID" in environment
        return signal.SIGINT in signals or (passed_on and signal.SIGTERM in signals)


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
            if self._presses.among(numbers, os.environ):
                self._hear()

    def _hear(self) -> None:
        if not self._signals.training:
            _leave("interrupted before the first step")
        press = self._presses.hear(time.monotonic())
        if press == "first" and _speaks():
            kept = f"saved{_in_time(os.environ)}" if self._signals.saves else "nothing saved, as save is not given"
            log.info("Ctrl-C: this step is finished and %s; Ctrl-C again leaves at once, without", kept)
        if press == "again":
            continues = "; the same command continues from the last checkpoint" if self._signals.saves else ""
            _leave(f"left at once, without saving{continues}")


def _speaks() -> bool:
    return read_launch(os.environ).rank == 0


def _in_time(environment: Mapping[str, str]) -> str:
    """What a launcher that sets LOCAL_RANK does to a step and a save that take longer."""
    return (
        ", if that takes less than the 30 seconds after which deepspeed and torchrun kill it"
        if "LOCAL_RANK" in environment
        else ""
    )


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
