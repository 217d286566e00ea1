"""What reading gives: records, and the ones that are bad; and the options of reading.

    reader ──add──▶ Found ──take──▶ Records (about 1 MiB of text) ──▶ …

A reader adds to one `Found` what it sees and yields how far in the file it is; `take` hands over what was added since the last time. So
every line, row or document is counted once, and is either a value under every key, or one `BadRecord`, or a blank line.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Reason = Literal[
    "bad-json",
    "bad-utf-8",
    "not-an-object",
    "missing-key",
    "null",
    "not-a-string",
    "bad-message",
    "surrogate",
    "too-long",
]


@dataclass(frozen=True)
class ReadOptions:
    """How records are read.

    keys: one text per key and record; a text file gives its text under every key.
    separator: what stands between the documents of a text file; None makes every file one document.
    max_document_bytes: a longer line or document is a bad record and is never held in memory.
    join_paragraphs: a list of strings is one text, an empty line between them, as in lm_dataformat.
    messages: a value is a list of JSON objects with role and content (a conversation), passed on as it is. No text is one.
    mend: what the message about a missing key says to do.
    """

    keys: tuple[str, ...] = ("text",)
    separator: str | None = None
    max_document_bytes: int = 64 << 20
    join_paragraphs: bool = False
    messages: bool = False
    mend: str = "see --jsonl-keys"


@dataclass(frozen=True)
class BadRecord:
    """A record that gives no text.

    line: number of the line, row or document, from 1, counted from the shard's start; in an archive from the start of `member`.
    """

    line: int
    reason: Reason
    message: str
    member: str = ""


@dataclass(frozen=True)
class Records:
    """Part of a shard.

    values: one list per key, aligned. num_bytes: bytes of the file on disk since the previous part. num_lines: lines, rows or documents
    since then, blank lines and bad records too.
    """

    values: tuple[list[Any], ...]
    bad: list[BadRecord]
    num_bytes: int
    num_lines: int


@dataclass
class Found:
    """Collects what a reader sees."""

    options: ReadOptions
    values: tuple[list[Any], ...] = ()
    bad: list[BadRecord] = field(default_factory=list)
    size: int = 0  # bytes of text, roughly
    line: int = 0  # of the shard, or of the member
    member: str = ""
    _taken_lines: int = 0
    _earlier_lines: int = 0

    def __post_init__(self) -> None:
        self.values = tuple([] for _ in self.options.keys)

    def enter_member(self, name: str) -> None:
        """Count lines from 1 again, under a name."""
        self._earlier_lines += self.line
        self.line, self.member = 0, name

    def add_text(self, text: str) -> None:
        """The next record: one text for every key. A text is no conversation."""
        if self.options.messages:
            self.add_bad(
                "not-a-string", "a text file holds no lists of messages; give conversations as .jsonl or .parquet"
            )
            return
        self.line += 1
        for values in self.values:
            values.append(text)

    def add_values(self, record: Sequence[Any]) -> None:
        """The next record: one value per key."""
        self.line += 1
        for values, value in zip(self.values, record, strict=True):
            values.append(value)

    def add_bad(self, reason: Reason, message: str) -> None:
        """The next record is bad."""
        self.line += 1
        self.bad.append(BadRecord(self.line, reason, message, self.member))

    @property
    def too_long(self) -> str:
        """What is said of a document that is too long."""
        return f"longer than the {self.options.max_document_bytes:,} bytes that a document may have"

    def take(self, num_bytes: int) -> Records:
        """What was added since the last time."""
        lines = self._earlier_lines + self.line
        records = Records(self.values, self.bad, num_bytes, lines - self._taken_lines)
        self.values, self.bad = tuple([] for _ in self.values), []
        self.size, self._taken_lines = 0, lines
        return records

    @property
    def is_empty(self) -> bool:
        """Nothing was added since the last time."""
        return self._earlier_lines + self.line == self._taken_lines
