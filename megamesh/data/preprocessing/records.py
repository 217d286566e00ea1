"""What is written about a run: the manifest `<prefix>.json`, and `<prefix>.skipped.jsonl` where records were left out.

A line of the report: {"place": "file:line", "reason": …, "message": …}, in the order of the input.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np

from megamesh.data.preprocessing.encoders import Encoder
from megamesh.data.preprocessing.folder import WorkFolder
from megamesh.data.preprocessing.shard import Job, Settings, ShardFacts
from megamesh.data.sources.inputs import InputFile
from megamesh.data.sources.records import BadRecord, place
from megamesh.data.store.format import bin_path, idx_path
from megamesh.data.store.manifest import (
    Input,
    Manifest,
    Output,
    Part,
    combine,
    digest_of_file,
    manifest_path,
    name_as_text,
    sum_counts,
    versions,
    write_manifest,
)
from megamesh.data.store.own_files import report_path

_NAMED = 3


def write_report(jobs: Sequence[Job], facts: Sequence[ShardFacts], folder: WorkFolder) -> None:
    """The bad records of all shards, into joined/; nothing where there are none."""
    if any(fact.skipped for fact in facts):
        with report_path(folder.joined / folder.prefix.name).open("w", encoding="utf-8") as report:
            for entry in _bad_records(jobs, facts, folder):
                report.write(json.dumps(entry, ensure_ascii=False) + "\n")


def describe_nothing(jobs: Sequence[Job], facts: Sequence[ShardFacts], folder: WorkFolder) -> str:
    """Why there is no document: how many records were left out for which reason, and the first bad ones, a line each."""
    files = list(dict.fromkeys(name_as_text(job.shard.file.path) for job in jobs))
    counts = sum_counts(facts)
    left_out = [f"{counts.empty:,} empty"] if counts.empty and counts.skipped else []
    left_out += [f"{number:,} {reason}" for reason, number in counts.skipped.items()]
    first = [f"{bad['place']}: {bad['message']}" for bad in islice(_bad_records(jobs, facts, folder), _NAMED)]
    problem = f"{', '.join(files[:5])}: no text in any record; nothing was written"
    return "\n".join([f"{problem}; left out: {', '.join(left_out)}" if left_out else problem, *first])


def _bad_records(jobs: Sequence[Job], facts: Sequence[ShardFacts], folder: WorkFolder) -> Iterator[dict[str, str]]:
    for job, fact, lines_before in _with_lines_before(jobs, facts):
        if fact.skipped:
            with folder.skipped(job.identity).open() as lines:
                for line in lines:
                    bad = BadRecord(**json.loads(line))
                    yield {
                        "place": place(job.shard, bad, lines_before),
                        "reason": bad.reason,
                        "message": bad.message,
                    }


def _with_lines_before(jobs: Sequence[Job], facts: Sequence[ShardFacts]) -> Iterator[tuple[Job, ShardFacts, int]]:
    """Every shard with the number of lines ahead of it in its file."""
    path, lines = None, 0
    for job, fact in zip(jobs, facts, strict=True):
        lines = lines if job.shard.file.path == path else 0
        yield job, fact, lines
        path, lines = job.shard.file.path, lines + fact.lines


def write_manifest_of(
    jobs: Sequence[Job],
    facts: Sequence[ShardFacts],
    names: Mapping[str, np.dtype],
    encoder: Encoder,
    settings: Settings,
    inputs: Sequence[InputFile],
    folder: WorkFolder,
) -> None:
    """The manifest, into joined/."""
    manifest = Manifest(
        outputs={
            name: _output(facts, number, dtype, folder.joined / name, labels=output in encoder.labels)
            for number, (output, (name, dtype)) in enumerate(zip(encoder.outputs, names.items(), strict=True))
        },
        tokenizer=encoder.tokenizer,
        inputs=_inputs(inputs, jobs, facts),
        options={**asdict(settings.read), **settings.described},
        counts=sum_counts(facts),
        versions=versions(),
    )
    write_manifest(manifest_path(folder.joined / folder.prefix.name), manifest)


def _output(facts: Sequence[ShardFacts], number: int, dtype: np.dtype, prefix: Path, *, labels: bool) -> Output:
    found = [fact.outputs[number] for fact in facts]
    documents = sum(fact.documents for fact in facts)
    filled = [output for output in found if output.tokens]
    return Output(
        documents=documents,
        sequences=documents,
        tokens=sum(output.tokens for output in found),
        dtype=dtype.name,
        bin_bytes=bin_path(prefix).stat().st_size,
        idx_digest=digest_of_file(idx_path(prefix)),
        smallest_id=min((output.smallest_id for output in filled), default=0),
        largest_id=max((output.largest_id for output in filled), default=0),
        parts=[Part(num_bytes=output.num_bytes, digest=output.digest) for output in filled],
        labels=labels,
    )


def _inputs(inputs: Sequence[InputFile], jobs: Sequence[Job], facts: Sequence[ShardFacts]) -> list[Input]:
    chunks: dict[Path, list[str]] = {}
    for job, fact in zip(jobs, facts, strict=True):
        chunks.setdefault(job.shard.file.path, []).extend(fact.input_chunks)
    return [
        Input(path=name_as_text(file.path.absolute()), bytes=file.num_bytes, digest=combine(chunks.get(file.path, [])))
        for file in inputs
    ]
