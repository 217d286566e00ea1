"""When one process of a run is gone, the others say which, once, and leave.

    process ──open connection──▶ keepers (megamesh.engine.meeting)         the kernel closes it when the process ends, however it ends

    closed without a word       gone: killed, out of memory, its host lost
    "failed", then closed       it raised: its own output says why. All may be about to raise the same, so they get 10 seconds to
    "interrupted", then closed  Ctrl-C made it leave at once. All of them get that signal as a rule, so they get 10 seconds, too
    "done", then closed         the end of its work, or of a run that a signal stopped: nothing is said

The first keeper that lives waits a moment (several may go together), writes one line and tells all others to leave. Where it does not
act (stopped in a debugger) the second keeper does, and where both are gone every process speaks for itself: more than one line, none
hangs. A thread does all this, in every process, and ends the process from there (status 1, no clean-up, as after a kill; what is on
disk is made for that): a main thread inside a collective hears of nothing.

There are no heartbeats. A process that is slow, swapped out, stopped or compiling keeps its connections, so it is never taken for
dead; nothing is sent, and nothing wakes up, during training. A host that vanished is found by its kernel's silence (TCP keepalive,
5 minutes; where the network is cut in two, each side writes its line). What is not found: a process that lives and never comes to a
collective. The process group's timeout ends that.
"""

import logging
import math
import os
import selectors
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

from megamesh.engine.meeting import Meeting, meet

log = logging.getLogger(__name__)

DONE, FAILED, INTERRUPTED, LEAVE, GONE = b"d", b"f", b"i", b"l", b""
GONE_SECONDS, FAILED_SECONDS, TURN_SECONDS = 0.5, 10.0, 20.0
VERDICT_SECONDS, SAY_SECONDS = 60.0, 1.0
LOST_PEER = ("by peer", "Broken pipe", "ncclRemoteError", "remote process exit")
"""What gloo, torch's store and NCCL say when the other side is gone."""


@contextmanager
def leaving_together(mend: str) -> Iterator[None]:
    """Inside, this process ends (status 1) where another one ends early; the message closes with `mend`. A collective.

    A collective that failed since its other side is gone is not this process's error: it waits for the message instead.
    """
    meeting = meet() if dist.get_world_size() > 1 else None
    if not isinstance(meeting, Meeting):
        if meeting is not None and dist.get_rank() == 0:
            log.warning("no watch over processes that die: the others will wait for their timeouts (%s)", meeting)
        yield
        return
    watch = _Watch(meeting, mend)
    watch.start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) and _tells_of_a_lost_peer(error):
            time.sleep(VERDICT_SECONDS)
        watch.leave(FAILED)
        raise
    watch.leave(DONE)


def say_interrupted() -> None:
    """Tell all others that this process is about to leave at once. For a thread that ends the process."""
    for watch in list(_watches):
        with suppress(OSError):
            watch.main_thread.send(INTERRUPTED)
            watch.join(SAY_SECONDS)


def _tells_of_a_lost_peer(error: BaseException | None) -> bool:
    while error is not None:
        if any(sign in str(error) for sign in LOST_PEER):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Watch(threading.Thread):
    """Reads what others say, and when they stop; owns the connections."""

    def __init__(self, meeting: Meeting, mend: str):
        super().__init__(name="liveness", daemon=True)
        self.rank, self.meeting, self.mend = dist.get_rank(), meeting, mend
        self.ended: dict[int, bytes] = {}  # rank → its last word
        self.decide_at = math.inf
        self.selector = selectors.DefaultSelector()
        self.main_thread, own = socket.socketpair()
        self.sockets = [*meeting.connections.values(), self.main_thread, own]
        for rank, connection in (meeting.connections | {self.rank: own}).items():
            self.selector.register(connection, selectors.EVENT_READ, rank)
        _watches.add(self)

    def leave(self, word: bytes) -> None:
        """Say a last word to all and stop watching. For the main thread."""
        self.main_thread.send(word)
        self.join()
        _watches.discard(self)
        self.selector.close()
        for each in self.sockets:
            each.close()

    def run(self) -> None:
        while self.rank not in self.ended:
            act_at = self.decide_at + self._turn()
            seconds = None if act_at == math.inf else max(act_at - time.monotonic(), 0)
            # Twice: after SIGSTOP and SIGCONT the first returns nothing, although another process may have said all by then.
            events = self.selector.select(seconds) or self.selector.select(0)
            for key, _ in events:
                self._hear(key)
            if not events and time.monotonic() >= act_at:
                self._end_the_run()
        self._tell_all(self.ended[self.rank])

    def _hear(self, key: selectors.SelectorKey) -> None:
        connection = key.fileobj
        assert isinstance(connection, socket.socket), "only sockets are registered"
        try:
            word = connection.recv(1)
        except OSError:  # reset by peer, or no answer to keepalive
            word = GONE
        if word == LEAVE:
            os._exit(1)
        if word == GONE:
            self.selector.unregister(connection)
        if key.data in self.ended:
            return
        self.ended[key.data] = word
        if word != DONE:
            patience = GONE_SECONDS if word == GONE else FAILED_SECONDS
            self.decide_at = min(self.decide_at, time.monotonic() + patience)

    def _turn(self) -> float:
        """Seconds that this process leaves to those who should speak first."""
        keepers = [keeper for keeper in self.meeting.keepers if keeper not in self.ended]
        if self.rank in keepers:
            return TURN_SECONDS * keepers.index(self.rank)
        return math.inf if keepers else 0.0

    def _end_the_run(self) -> None:
        gone, failed, interrupted = (self._named(word) for word in (GONE, FAILED, INTERRUPTED))
        what = [f"{gone} ended without a word (killed, out of memory, or its host is lost)"] if gone else []
        what += [f"{failed} failed (its own message says why)"] if failed else []
        what += [f"Ctrl-C ended {interrupted}"] if interrupted else []
        message = f"error: {' and '.join(what)}; all others leave. {self.mend}\n"
        os.write(2, message.encode())  # at once and unlocked: the main thread may be writing, or stuck in it
        self._tell_all(LEAVE)
        os._exit(1)

    def _named(self, word: bytes) -> str:
        ranks = sorted(rank for rank, last_word in self.ended.items() if last_word == word)
        hosts = {host: [rank for rank in ranks if self.meeting.hosts[rank] == host] for host in self.meeting.hosts}
        return ", ".join(
            f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} on {host}"
            for host, ranks in hosts.items()
            if ranks
        )

    def _tell_all(self, word: bytes) -> None:
        for connection in self.meeting.connections.values():
            with suppress(OSError):
                connection.send(word)


_watches: "weakref.WeakSet[_Watch]" = weakref.WeakSet()


def _close_copies() -> None:
    """In a forked child (a data loader's worker): a connection ends with the last copy of it, and the child may live longer."""
    for watch in _watches:
        for each in watch.sockets:
            each.close()


os.register_at_fork(after_in_child=_close_copies)
