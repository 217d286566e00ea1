"""What every tokenizer offers, and the checks on the files it is read from.

    text ──encode──▶ token ids ──decode──▶ text (special tokens left out)

Contract: `encode` of any text gives the ids that `AutoTokenizer.from_pretrained(folder)` gives after `save_pretrained(folder)`.
`vocab_size` counts the tokenizer's own ids; the model may pad its vocabulary beyond it, and no text ever encodes to such an id.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from megamesh.errors import ConfigError, DataError


class Tokenizer(Protocol):
    """Text to token ids and back."""

    name: str
    vocab_size: int
    eod_id: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None

    def encode(self, text: str) -> list[int]:
        """Token ids of one text. No end-of-document id is appended."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; equal to `encode` on each."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens; raises DataError for an id outside the vocabulary."""
        ...

    def save_pretrained(self, folder: str | Path) -> None:
        """Write files that transformers' AutoTokenizer loads offline: tokenizer.json and tokenizer_config.json."""
        ...


class TokenizerFileError(DataError):
    """A tokenizer's file is missing or empty: `problem` says which, the message also what to do about it in a configuration."""

    def __init__(self, problem: str, mend: str):
        super().__init__(problem, mend)
        self.problem = problem

    def __str__(self) -> str:
        return "; ".join(self.args)


def required_file(value: str | None, key: str, tokenizer_type: str, content: str) -> Path:
    """The existing file that a key names; `content` says what it should hold.

    Raises ConfigError where the key is not set, DataError where its file is missing, not a file, or empty.
    """
    if value is None:
        raise ConfigError(f"tokenizer_type={tokenizer_type} needs {key}: the path of {content}")
    path = Path(value)
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise TokenizerFileError(f"{path}: {problem}", f"set {key} to {content}")
    if path.stat().st_size == 0:
        raise TokenizerFileError(f"{path}: is empty", f"set {key} to {content}")
    return path


def check_ids(ids: Sequence[int], vocab_size: int, name: str) -> list[int]:
    """The ids as plain ints; raises DataError where one is outside the vocabulary."""
    plain = [int(i) for i in ids]
    for i in plain:
        if not 0 <= i < vocab_size:
            raise DataError(f"token id {i} is outside the vocabulary of {name} (0 … {vocab_size - 1})")
    return plain
