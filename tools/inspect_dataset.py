"""Look into datasets (.bin/.idx pairs): what they hold, how long their documents are, and whether they are as they were written.

    python tools/inspect_dataset.py data/corpus                          statistics, and a histogram of the documents' lengths
    python tools/inspect_dataset.py data/books data/web                  token counts of several, total and shares (without labels)
    python tools/inspect_dataset.py data/corpus --plot lengths.png       the histogram as a picture
    python tools/inspect_dataset.py data/corpus --document 12 --ids      one document's token ids
    python tools/inspect_dataset.py data/corpus --document 12 --tokenizer-type HFTokenizer --vocab-file tokenizer.json     its text
    python tools/inspect_dataset.py data/ --verify                       every byte, against the manifests
    python tools/inspect_dataset.py data/corpus --vocab-size 50257       are all ids below 50257?

Folders and patterns stand for all datasets in them. Exit status: 0, or 1 where --verify or --vocab-size finds a problem or something is
wrong with the files.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any, get_args

from tqdm import tqdm

from megamesh.arguments import from_one, picture
from megamesh.command import json_text, run_command
from megamesh.config.keys import TokenizerConfig
from megamesh.data.store.indexed import IndexedDataset
from megamesh.data.store.statistics import Bin, Statistics, shares, statistics
from megamesh.data.store.stored import Sections, Stored, find_prefixes, open_stored
from megamesh.data.store.verification import Problem, id_problem, verify
from megamesh.errors import DataError
from megamesh.tables import aligned
from megamesh.tokenizer import build_tokenizer

TOKENIZER_TYPES = get_args(TokenizerConfig.model_fields["tokenizer_type"].annotation)
BAR_WIDTH = 40


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", nargs="+", metavar="PREFIX", help="prefixes, folders or patterns of datasets")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=picture, metavar="FILE", help="write the histogram as .png, .pdf or .svg")
    parser.add_argument(
        "--sequences-are-documents", action="store_true",
        help="count every sequence as a document, for files whose document index was lost",
    )  # fmt: skip
    checks = parser.add_argument_group("checks")
    checks.add_argument("--verify", action="store_true", help="compare every byte with the manifest")
    checks.add_argument(
        "--verify-inputs", action="store_true", help="also the files that were tokenized, where they are still there"
    )
    checks.add_argument("--vocab-size", type=from_one, metavar="N", help="look for token ids that are not below N")
    shown = parser.add_argument_group("one document")
    shown.add_argument("--document", type=int, metavar="I", help="print document I, from 0")
    shown.add_argument("--ids", action="store_true", help="as token ids, one sequence per line")
    shown.add_argument("--tokenizer-type", choices=TOKENIZER_TYPES, help="the tokenizer that decodes it")
    shown.add_argument(
        "--vocab-file", help="tokenizer.json, sentencepiece model, vocab.json, .tiktoken or vocabulary of characters"
    )
    shown.add_argument("--merge-file", help="merges.txt of GPT2BPETokenizer")
    args = parser.parse_args(arguments)
    if args.document is not None and not args.ids and args.tokenizer_type is None:
        parser.error("--document needs --tokenizer-type (and its files) to decode it, or --ids")
    if args.document is None and (args.ids or args.tokenizer_type or args.vocab_file or args.merge_file):
        parser.error("--ids, --tokenizer-type and its files go with --document")
    checks_asked = args.verify or args.verify_inputs or args.vocab_size is not None
    if (args.document is not None) + bool(checks_asked) + (args.plot is not None) > 1:
        parser.error(
            "--document, --plot and the checks (--verify, --verify-inputs, --vocab-size) are for a command each"
        )
    return args


def run(args: argparse.Namespace) -> int:
    prefixes = find_prefixes(args.input)
    if args.document is not None:
        return show_document(args, prefixes)
    if args.verify or args.verify_inputs or args.vocab_size is not None:
        return check(args, prefixes)
    found = [statistics(open_one(args, prefix)) for prefix in prefixes]
    if args.plot is not None:
        from megamesh.diagnostics.length_plot import plot_lengths

        plot_lengths(found, args.plot)
    parts = shares([0 if one.labels else one.tokens for one in found])
    if args.json:
        rows = [asdict(one) | {"share": part} for one, part in zip(found, parts, strict=True)]
        print(json_text({"datasets": rows, "total": totals(found)}))
    elif len(found) == 1:
        print(summary_text(found[0]))
    else:
        print(counts_text(found, parts))
    return 0


def open_one(args: argparse.Namespace, prefix: str) -> Stored:
    return open_stored(prefix, sequences_are_documents=args.sequences_are_documents)


def totals(found: Sequence[Statistics]) -> dict[str, int]:
    """Of tokens: labels stand beside them, one for each."""
    keys = ("documents", "sequences", "tokens", "bin_bytes", "empty_documents")
    return {key: sum(getattr(one, key) for one in found if not one.labels) for key in keys}


def summary_text(found: Statistics) -> str:
    """One dataset, and the histogram of its documents' lengths."""
    lengths = [f"shortest {found.shortest:,}", f"mean {found.mean:,.1f}", f"longest {found.longest:,}"]
    rows = {
        "documents": f"{found.documents:,} ({found.empty_documents:,} empty) in {found.sequences:,} sequences",
        "labels" if found.labels else "tokens": f"{found.tokens:,} ({found.dtype})",
        "bytes": f"{found.bin_bytes:,} of tokens, {found.idx_bytes:,} of index",
        "lengths": ", ".join(lengths),
        "quantiles": ", ".join(f"{share} {length:,}" for share, length in found.quantiles.items()) or "none",
    }
    lines = [found.prefix, *(f"  {name:<11}{value}" for name, value in rows.items())]
    return "\n".join([*lines, "", histogram_text(found.histogram)]).rstrip()


def histogram_text(histogram: Sequence[Bin]) -> str:
    """A line per doubling of the length; bars are documents."""
    most = max((entry.documents for entry in histogram), default=0)
    rows = [("tokens", "documents", "of all tokens")]
    tokens = max(sum(entry.tokens for entry in histogram), 1)
    for entry in histogram:
        name = f"{entry.first:,}" + (f" to {entry.last:,}" if entry.last > entry.first else "")
        rows.append((name, f"{entry.documents:,}", f"{entry.tokens / tokens:.1%}"))
    if len(rows) == 1:
        return ""
    head, *lines = aligned(rows, indent="  ").splitlines()
    bars = ["█" * -(-BAR_WIDTH * entry.documents // most) for entry in histogram]
    return "\n".join([head, *(f"{line}  {bar}".rstrip() for line, bar in zip(lines, bars, strict=True))])


def counts_text(found: Sequence[Statistics], parts: Sequence[float]) -> str:
    """Several datasets, their total, and each one's share of all tokens; labels have none and are not in the total."""
    rows: list[tuple[str, ...]] = [
        ("dataset", "documents", "sequences", "tokens", "share", "mean", "longest", "bytes", "ids")
    ]
    for one, part in zip(found, parts, strict=True):
        counts = (one.documents, one.sequences, one.tokens)
        sizes = (f"{one.mean:,.1f}", f"{one.longest:,}", f"{one.bin_bytes:,}", one.dtype)
        share = "labels" if one.labels else f"{part:.4%}"
        rows.append((one.prefix, *(f"{count:,}" for count in counts), share, *sizes))
    total = totals(found)
    counts = (total["documents"], total["sequences"], total["tokens"])
    mean = f"{total['tokens'] / max(total['documents'], 1):,.1f}"
    longest = f"{max((one.longest for one in found if not one.labels), default=0):,}"
    rows.append(("total", *(f"{count:,}" for count in counts), "", mean, longest, f"{total['bin_bytes']:,}", ""))
    return aligned(rows)


def show_document(args: argparse.Namespace, prefixes: Sequence[str]) -> int:
    if len(prefixes) > 1:
        raise DataError(f"--document needs one dataset, but {len(prefixes)} are named: {', '.join(prefixes[:5])}")
    stored = open_one(args, prefixes[0])
    if not 0 <= args.document < stored.num_documents:
        raise DataError(
            f"{prefixes[0]}: --document={args.document} does not exist; it has {stored.num_documents} documents, counted from 0"
        )
    sections, indexed = Sections(stored), IndexedDataset(prefixes[0])
    numbers = range(sections.boundary(args.document), sections.boundary(args.document + 1))
    sequences = [indexed[number].tolist() for number in numbers]
    text = None
    if args.tokenizer_type is not None:
        config = TokenizerConfig(
            tokenizer_type=args.tokenizer_type, vocab_file=args.vocab_file, merge_file=args.merge_file
        )
        tokenizer = build_tokenizer(config)
        ids = [number for sequence in sequences for number in sequence]
        outside = [number for number in ids if not 0 <= number < tokenizer.vocab_size]
        if outside:
            raise DataError(
                f"{prefixes[0]}: document {args.document} has the id {outside[0]}, but the tokenizer has {tokenizer.vocab_size} ids; give "
                "the tokenizer that wrote it, or --ids"
            )
        text = tokenizer.decode(ids)
    if args.json:
        print(json_text({"document": args.document, "sequences": sequences, "text": text}))
        return 0
    if args.ids:
        print("\n".join(" ".join(map(str, sequence)) for sequence in sequences))
    if text is not None:
        print(text)
    return 0


def check(args: argparse.Namespace, prefixes: Sequence[str]) -> int:
    found: dict[str, list[Problem]] = {prefix: [] for prefix in prefixes}
    started = time.monotonic()
    done = 0
    for prefix in prefixes:
        if args.verify or args.verify_inputs:
            with closing(tqdm(unit="B", unit_scale=True, desc="verifying", mininterval=0.5)) as bar:

                def show(num_bytes: int, total: int, bar: Any = bar) -> None:
                    bar.total = total
                    bar.update(num_bytes)

                found[prefix] += verify(prefix, inputs=args.verify_inputs, on_bytes=show)
                done += int(bar.n)
        if args.vocab_size is not None and not found[prefix]:
            problem = id_problem(open_one(args, prefix), args.vocab_size)
            found[prefix] += [problem] if problem is not None else []
    seconds = time.monotonic() - started
    damaged = {prefix: [asdict(problem) for problem in problems] for prefix, problems in found.items() if problems}
    if args.json:
        print(json_text({"checked": prefixes, "num_bytes": done, "seconds": seconds, "problems": damaged}))
        return 1 if damaged else 0
    for prefix, problems in found.items():
        print(
            f"{prefix}: " + ("all is well" if not problems else f"{len(problems)} problem" + "s" * (len(problems) > 1))
        )
        print("".join(f"  {problem}\n" for problem in problems), end="")
    return 1 if damaged else 0


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    results: list[int] = []
    try:
        status = run_command(lambda: results.append(run(args))) or results[0]
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
