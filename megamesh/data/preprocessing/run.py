"""The order of the steps.

    rank 0: outputs checked, inputs found, folder locked, shards cut ─▶ every rank: its shards ─▶ facts of all shards, on every rank
    ─▶ every rank: its pieces copied into the final files ─▶ rank 0: indexes, report, manifest, names

Outputs appear under their final names when all of them are complete. What is complete of a run that was killed, or stopped at a bad record,
is found again by the next one with the same inputs and options.
"""

import heapq
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megamesh.data.preprocessing.encoders import Encoder
from megamesh.data.preprocessing.folder import WorkFolder
from megamesh.data.preprocessing.join import Joiner, make_targets, write_indexes
from megamesh.data.preprocessing.places import check_inputs, check_names, check_outputs, check_shared, output_prefix
from megamesh.data.preprocessing.pool import Pool
from megamesh.data.preprocessing.progress import Counters
from megamesh.data.preprocessing.ranks import OneProcess, Ranks
from megamesh.data.preprocessing.records import describe_nothing, write_manifest_of, write_report
from megamesh.data.preprocessing.shard import Job, Settings, ShardFacts, do_shard, make_jobs
from megamesh.data.sources.inputs import InputFile
from megamesh.data.sources.shards import cut_into_shards
from megamesh.data.store.format import bin_path
from megamesh.data.store.manifest import digest, manifest_path, read_manifest
from megamesh.data.store.own_files import report_path
from megamesh.data.store.token_range import keep_range
from megamesh.errors import DataError

log = logging.getLogger(__name__)

SMALLEST_SHARD = 8 << 20
LARGEST_SHARD = 1 << 30
SHARDS = 4096
COMPLETE_IS_CHEAPER = 20  # a complete shard is read once more, not encoded
Show = Callable[[Counters, int], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Summary:
    """What was written: prefixes of the outputs, their documents and tokens (not labels), and what of the input is not in them."""

    num_input_bytes: int
    prefixes: list[str]
    num_documents: int
    num_tokens: int
    num_empty: int
    skipped: dict[str, int]
    report: Path | None


@dataclass(frozen=True)
class _Work:
    """What the processes of a pool do: encode a shard."""

    make_encoder: Callable[[], Encoder]
    settings: Settings
    folder: WorkFolder
    counters: Counters

    def __call__(self) -> Callable[[Job], ShardFacts]:
        encoder = self.make_encoder()

        def work(job: Job) -> ShardFacts:
            with _disk_errors_named(self.folder):
                return do_shard(job, encoder, self.settings, self.folder, self.counters.add)

        return work


def preprocess(
    find_inputs: Callable[[], Sequence[InputFile]],
    prefix: str | Path,
    make_encoder: Callable[[], Encoder],
    settings: Settings,
    *,
    workers: int = 1,
    overwrite: bool = False,
    ranks: Ranks | None = None,
    show: Show = lambda counters, total_bytes: nullcontext(),
) -> Summary:
    """Tokenize files into `<prefix>_<output>_document.bin/.idx`, with a manifest `<prefix>.json`.

    `make_encoder` is called in this process and, under MPI with several workers, in each of them (then it must be picklable). All ranks of
    a job call this alike; rank 0 finds the inputs, when it is known that outputs may be written. `show` gets what is counted and the bytes
    that this rank has to do, and is entered while shards are encoded. Raises DataError: a bad record with its place, damaged input,
    existing or unwritable outputs.
    """
    ranks, counters = ranks or OneProcess(), Counters()
    folder = WorkFolder(prefix)
    encoder = make_encoder()
    check_names(prefix, encoder.outputs)
    names = {Path(output_prefix(prefix, name)).name: dtype for name, dtype in encoder.outputs.items()}
    with ExitStack() as stack:
        stack.enter_context(_disk_errors_named(folder))
        plan: list[Job] = []
        inputs: Sequence[InputFile] = ()
        finished = False
        if ranks.rank == 0:
            check_outputs(prefix, list(names), overwrite)
            inputs = find_inputs()
            check_inputs(prefix, list(names), inputs)
            stack.enter_context(folder.locked())
            check_outputs(prefix, list(names), overwrite)  # another run may have ended while this one waited
            shards = cut_into_shards(inputs, _shard_bytes(inputs), settings.read.separator)
            plan = make_jobs(shards, encoder.tokenizer.digest, settings)
            finished = _finish_publication(plan, prefix, folder)
            if not finished:
                make_targets(list(names), folder)
        plan, dealt, finished = ranks.broadcast((plan, _deal(plan, ranks.size, folder), finished))
        if finished:
            return _summary(prefix, names)
        check_shared(folder, ranks)
        work = _Work(make_encoder if ranks.size > 1 else lambda: encoder, settings, folder, counters)
        facts = _encode(plan, dealt[ranks.rank], list(names), work, workers, ranks, show)
        if ranks.rank == 0:
            write_indexes(plan, facts, names, folder)
            write_report(plan, facts, folder)
            write_manifest_of(plan, facts, names, encoder, settings, inputs, folder)
            folder.publish(_digest(plan), outdated=report_path(prefix))
            _keep_ranges(prefix, facts, names)
        ranks.barrier()
    return _summary(prefix, names)


def _encode(
    plan: Sequence[Job], mine: Sequence[int], names: list[str], work: _Work, workers: int, ranks: Ranks, show: Show
) -> list[ShardFacts]:
    """Encode this rank's jobs and join its pieces to the final files; the facts of all jobs. DataError where no document is left."""
    done: dict[int, ShardFacts] = {}
    with ExitStack() as stack:
        pool = stack.enter_context(Pool(work, workers, "spawn" if ranks.size > 1 else "fork"))
        joiner = stack.enter_context(Joiner(plan, mine, names, work.folder))
        with show(work.counters, sum(plan[i].shard.num_bytes for i in mine)):
            for number, fact in zip(mine, pool.run([plan[i] for i in mine]), strict=True):
                done[number] = fact
                joiner.add({number: fact})
        for found in ranks.gather(done):
            done.update(found)
        joiner.add(done, threads=workers)
        joiner.finish()
        ranks.barrier()
    facts = [done[i] for i in range(len(plan))]
    if not sum(fact.documents for fact in facts):
        raise DataError(describe_nothing(plan, facts, work.folder))
    return facts


def _finish_publication(plan: Sequence[Job], prefix: str | Path, folder: WorkFolder) -> bool:
    """Whether a killed run of this plan was complete but for names, which its outputs have now. Raises DataError if it was of another."""
    published = folder.finish_publication()
    if published is not None and published != _digest(plan):
        raise DataError(
            f"{prefix}: a run with other inputs or options was complete but for the names of its outputs, which they have now; "
            "choose another --output-prefix or add --overwrite"
        )
    return published is not None


def _digest(plan: Sequence[Job]) -> str:
    return digest("".join(job.identity for job in plan).encode())


def _summary(prefix: str | Path, names: Collection[str]) -> Summary:
    """Read from the manifest, so that it says what is on the disk."""
    manifest = read_manifest(manifest_path(prefix))
    counts = manifest.counts
    assert counts is not None, "the manifest of a run has counts"
    outputs = [manifest.outputs[name] for name in names]
    return Summary(
        sum(file.bytes for file in manifest.inputs),
        [str(Path(prefix).parent / name) for name in names],
        counts.documents,
        sum(output.tokens for output in outputs if not output.labels),
        counts.empty,
        dict(counts.skipped),
        report_path(prefix) if counts.skipped else None,
    )


def _shard_bytes(inputs: Sequence[InputFile]) -> int:
    """Depends on the inputs alone, so that any number of workers or ranks finds the same shards."""
    return min(max(sum(file.num_bytes for file in inputs) // SHARDS, SMALLEST_SHARD), LARGEST_SHARD)


def _deal(plan: Sequence[Job], size: int, folder: WorkFolder) -> list[list[int]]:
    """Job numbers of each rank, about equal in bytes that are still to be done."""
    if size == 1:
        return [list(range(len(plan)))]
    left = [job.shard.num_bytes // (COMPLETE_IS_CHEAPER if folder.facts(job.identity).exists() else 1) for job in plan]
    ranks = [(0, rank) for rank in range(size)]
    dealt: list[list[int]] = [[] for _ in range(size)]
    for number in sorted(range(len(plan)), key=lambda i: -left[i]):
        load, rank = heapq.heappop(ranks)
        dealt[rank].append(number)
        heapq.heappush(ranks, (load + left[number], rank))
    return [sorted(numbers) for numbers in dealt]


@contextmanager
def _disk_errors_named(folder: WorkFolder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or folder.path}: {error.strerror or error}; no output was written. Free space there, or choose another "
            "--output-prefix; the same command continues with the shards that are complete"
        ) from error


def _keep_ranges(prefix: str | Path, facts: Sequence[ShardFacts], names: Mapping[str, np.dtype]) -> None:
    """Spare training the scan of the tokens."""
    for number, (name, dtype) in enumerate(names.items()):
        found = [fact.outputs[number] for fact in facts if fact.outputs[number].tokens]
        if found:
            smallest, largest = min(o.smallest_id for o in found), max(o.largest_id for o in found)
            keep_range(bin_path(Path(prefix).parent / name), dtype, smallest, largest)
