"""What command lines of several tools share: configurations and `--set`, a checkpoint and its tokenizer, counts, pictures, folders."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megamesh.config.sections import SECTIONS
from megamesh.config.yaml_files import normalise, parse_override
from megamesh.errors import ConfigError

PICTURES = (".png", ".pdf", ".svg")


def add_configs(parser: argparse.ArgumentParser, *, also: str = "", about_set: str = "") -> None:
    """FILE.yml … and --set KEY=VALUE; more of their help in `also` and `about_set`."""
    parser.add_argument(
        "configs", nargs="+", metavar="FILE.yml", type=config_file, help=f"configuration files, read as one{also}"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"replace one key of the files{about_set}"
    )


def config_file(text: str) -> str:
    """A path as a type for argparse, unless it is a setting that lacks its --set."""
    if "=" in text and not Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file; to replace a key, write --set {shlex.quote(text)}")
    return text


def parse_with_overrides(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with --set in `overrides`. A usage error tells where a key was written as a flag."""
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_as_setting(unknown)}")
    parsed.overrides = read_overrides(parser, getattr(parsed, "set", []))
    return parsed


def _as_setting(unknown: Sequence[str]) -> str:
    """The mend where an argument is a key, or a file that stands apart from the others."""
    flag, equals, value = unknown[0].partition("=")
    if not flag.startswith("-"):
        return (
            f"; to replace a key, write --set {shlex.quote(unknown[0])}" if equals else "; name all files side by side"
        )
    key = normalise(flag.removeprefix("--"))
    if not any(key.partition(".")[0] in section.model_fields for section in SECTIONS.values()):
        return ""
    if not equals:
        value = unknown[1] if len(unknown) > 1 and not unknown[1].startswith("--") else "VALUE"
    return f"; {key} is a key of the configuration: write --set {shlex.quote(f'{key}={value}')}"


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


def block(text: str) -> dict[str, Any]:
    """Keys with values, as YAML, as a type for argparse."""
    try:
        value = parse_override(f"block={text}")[1].value
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a block of keys, such as '{{key: value}}'")
    return value


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
