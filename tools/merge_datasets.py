"""Merge datasets (.bin/.idx pairs) into one, copying bytes: no token passes through Python, and the order is the order given."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from megamesh.command import run_command
from megamesh.data.store.merge import merge
from megamesh.data.store.stored import find_prefixes
from megamesh.errors import ConfigError, DataError

EXAMPLES = """\
examples
  two datasets
      python tools/merge_datasets.py --input data/books data/web --output-prefix data/all
  everything in a folder, and what a pattern finds (in quotes), each sorted by name
      python tools/merge_datasets.py --input shards/ 'more/part*_text_document' --output-prefix data/all
  labels apart from their tokens, each in the same order
      python tools/merge_datasets.py --input 'chats/*_messages_document' --output-prefix data/chats_messages_document
      python tools/merge_datasets.py --input 'chats/*_label_document' --output-prefix data/chats_messages_label_document
  as many as you like, one prefix per line
      python tools/merge_datasets.py --input-list shards.txt --output-prefix data/all

Merging what shards of a corpus were tokenized to gives the bytes that one pass over the corpus gives. The manifest data/all.json names the
inputs and holds their digests (tools/inspect_dataset.py --verify). To mix datasets by weight, do not merge them: give training all of
them as train_data_paths with train_data_weights."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", nargs="+", default=[], metavar="PREFIX", help="prefixes, folders or patterns of datasets, in order"
    )
    parser.add_argument("--input-list", type=Path, metavar="FILE", help="a file with one of these per line")
    parser.add_argument("--output-prefix", required=True, help="<output-prefix>.bin, .idx and .json are written")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.add_argument(
        "--widen",
        action="store_true",
        help="where number formats differ, write the one that holds all (uint16 → int32)",
    )
    parser.add_argument(
        "--allow-different-tokenizers", action="store_true",
        help="merge although the manifests name different tokenizers (their ids mean different text)",
    )  # fmt: skip
    parser.add_argument(
        "--sequences-are-documents", action="store_true",
        help="count every sequence as a document, for files whose document index was lost",
    )  # fmt: skip
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    prefixes = find_prefixes([*args.input, *read_list(args.input_list)])
    if not prefixes:
        raise ConfigError("nothing to merge: name datasets with --input or --input-list")
    started = time.monotonic()
    with tqdm(unit="B", unit_scale=True, desc="merging", mininterval=0.5) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        written = merge(
            prefixes,
            args.output_prefix,
            overwrite=args.overwrite,
            widen=args.widen,
            allow_different_tokenizers=args.allow_different_tokenizers,
            sequences_are_documents=args.sequences_are_documents,
            on_bytes=show,
        )
    seconds = max(time.monotonic() - started, 1e-9)
    print(
        f"{args.output_prefix}: {written.documents:,} documents, {written.tokens:,} tokens from {len(prefixes)} datasets "
        f"in {seconds:.1f} s ({written.bin_bytes / seconds / 1e6:,.0f} MB/s)"
    )


def read_list(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not a readable list ({error}); --input-list names a text file, one prefix per line"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    return run_command(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
