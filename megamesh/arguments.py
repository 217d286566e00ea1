"""What the command lines of several tools have in common: `--set`, a checkpoint and its tokenizer, numbers from 1 up, pictures."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megamesh.config.yaml_files import parse_override

PICTURES = (".png", ".pdf", ".svg")


def read_overrides(parser: argparse.ArgumentParser, settings: Sequence[str]) -> dict[str, Any]:
    """The keys that `--set` replaces; a usage error where one is not KEY=VALUE."""
    try:
        return dict(map(parse_override, settings))
    except ValueError as error:
        parser.error(f"--set {error}")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """--checkpoint, a path."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        help="a run's save folder (its latest checkpoint) or a global_stepN folder in it",
    )


def add_moved_tokenizer(parser: argparse.ArgumentParser) -> None:
    """--vocab-file and --merge-file, for a checkpoint's tokenizer."""
    parser.add_argument("--vocab-file", help="where the tokenizer's file is now, if it has moved since training")
    parser.add_argument("--merge-file", help="the same for merges.txt of GPT2BPETokenizer")


def from_one(text: str) -> int:
    """A whole number of at least 1, as a type for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def picture(text: str) -> Path:
    """A file that matplotlib can write, in a folder that exists, as a type for argparse."""
    path = Path(text)
    if path.suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {', '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {str(path.parent)!r} does not exist; make it first")
    return path
