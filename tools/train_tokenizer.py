"""Train a tokenizer: sentencepiece (unigram or bpe), byte-level BPE (tokenizer.json), or characters.

python tools/train_tokenizer.py --type sentencepiece --input corpus.jsonl --vocab-size 8000 --output spm.model
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from megamesh.command import run_command
from megamesh.data.sources import InputFile, ReadOptions, estimate_text_bytes, find_inputs, read_texts
from megamesh.data.sources.inputs import SUPPORTED
from megamesh.errors import ConfigError
from megamesh.tokenizer import train

USE_WITH = {"sentencepiece": "SPMTokenizer", "hf-bpe": "HFTokenizer", "characters": "CharLevelTokenizer"}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", required=True, choices=list(USE_WITH), help="kind of tokenizer")
    parser.add_argument(
        "--model-type",
        choices=["unigram", "bpe"],
        default="unigram",
        help="kind of sentencepiece model (default: unigram)",
    )
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        help=f"files, globs and folders, separated by spaces or commas: {SUPPORTED}",
    )
    parser.add_argument(
        "--jsonl-keys", nargs="+", default=["text"], help="keys or columns whose text is read (default: text)"
    )
    parser.add_argument(
        "--vocab-size", type=int, help="number of token ids, special ones included (characters: default all)"
    )
    parser.add_argument(
        "--max-bytes",
        type=int,
        default=200_000_000,
        help="text to learn from, evenly thinned (default: 200 MB); characters are collected from all of it",
    )
    parser.add_argument("--output", required=True, type=Path, help="file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser.parse_args(arguments)


def documents(files: Sequence[InputFile], options: ReadOptions) -> Iterator[str]:
    """Every text of the files, with a progress bar in bytes."""
    total = sum(file.num_bytes for file in files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="reading", mininterval=1) as bar:
        yield from read_texts(files, options, bar.update)


def run(args: argparse.Namespace) -> None:
    if args.output.is_dir():
        raise ConfigError(f"--output={args.output} is a folder; name a file")
    if args.output.exists() and not args.overwrite:
        raise ConfigError(f"--output={args.output} exists; name another file or add --overwrite")
    if args.vocab_size is None and args.type != "characters":
        raise ConfigError(f"--type {args.type} needs --vocab-size")
    if args.max_bytes < 1:
        raise ConfigError(f"--max-bytes={args.max_bytes} leaves no text to learn from")
    files, options = find_inputs(args.input), ReadOptions(keys=tuple(args.jsonl_keys))
    texts = train.non_empty(documents(files, options), ", ".join(str(file.path) for file in files))
    total_bytes = estimate_text_bytes(files, options)
    if args.type == "sentencepiece":
        lines = train.thinned(train.lines_of(texts), total_bytes=total_bytes, max_bytes=args.max_bytes)
        train.train_sentencepiece(lines, args.output, vocab_size=args.vocab_size, model_type=args.model_type)
    elif args.type == "hf-bpe":
        kept = train.thinned(texts, total_bytes=total_bytes, max_bytes=args.max_bytes)
        train.train_byte_level_bpe(kept, args.output, vocab_size=args.vocab_size)
    else:
        train.train_characters(texts, args.output, vocab_size=args.vocab_size)
    print(f"wrote {args.output}; use it with tokenizer_type: {USE_WITH[args.type]}, vocab_file: {args.output}")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
