"""What is done: counted by the workers, shown by a thread.

A terminal gets a bar; a log file, and each rank of an MPI job, a line every few seconds.
"""

import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from types import TracebackType

from tqdm import tqdm

BAR_SECONDS = 0.5
LINE_SECONDS = 10.0


class Counters:
    """Input bytes, documents and tokens done, summed over processes."""

    def __init__(self) -> None:
        self._values = get_context("spawn").Array("q", 3)

    def add(self, num_bytes: int, num_documents: int, num_tokens: int) -> None:
        with self._values.get_lock():
            for i, count in enumerate((num_bytes, num_documents, num_tokens)):
                self._values[i] += count

    def read(self) -> tuple[int, int, int]:
        num_bytes, num_documents, num_tokens = self._values[:]
        return num_bytes, num_documents, num_tokens


class Display:
    """Shows counters while its `with` block runs.

    `name` leads the line; `num_docs`: documents in the input, if known; `log_interval`: fewest documents between two updates; `write`
    receives a line every few seconds and one at the end, unless `bar` is set and standard error is a terminal.
    """

    def __init__(
        self,
        counters: Counters,
        total_bytes: int,
        *,
        name: str,
        num_docs: int | None,
        log_interval: int,
        bar: bool,
        write: Callable[[str], None],
    ):
        self._write = write
        self._counters, self._total, self._name = counters, total_bytes, name
        self._num_docs, self._log_interval = num_docs, log_interval
        self._bar = bar and sys.stderr.isatty()
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._started = time.monotonic()
        self._shown_documents = 0

    def _counts(self) -> str:
        num_bytes, documents, tokens = self._counters.read()
        seconds = max(time.monotonic() - self._started, 1e-9)
        known = "" if self._num_docs is None else f" of {self._num_docs:,}"
        return f"{documents:,}{known} documents, {tokens:,} tokens, {num_bytes / seconds / 1e6:,.1f} MB/s"

    def _show(self) -> None:
        if self._bar:
            self._show_bar()
        else:
            while not self._finished.wait(LINE_SECONDS):
                if self._moved():
                    self._write(self._line())
            self._write(self._line())

    def _moved(self) -> bool:
        documents = self._counters.read()[1]
        if documents - self._shown_documents < self._log_interval:
            return False
        self._shown_documents = documents
        return True

    def _line(self) -> str:
        done = self._counters.read()[0]
        seconds = time.monotonic() - self._started
        left = "" if not done else f", {tqdm.format_interval(seconds * (self._total - done) / done)} left"
        return f"{self._name}: {done / max(self._total, 1):.0%} of {self._total / 1e6:,.0f} MB, {self._counts()}{left}"

    def _show_bar(self) -> None:
        with tqdm(total=self._total, unit="B", unit_scale=True, desc=self._name) as bar:
            while True:
                finished = self._finished.wait(BAR_SECONDS)
                if self._moved() or finished:
                    bar.set_postfix_str(self._counts(), refresh=False)
                    bar.update(self._counters.read()[0] - bar.n)
                if finished:
                    return

    def __enter__(self) -> "Display":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finished.set()
        self._thread.join()
