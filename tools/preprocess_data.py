"""Tokenize text files into <output-prefix>_<key>_document.bin/.idx for training.

    python tools/preprocess_data.py --input a.jsonl,b.jsonl --tokenizer-type HFTokenizer --vocab-file tokenizer.json \\
        --append-eod --output-prefix data/corpus --workers 8
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import get_args

from tqdm import tqdm

from megamesh.command import run_command
from megamesh.config.sections import TokenizerConfig
from megamesh.data.preprocess import Settings, preprocess
from megamesh.data.text_input import find_inputs
from megamesh.errors import ConfigError
from megamesh.tokenizer import build_tokenizer

TOKENIZER_TYPES = get_args(TokenizerConfig.model_fields["tokenizer_type"].annotation)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        help="files separated by commas or spaces: .jsonl (one document per line), .txt (one document per file)",
    )
    parser.add_argument(
        "--jsonl-keys",
        nargs="+",
        default=["text"],
        help="keys of the text in .jsonl; each writes an output of its own (default: text)",
    )
    parser.add_argument(
        "--num-docs", type=int, help="documents in the input, if known: the progress line then counts towards it"
    )
    parser.add_argument("--tokenizer-type", required=True, choices=TOKENIZER_TYPES, help="kind of tokenizer")
    parser.add_argument(
        "--vocab-file", help="tokenizer.json, sentencepiece model, vocab.json or vocabulary of characters"
    )
    parser.add_argument("--merge-file", help="merges.txt of GPT2BPETokenizer")
    parser.add_argument("--append-eod", action="store_true", help="end every document with the end-of-document token")
    parser.add_argument("--ftfy", action="store_true", help="mend broken Unicode with ftfy first")
    parser.add_argument("--output-prefix", required=True, help="start of the outputs' names")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    parser.add_argument(
        "--dataset-impl", choices=["mmap"], default="mmap", help="format of the output; mmap is the only one"
    )
    parser.add_argument("--workers", type=int, default=1, help="tokenizing processes (default: 1)")
    parser.add_argument(
        "--log-interval",
        type=int,
        default=100,
        help="fewest documents between two updates of the progress line (default: 100)",
    )
    return parser.parse_args(arguments)


class Progress:
    """A bar in bytes of input, with MB/s and documents/s."""

    def __init__(self, total_bytes: int, num_docs: int | None, log_interval: int):
        self._bar = tqdm(total=total_bytes, unit="B", unit_scale=True, desc="tokenizing", mininterval=0.5)
        self._num_docs, self._log_interval = num_docs, log_interval
        self._documents = self._shown = self._bytes = 0
        self._started = time.monotonic()

    def __call__(self, num_bytes: int, num_documents: int) -> None:
        self._documents += num_documents
        self._bytes += num_bytes
        if self._documents - self._shown >= self._log_interval:
            self._shown = self._documents
            self._bar.set_postfix_str(self.rates(), refresh=False)
        self._bar.update(num_bytes)

    def rates(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        known = "" if self._num_docs is None else f"/{self._num_docs}"
        return f"{self._documents}{known} docs, {self._documents / seconds:.0f} docs/s, {self._bytes / seconds / 1e6:.2f} MB/s"

    def close(self) -> None:
        self._bar.close()


def run(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise ConfigError(f"--workers={args.workers}: at least 1 process is needed")
    if len(set(args.jsonl_keys)) != len(args.jsonl_keys):
        raise ConfigError(f"--jsonl-keys={' '.join(args.jsonl_keys)} names a key twice")
    inputs = find_inputs(args.input)
    config = TokenizerConfig(tokenizer_type=args.tokenizer_type, vocab_file=args.vocab_file, merge_file=args.merge_file)
    settings = Settings(tuple(args.jsonl_keys), args.append_eod, args.ftfy)
    progress = Progress(sum(os.path.getsize(path) for path in inputs), args.num_docs, args.log_interval)
    try:
        summary = preprocess(
            inputs,
            args.output_prefix,
            partial(build_tokenizer, config),
            settings,
            workers=args.workers,
            overwrite=args.overwrite,
            progress=progress,
        )
    finally:
        progress.close()
    left_out = f"; {summary.num_empty} empty records left out" if summary.num_empty else ""
    print(f"{progress.rates()}; {summary.num_tokens} tokens{left_out}")
    for prefix in summary.prefixes:
        print(f"wrote {prefix}.bin and {prefix}.idx")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
