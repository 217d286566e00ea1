"""The tokenizer of a transformers folder, copied so that the imported run needs nothing outside its own folder.

tokenizer.json (with tokenizer_config.json)  ─▶ HFTokenizer       ┐
tokenizer.model, sentencepiece.model         ─▶ SPMTokenizer      ├─▶ run folder/tokenizer/
vocab.json, merges.txt                       ─▶ GPT2BPETokenizer  ┘
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from megamesh.config.keys import TokenizerConfig
from megamesh.errors import DataError
from megamesh.tokenizer import Tokenizer, build_tokenizer
from megamesh.tokenizer.spm_export import MODEL_FILE

FOLDER = "tokenizer"
TYPES: tuple[str, ...] = get_args(TokenizerConfig.model_fields["tokenizer_type"].annotation)
_IN_FOLDER = (
    ("HFTokenizer", ("tokenizer.json",)),
    ("SPMTokenizer", ("tokenizer.model",)),
    ("SPMTokenizer", (MODEL_FILE,)),
    ("GPT2BPETokenizer", ("vocab.json", "merges.txt")),
)
"""Kinds and the files that transformers, or our export, gives them, the preferred kind first."""
SPECIAL_TOKENS = "tokenizer_config.json"


@dataclass(frozen=True)
class TokenizerChoice:
    """What the user says of the tokenizer; None where the folder decides."""

    tokenizer_type: str | None = None
    vocab_file: str | None = None
    merge_file: str | None = None


def find_tokenizer(folder: Path, choice: TokenizerChoice) -> TokenizerConfig:
    """The kind and files of the model's tokenizer, where they are now. DataError where there is none."""
    if choice.vocab_file is not None:
        kind = choice.tokenizer_type or _kind_of(choice.vocab_file, choice.merge_file)
        return _config(kind, [choice.vocab_file] + ([choice.merge_file] if choice.merge_file else []))
    candidates = [(kind, names) for kind, names in _IN_FOLDER if choice.tokenizer_type in (None, kind)]
    for kind, names in candidates:
        files = [folder / name for name in names]
        if all(file.is_file() for file in files):
            return _config(kind, files)
    looked_for = "; ".join(" with ".join(names) for _, names in candidates)
    raise DataError(
        f"{folder} holds no tokenizer{f' ({looked_for})' if looked_for else ''}; name its file with --vocab-file, "
        "and its kind with --tokenizer-type where the file's name does not show it"
    )


def moved(found: TokenizerConfig, run_folder: Path) -> TokenizerConfig:
    """The same tokenizer where `copy_tokenizer` puts its files."""
    files = {key: str(run_folder / FOLDER / path.name) for key, path in _files(found).items()}
    return found.model_copy(update=files)


def copy_tokenizer(found: TokenizerConfig, run_folder: Path) -> None:
    """Copy the tokenizer's files into the run's folder. DataError where one cannot be read, OSError as from the disk."""
    target = run_folder / FOLDER
    target.mkdir()
    for source in _files(found).values():
        _copy(source, target / source.name)
        beside = source.with_name(SPECIAL_TOKENS)
        if found.tokenizer_type == "HFTokenizer" and beside.is_file():
            _copy(beside, target / SPECIAL_TOKENS)


def _copy(source: Path, target: Path) -> None:
    try:
        content = source.read_bytes()
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error
    target.write_bytes(content)


def open_tokenizer(found: TokenizerConfig, num_rows: int) -> Tokenizer:
    """The tokenizer. DataError for a file that is missing or damaged, and for ids that the model's embedding has no row for."""
    tokenizer = build_tokenizer(found)
    if tokenizer.vocab_size > num_rows:
        raise DataError(
            f"{tokenizer.name} has {tokenizer.vocab_size} token ids, the model's embedding {num_rows} rows; "
            "name the tokenizer that the model was trained with (--vocab-file)"
        )
    return tokenizer


def _files(config: TokenizerConfig) -> dict[str, Path]:
    named = {"vocab_file": config.vocab_file, "merge_file": config.merge_file}
    return {key: Path(value) for key, value in named.items() if value is not None}


def _kind_of(vocab_file: str, merge_file: str | None) -> str:
    if merge_file is not None:
        return "GPT2BPETokenizer"
    return "SPMTokenizer" if Path(vocab_file).suffix == ".model" else "HFTokenizer"


def _config(kind: str, files: list[str] | list[Path]) -> TokenizerConfig:
    named = dict(zip(("vocab_file", "merge_file"), map(str, files), strict=False))
    return TokenizerConfig.model_validate({"tokenizer_type": kind, **named})
