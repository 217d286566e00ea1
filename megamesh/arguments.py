"""What the command lines of several tools share: `--set`, a checkpoint and its tokenizer, numbers from 1 up, pictures, folders."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megamesh.config.yaml_files import parse_override
from megamesh.errors import ConfigError

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
    """A file that matplotlib can write, as a type for argparse."""
    path = Path(text)
    if path.suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {', '.join(PICTURES)}")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: nothing can be made in {str(nearest)!r}")
    return path


def make_folder(folder: Path, given: str) -> None:
    """Make a folder that is to be written to, where it is missing; ConfigError where that cannot be, for what was `given`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{given}: the folder {folder} cannot be made ({error.strerror}); name another") from error
