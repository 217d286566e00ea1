"""Split a dataset (.bin/.idx pair) into several, copying bytes; documents stay whole and in order."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from tqdm import tqdm

from megamesh.arguments import from_one
from megamesh.command import run_command
from megamesh.config.keys import DataConfig
from megamesh.data.store.split import Share, by_parts, by_range, by_shares, split
from megamesh.data.store.stored import Stored, completed_prefix
from megamesh.errors import ConfigError

EXAMPLES = """\
examples
  training, validation and test data: corpus_train, corpus_valid, corpus_test
      python tools/split_dataset.py --input data/corpus --output-prefix data/corpus --split 969,30,1
  the same with validation and test documents drawn from the whole corpus instead of its end
      python tools/split_dataset.py --input data/corpus --output-prefix data/corpus --split 969,30,1 --shuffle --seed 1
  eight parts with about the same number of tokens: corpus_part0 … corpus_part7
      python tools/split_dataset.py --input data/corpus --output-prefix data/corpus --parts 8
  1000 documents, to try something out: small.bin, small.idx
      python tools/split_dataset.py --input data/corpus --output-prefix data/small --documents 1000:2000

Without --shuffle the parts one after the other are the original bytes (tools/merge_datasets.py puts them together again). Every output has
a manifest. Training needs no split files: `split` in its configuration divides one dataset in the same way as --split."""


def document_range(text: str) -> tuple[int, int | None]:
    """Two numbers around a colon, either of which may be missing, as a type for argparse."""
    first, colon, last = text.partition(":")
    if not colon or not all(number.isdecimal() for number in (first, last) if number):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:LAST; 1000:2000 are the documents 1000 to 1999")
    return int(first or 0), int(last) if last else None


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", required=True, metavar="PREFIX", help="the dataset; its --output-prefix will do where that wrote one"
    )
    parser.add_argument("--output-prefix", required=True, help="start of the outputs' names")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--split", metavar="SHARES", help="shares of train, valid and test, by documents: 969,30,1")
    how.add_argument("--parts", type=from_one, metavar="N", help="N consecutive parts, about equal in tokens")
    how.add_argument("--documents", type=document_range, metavar="FIRST:LAST", help="documents FIRST to LAST − 1 only")
    parser.add_argument(
        "--shuffle", action="store_true", help="with --split: draw the documents of each share at random"
    )
    parser.add_argument("--seed", type=int, default=1234, help="of --shuffle (default: 1234)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.add_argument(
        "--sequences-are-documents", action="store_true",
        help="count every sequence as a document, for files whose document index was lost",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    if args.shuffle and args.split is None:
        parser.error("--shuffle goes with --split")
    if args.seed < 0:
        parser.error(f"--seed {args.seed} is below 0")
    return args


def choose(args: argparse.Namespace) -> Callable[[Stored], list[Share]]:
    """How the documents are dealt out."""
    if args.parts is not None:
        return partial(by_parts, num_parts=args.parts)
    if args.documents is not None:
        first, last = args.documents
        return partial(by_range, first=first, last=last)
    try:
        shares = DataConfig(split=args.split).split_shares
    except ValueError as error:
        raise ConfigError(f"--split={args.split} {error}; write shares such as 969,30,1") from error
    return partial(by_shares, shares=shares, seed=args.seed if args.shuffle else None)


def run(args: argparse.Namespace) -> None:
    started = time.monotonic()
    prefix = completed_prefix(args.input)
    with tqdm(unit="B", unit_scale=True, desc="splitting", mininterval=0.5) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        written = split(
            prefix,
            args.output_prefix,
            choose(args),
            overwrite=args.overwrite,
            sequences_are_documents=args.sequences_are_documents,
            on_bytes=show,
        )
    for prefix, output in written.items():
        print(f"{prefix}: {output.documents:,} documents, {output.tokens:,} tokens")
    print(f"done in {time.monotonic() - started:.1f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
