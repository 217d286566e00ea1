"""One shard: encoded into files of the work folder, or found there complete.

    records ─▶ bad ones counted and listed (or an error) ─▶ mended ─▶ empty ones counted ─▶ encoder ─▶ .tokens and .lengths per output
    the shard's part of the input ─▶ digests of its chunks

In every shard: records = documents + empty + skipped; this is checked, not assumed. A record is empty when the texts of all its keys are
(mended, with --ftfy), and is left out, as GPT-NeoX does; with several keys, the others keep the outputs aligned document by document.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from megamesh.data.preprocessing.encoders import Column, Encoder
from megamesh.data.preprocessing.folder import WorkFolder
from megamesh.data.sources.records import BadRecord, ReadOptions, Records, place, read_shard
from megamesh.data.sources.shard import Shard
from megamesh.data.store.manifest import CHUNK_BYTES, digest, digest_of_range
from megamesh.data.store.temporary import replace_file
from megamesh.errors import DataError

VERSION = 2
LONGEST_DOCUMENT = int(np.iinfo(np.int32).max)
SKIP_MEND = "mend or remove it, or leave such records out with --on-bad-line skip"

Progress = Callable[[int, int, int], None]
"""Receives input bytes, documents and tokens as they are done."""


@dataclass(frozen=True)
class Settings:
    """How records are read and what becomes of them.

    `described` names all that the outputs depend on besides the inputs, the tokenizer and `read`; all of it goes into the manifest.
    """

    read: ReadOptions = field(default_factory=ReadOptions)
    described: Mapping[str, Any] = field(default_factory=dict)
    skip_bad: bool = False


@dataclass(frozen=True)
class Job:
    """A shard to be done; `chunks` is the part [start, end) of its file that it digests, `identity` names its files."""

    shard: Shard
    modified_ns: int
    chunks: tuple[int, int]
    identity: str


@dataclass(frozen=True)
class OutputFacts:
    """A shard's part of one output: tokens, bytes and their digest, smallest and largest id."""

    tokens: int
    num_bytes: int
    digest: str
    smallest_id: int
    largest_id: int


@dataclass(frozen=True)
class ShardFacts:
    """What a complete shard holds; `lines` counts those of the input, `skipped` the bad records by reason."""

    records: int
    documents: int
    empty: int
    lines: int
    skipped: dict[str, int]
    outputs: list[OutputFacts]
    input_chunks: list[str]


def make_jobs(shards: Sequence[Shard], tokenizer_digest: str, settings: Settings) -> list[Job]:
    """The shards as jobs, in the order of the input. Each file's chunks are dealt to its shards."""
    jobs = []
    described = json.dumps([VERSION, tokenizer_digest, asdict(settings.read), settings.described], sort_keys=True)
    for shard, chunks in zip(shards, _deal_chunks(shards), strict=True):
        modified = os.stat(shard.file.path).st_mtime_ns
        of_file = [str(shard.file.path), shard.file.kind, shard.file.compression, shard.file.num_bytes, modified]
        identity = digest(json.dumps([described, of_file, shard.start, shard.end, chunks]).encode())[:32]
        jobs.append(Job(shard, modified, chunks, identity))
    return jobs


def _deal_chunks(shards: Sequence[Shard]) -> list[tuple[int, int]]:
    """For each shard, the byte range of whole chunks of its file which it digests."""
    ranges: list[tuple[int, int]] = []
    done = 0
    for number, shard in enumerate(shards):
        first = number == 0 or shards[number - 1].file != shard.file
        last = number + 1 == len(shards) or shards[number + 1].file != shard.file
        begin = 0 if first else ranges[-1][1]
        done = (0 if first else done) + shard.num_bytes
        end = shard.file.num_bytes if last else min(-(-done // CHUNK_BYTES) * CHUNK_BYTES, shard.file.num_bytes)
        ranges.append((begin, max(begin, end)))
    return ranges


def do_shard(job: Job, encoder: Encoder, settings: Settings, folder: WorkFolder, progress: Progress) -> ShardFacts:
    """The facts of a shard whose files are in the folder afterwards.

    Raises DataError with the place of a bad record (unless `skip_bad`), for a damaged input, and for one that changed meanwhile.
    """
    found = find_shard(job, settings, folder, len(encoder.outputs))
    if found is not None:
        outputs = zip(encoder.outputs, found.outputs, strict=True)
        num_tokens = sum(output.tokens for name, output in outputs if name not in encoder.labels)
        progress(job.shard.num_bytes, found.documents, num_tokens)
        return found
    with _ShardFiles(job, encoder.outputs, folder) as files:
        for records in read_shard(job.shard, settings.read):
            _list_bad(records.bad, job.shard, settings, files)
            values = _without_empty(encoder.prepare(records.values))
            files.count(records, len(values[0]))
            columns = encoder.encode(values)
            for number, (name, dtype) in enumerate(encoder.outputs.items()):
                files.write(number, columns[name], dtype, len(values[0]))
            num_tokens = sum(len(column.ids) for name, column in columns.items() if name not in encoder.labels)
            progress(records.num_bytes, len(values[0]), num_tokens)
        return files.complete()


def find_shard(job: Job, settings: Settings, folder: WorkFolder, num_outputs: int) -> ShardFacts | None:
    """The facts of a shard which is in the folder, whole; None where it is not, or holds bad records that must stop this run."""
    try:
        content = json.loads(folder.facts(job.identity).read_bytes())
        facts = ShardFacts(**{**content, "outputs": [OutputFacts(**output) for output in content["outputs"]]})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if len(facts.outputs) != num_outputs or (facts.skipped and not settings.skip_bad):
        return None
    for number, output in enumerate(facts.outputs):
        tokens, lengths = folder.tokens(job.identity, number), folder.lengths(job.identity, number)
        if _size(lengths) != 4 * facts.documents or _size(tokens) != output.num_bytes:
            return None
        with tokens.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != output.digest:
                return None
        if int(np.fromfile(lengths, dtype="<i4").sum(dtype=np.int64)) != output.tokens:
            return None
    return (
        facts if not facts.skipped or _num_lines(folder.skipped(job.identity)) == sum(facts.skipped.values()) else None
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else -1


def _list_bad(bad: Iterable[BadRecord], shard: Shard, settings: Settings, files: "_ShardFiles") -> None:
    for record in bad:
        if not settings.skip_bad:
            raise DataError(f"{place(shard, record)}: {record.message}; {SKIP_MEND}")
        files.skip(record)


def _without_empty(values: Sequence[list[Any]]) -> Sequence[list[Any]]:
    if len(values) == 1:
        return ([text for text in values[0] if text],)
    kept = [record for record in zip(*values, strict=True) if any(record)]
    return tuple(list(texts) for texts in zip(*kept, strict=True)) if kept else tuple([] for _ in values)


class _ShardFiles:
    """The files of a shard that is being written; they get their names in `complete`."""

    def __init__(self, job: Job, outputs: Mapping[str, np.dtype], folder: WorkFolder):
        self._job, self._folder = job, folder
        self._stack = ExitStack()
        finals = [folder.tokens(job.identity, n) for n in range(len(outputs))]
        finals += [folder.lengths(job.identity, n) for n in range(len(outputs))]
        self._names = {self._temporary(path): path for path in [*finals, folder.skipped(job.identity)]}
        files: list[IO[bytes]] = [self._stack.enter_context(path.open("wb")) for path in self._names]
        self._tokens = files[: len(outputs)]
        self._lengths = files[len(outputs) : -1]
        self._skipped = files[-1]
        self._digests = [hashlib.sha256() for _ in outputs]
        self._bounds: list[tuple[int, int]] = [(0, -1) for _ in outputs]
        self._num_tokens = [0] * len(outputs)
        self._num_bytes = [0] * len(outputs)
        self._records = self._empty = self._documents = self._lines = 0
        self._bad: Counter[str] = Counter()

    @staticmethod
    def _temporary(path: Path) -> Path:
        """A name of this process alone: what another machine's killed run still writes goes elsewhere."""
        return path.with_name(f"{path.name}.tmp-{os.uname().nodename}-{os.getpid()}")

    def count(self, records: Records, num_kept: int) -> None:
        self._records += len(records.values[0]) + len(records.bad)
        self._empty += len(records.values[0]) - num_kept
        self._lines += records.num_lines

    def skip(self, record: BadRecord) -> None:
        self._bad[record.reason] += 1
        self._skipped.write(json.dumps(asdict(record)).encode() + b"\n")

    def write(self, output: int, column: Column, dtype: np.dtype, num_documents: int) -> None:
        """Append documents to an output; each output counts them alike."""
        ids, lengths = column
        path = self._job.shard.file.path
        assert len(lengths) == num_documents, f"{path}: {len(lengths)} documents encoded instead of {num_documents}"
        assert int(lengths.sum()) == len(ids), f"{path}: {len(ids)} ids encoded, but {int(lengths.sum())} counted"
        if output == 0:
            self._documents += num_documents
        if not num_documents:
            return
        if int(lengths.max()) > LONGEST_DOCUMENT:
            raise DataError(
                f"{path}: a document of {lengths.max()} tokens; the format holds at most {LONGEST_DOCUMENT}: divide it"
            )
        if len(ids):
            smallest, largest = int(ids.min()), int(ids.max())
            bounds = np.iinfo(dtype)
            assert bounds.min <= smallest and largest <= bounds.max, (
                f"{path}: ids {smallest} … {largest} do not fit {dtype}"
            )
            known = self._bounds[output]
            self._bounds[output] = (
                (smallest, largest) if known[1] < known[0] else (min(known[0], smallest), max(known[1], largest))
            )
        content = np.ascontiguousarray(ids, dtype=dtype).data.cast("B")
        self._digests[output].update(content)
        self._tokens[output].write(content)
        self._num_tokens[output] += len(ids)
        self._num_bytes[output] += len(content)
        self._lengths[output].write(lengths.astype("<i4").tobytes())

    def complete(self) -> ShardFacts:
        """Name the files, the facts last."""
        job = self._job
        chunks = digest_of_range(job.shard.file.path, *job.chunks)
        status = os.stat(job.shard.file.path)
        if (status.st_size, status.st_mtime_ns) != (job.shard.file.num_bytes, job.modified_ns):
            raise DataError(f"{job.shard.file.path}: changed while it was read; start again when it is complete")
        accounted = self._documents + self._empty + self._bad.total()
        assert self._records == accounted, f"{job.shard}: {self._records} records read, {accounted} accounted for"
        facts = ShardFacts(
            self._records, self._documents, self._empty, self._lines, dict(self._bad),
            [
                OutputFacts(tokens, num_bytes, sha.hexdigest(), smallest, max(smallest, largest))
                for tokens, num_bytes, sha, (smallest, largest) in zip(
                    self._num_tokens, self._num_bytes, self._digests, self._bounds, strict=True
                )
            ],
            chunks,
        )  # fmt: skip
        self._stack.close()
        for temporary, final in self._names.items():
            os.replace(temporary, final)
        content = json.dumps(asdict(facts)).encode()
        replace_file(self._folder.facts(job.identity), lambda file: file.write(content))
        return facts

    def __enter__(self) -> "_ShardFiles":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stack.close()  # writes what is left, so a full disk may refuse
        finally:
            for temporary in self._names:
                temporary.unlink(missing_ok=True)
