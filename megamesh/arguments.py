"""What the command lines of several tools have in common: `--set KEY=VALUE`, numbers from 1 up, pictures to write."""

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
