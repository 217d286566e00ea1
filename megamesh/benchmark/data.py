"""Speed of the way from text to samples, side by side with others'.

    documentation of this machine ─▶ a .jsonl ─▶ whole commands in turn, round by round: ours, GPT-NeoX's loop, Megatron's pool, datatrove
    lengths ─▶ sample index: ours, megatron-core's helper
    an indexed dataset ─▶ batches: the loader with and without processes

Every preprocessing run is a process of its own with a new output: start-up, tokenizing and writing count. Memory is the largest resident
set among its processes. The others get a smaller corpus, large enough for their start-up to
count little.
"""

import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from megamesh.data.samples.dataset import PackedDataset
from megamesh.data.samples.loader import iterate_batches
from megamesh.data.samples.sample_index import build_sample_index, build_sample_order
from megamesh.data.store.indexed import IndexedDataset
from megamesh.errors import ConfigError, DataError

DOCUMENTATION = ("/usr/share/doc", "/usr/share/man", "/usr/share/info", "/usr/share/perl", "/usr/include")
ENDINGS = {
    ".py",
    ".txt",
    ".md",
    ".rst",
    ".html",
    ".h",
    ".pod",
    ".gz",
    ".1",
    ".3",
    ".7",
    ".8",
    ".pyi",
    ".tex",
    ".xml",
    "",
}
TIMED = """
import os, sys, time  # a small process starts the command: a child's peak includes what its parent held when it was made
started = time.monotonic()
child = os.spawnvp(os.P_NOWAIT, sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(child, 0)
with open(sys.argv[1], "w") as file:
    file.write(f"{time.monotonic() - started} {usage.ru_maxrss}")
sys.exit(os.waitstatus_to_exitcode(status))
"""
LARGEST_FILE = 3_000_000
VOCABULARY = 50_257
NEOX = "NeoX-style loop"
LOOP = f"{NEOX}, 1 process"
TOKENIZER_BYTES = 40_000_000


@dataclass
class Way:
    """One way to preprocess: its command, and what was measured in each round."""

    name: str
    command: Callable[[Path], Sequence[str]]
    corpus: Path
    seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.num_bytes = self.corpus.stat().st_size

    @property
    def megabytes_per_second(self) -> float:
        return self.num_bytes / statistics.median(self.seconds) / 1e6

    def ratios(self, other: "Way") -> list[float]:
        """How many times as fast as another, round by round, per byte of input."""
        return [
            self.num_bytes / mine / (other.num_bytes / its)
            for mine, its in zip(self.seconds, other.seconds, strict=True)
        ]


def documentation() -> Iterator[str]:
    """Different texts found on this machine: documentation, manual pages, headers, Python sources; always in the same order."""
    roots = [Path(root) for root in (*DOCUMENTATION, sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"])]
    paths = sorted({
        Path(folder, name)
        for root in roots for folder, _, names in os.walk(root) for name in names if Path(name).suffix in ENDINGS
    })  # fmt: skip
    random.Random(0).shuffle(paths)
    seen = set()
    for path in paths:
        try:
            if path.is_symlink() or not 0 < path.stat().st_size < LARGEST_FILE:
                continue
            content = path.read_bytes()
            text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
        except (OSError, ValueError, EOFError):
            continue
        if hash(text) not in seen and "\0" not in text:
            seen.add(hash(text))
            yield text


def write_corpus(path: Path, num_bytes: int) -> Path:
    """Texts of this machine as a .jsonl of about `num_bytes`, less where the machine has no more."""
    written = 0
    with path.open("wb") as file:
        for text in documentation():
            written += file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
            if written >= num_bytes:
                break
    if not written:
        raise DataError("no text found on this machine; name a file with --input")
    return path


def head(source: Path, target: Path, num_bytes: int) -> Path:
    """The first lines of a corpus, about `num_bytes` of them. Raises DataError where one has no text."""
    with source.open("rb") as lines, target.open("wb") as file:
        for number, line in enumerate(lines, start=1):
            if file.tell() >= num_bytes:
                break
            _text_of(line, source, number)
            file.write(line)
    if not target.stat().st_size:
        raise DataError(f"{source}: is empty; name a .jsonl with a text in each line")
    return target


def _text_of(line: bytes, source: Path, number: int) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{source}:{number}: not a line like {{"text": "…"}} ({error!r})') from error
    if not isinstance(text, str):
        raise DataError(f"{source}:{number}: its text is no string")
    return text


def train_vocabulary(corpus: Path, path: Path) -> Path:
    """A byte-level BPE of 50,257 tokens, trained on the beginning of a corpus."""
    from megamesh.tokenizer.train import train_byte_level_bpe

    def texts() -> Iterator[str]:
        done = 0
        with corpus.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                done += len(line)
                if done > TOKENIZER_BYTES:
                    return
                yield _text_of(line, corpus, number)

    train_byte_level_bpe(texts(), path, vocab_size=VOCABULARY)
    return path


def ways(corpus: Path, part: Path, vocabulary: Path, workers: int) -> list[Way]:
    """Ours with one process and with several, and what is installed of the others."""
    tool = str(Path(__file__).parents[2] / "tools" / "preprocess_data.py")

    def ours(processes: int) -> Way:
        def command(prefix: Path) -> list[str]:
            return [
                sys.executable, tool, "--input", str(corpus), "--tokenizer-type", "HFTokenizer", "--vocab-file", str(vocabulary),
                "--append-eod", "--workers", str(processes), "--output-prefix", str(prefix),
            ]  # fmt: skip

        return Way(f"MegaMesh, {_processes(processes)}", command, corpus)

    def others(name: str, way: str, processes: int) -> Way:
        def command(prefix: Path) -> list[str]:
            words = [way, str(part), str(vocabulary), str(prefix), str(processes)]
            return [sys.executable, "-m", "megamesh.benchmark.data_baselines", *words]

        return Way(f"{name}, {_processes(processes)}", command, part)

    found = [ours(1), ours(workers)] if workers > 1 else [ours(1)]
    found.append(others(NEOX, "loop", 1))
    if find_spec("megatron") is not None:
        found.append(others("Megatron-style pool", "pool", workers))
    if find_spec("datatrove") is not None:
        found.append(others("datatrove", "datatrove", 1))
    return found


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def measure_ways(candidates: Sequence[Way], rounds: int, folder: Path) -> Sequence[Way]:
    """Every way once per round, in turn; the ways, which hold what was measured. Raises DataError where one fails."""
    for _ in range(rounds):
        for way in candidates:
            with tempfile.TemporaryDirectory(dir=folder) as work:
                errors = Path(work) / "errors"
                with errors.open("wb") as file:
                    command = [sys.executable, "-c", TIMED, str(Path(work) / "usage"), *way.command(Path(work) / "out")]
                    status = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
                if status:
                    raise DataError(f"{way.name} failed:\n{errors.read_text(errors='replace')[-2000:]}")
                seconds, kibibytes = (Path(work) / "usage").read_text().split()
                way.seconds.append(float(seconds))
                way.peak_bytes.append(int(kibibytes) * 1024)
    return candidates


def keep_output(way: Way, folder: Path) -> str:
    """Run a way of ours once more, and keep what it writes; the prefix of the dataset."""
    subprocess.run(way.command(folder / "out"), check=True, capture_output=True)
    return str(folder / "out_text_document")


@dataclass(frozen=True)
class IndexTimes:
    """Seconds of each round to cut `num_tokens` tokens into samples; empty where the other's helper is not installed."""

    num_tokens: int
    num_documents: int
    ours: list[float]
    megatron: list[float]


def measure_index(num_tokens: int, tokens_per_document: int, sequence_length: int, rounds: int) -> IndexTimes:
    """The sample index of one epoch over random document lengths, ours and megatron-core's in turn; their arrays are compared."""
    draw = np.random.default_rng(0)
    num_documents = num_tokens // tokens_per_document
    lengths = draw.integers(1, 2 * tokens_per_document, num_documents, dtype=np.int32)
    order = draw.permutation(num_documents).astype(np.int32)
    helper = _megatron_helper()
    ours: list[float] = []
    megatron: list[float] = []
    for _ in range(rounds):
        started = time.monotonic()
        index = build_sample_index(lengths, order, 0, sequence_length)
        ours.append(time.monotonic() - started)
        if helper is not None:
            started = time.monotonic()
            theirs = helper(lengths, order, sequence_length, 1, int(lengths.sum(dtype=np.int64)))
            megatron.append(time.monotonic() - started)
            if not np.array_equal(index, theirs):
                raise DataError("the sample index differs from megatron-core's")
    return IndexTimes(int(lengths.sum(dtype=np.int64)), num_documents, ours, megatron)


def _megatron_helper() -> Callable[..., np.ndarray] | None:
    if find_spec("megatron") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of accelerators' libraries, which are not needed here
        from megatron.core.datasets.helpers import build_sample_idx  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return build_sample_idx  # type: ignore[no-any-return,unused-ignore]


def measure_loader(prefix: str, sequence_length: int, micro_batch: int, num_workers: int, rounds: int) -> list[float]:
    """Samples per second of each round after the first batch: one pass, at most 20,000 samples, in shuffled order."""
    indexed = IndexedDataset(prefix)
    order = build_sample_order(np.array(indexed.lengths), 0, 1, sequence_length, 0)
    dataset = PackedDataset(indexed, order, sequence_length)
    total = min(len(dataset), 20_000) // micro_batch * micro_batch
    if total == 0:
        raise ConfigError(
            f"{prefix}: {len(dataset)} samples are fewer than a micro-batch of {micro_batch}; use a larger corpus"
        )
    speeds = []
    for _ in range(rounds):
        batches = iterate_batches(
            dataset, consumed_samples=0, total_samples=total, micro_batch_size=micro_batch, dp_rank=0, dp_size=1,
            num_workers=num_workers,
        )  # fmt: skip
        next(batches)  # processes are up
        started = time.monotonic()
        for _batch in batches:
            pass
        speeds.append((total - micro_batch) / (time.monotonic() - started))
    return speeds
