"""Records → what is written of them.

    values of the keys, a list each ─▶ mended ─▶ (empty records left out by shard.py) ─▶ engine: flat ids + lengths
    ─▶ end-of-document tokens put in ─▶ a column per output

A column is the ids of many documents end to end, [tokens], and their lengths, [documents]; nothing here loops over tokens in Python.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from megamesh.data.store.format import token_dtype
from megamesh.data.store.manifest import Tokenizer
from megamesh.errors import ConfigError


class Column(NamedTuple):
    """Documents of one output: ids [tokens] end to end, lengths [documents] int64."""

    ids: np.ndarray
    lengths: np.ndarray


class Engine(Protocol):
    """What turns texts into ids (the tokenizer package has several)."""

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Flat ids and the length of each text in tokens."""
        ...


class Encoder(Protocol):
    """What preprocessing needs: the tokenizer's facts, the keys that are read, the outputs with their number formats, and the work.

    `labels`: those of the outputs that are labels; the others are tokens.
    """

    tokenizer: Tokenizer
    keys: tuple[str, ...]
    outputs: Mapping[str, np.dtype]
    labels: tuple[str, ...]

    def prepare(self, values: Sequence[list[Any]]) -> Sequence[list[Any]]:
        """What `encode` is to get of the values that were read: as many, and empty where nothing is to be encoded."""
        ...

    def encode(self, values: Sequence[Sequence[str]]) -> Mapping[str, Column]:
        """`values` has a list per key, one entry per record; each column of the answer has one document per record."""
        ...


class TextEncoder:
    """Every key is an output of its own, named as the key.

    `eod_id` ends every document unless it is None; with `ftfy`, `prepare` mends the text. Raises ConfigError where ftfy is missing.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, keys: Sequence[str], *, eod_id: int | None, ftfy: bool = False
    ):
        if ftfy and importlib.util.find_spec("ftfy") is None:
            raise ConfigError(
                "--ftfy needs the ftfy package, which is not installed: pip install megamesh[data], or leave --ftfy out"
            )
        self.tokenizer = tokenizer
        self.keys = tuple(keys)
        self.outputs: Mapping[str, np.dtype] = dict.fromkeys(self.keys, token_dtype(tokenizer.vocab_size))
        self.labels: tuple[str, ...] = ()
        self._engine = engine
        self._eod_id = eod_id
        self._ftfy = ftfy

    def prepare(self, values: Sequence[list[str]]) -> Sequence[list[str]]:
        if not self._ftfy:
            return values
        from ftfy import fix_text

        return [[fix_text(text) for text in texts] for texts in values]

    def encode(self, values: Sequence[Sequence[str]]) -> dict[str, Column]:
        return {key: self._column(texts) for key, texts in zip(self.keys, values, strict=True)}

    def _column(self, texts: Sequence[str]) -> Column:
        column = Column(*self._engine.encode(texts))
        return column if self._eod_id is None else append_to_each(column, self._eod_id)


def append_to_each(column: Column, value: int) -> Column:
    """The same documents, each with one more id at its end."""
    ids, lengths = column
    ends = np.cumsum(lengths) + np.arange(len(lengths))
    longer = np.empty(len(ids) + len(lengths), dtype=ids.dtype)
    inside = np.ones(len(longer), dtype=bool)
    inside[ends] = False
    longer[inside] = ids
    longer[ends] = value
    return Column(longer, lengths + 1)
