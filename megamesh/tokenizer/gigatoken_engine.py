"""gigatoken in the place of a tokenizer's own library: where it may stand there, and what is left to the library even then.

    text ─┬─ ASCII, or nothing risky in it ────────────────────────────────────────────────▶ gigatoken ─┬─▶ ids
          └─ cut before lines ─┬─ lines without risk ──────────────────────────────────────▶ gigatoken ─┤
                               ├─ not in normal form C ─ the library's own normaliser ─────▶ gigatoken ─┤
                               └─ characters that are not assigned, or names of tokens ────▶ library ───┘

Risky is what libraries with tables of different Unicode versions may take otherwise. Characters that this Python's Unicode does not know
may be letters to one of them and not to the other. Combining marks that one of them does not know are not put in order by it; text in
normal form C by this Python's table stays as it is by older ones and, but for unassigned characters, by newer ones.
"""

import importlib.metadata
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import groupby
from typing import Any

import numpy as np
import psutil

from megamesh.tokenizer.backend import BackendTokenizer
from megamesh.tokenizer.base import Tokenizer
from megamesh.tokenizer.tiktoken_ranks import TiktokenTokenizer

CACHE_BYTES = 96 << 20  # some hundred thousand words
_ASCII = bytes(range(128))
_BEFORE_LINES = re.compile(r"(?<=\n)(?=[^\W_])")
_LINE_ENDS = (
    "word",
    "x.",
    "don'",
    "1",
    "1,",
    " ",
    "\t",
    "\r",
    ")",
    "=",
    "é",
    "漢",
    "。",
    "'",
    "\u3000",
    "\n",
    "  \n",
    "a\n\n",
    "🙂",
)
_LINE_STARTS = (
    "a",
    "The",
    "s",
    "ll x",
    "t",
    "1",
    "12345;x",
    "½",
    "é",
    "漢字",
    "Ω1",
    "ﬁ",
    "The quick brown fox, 12 dogs. " * 5,
)


class GigatokenEngine:
    """gigatoken, on one thread.

    `build` makes gigatoken's tokenizer; `reference` is the library's. `normalize` is the library's normalisation to form C, where the
    tokenizer has one, and `names` are the tokens that are looked for before it. `cuts_lines`: `lines_are_apart` is true.

    gigatoken 0.10 keeps the ids of every word that it has seen, for ever. So its tokenizer is built anew when the process has grown by
    CACHE_BYTES since it was built.
    """

    def __init__(
        self,
        build: Callable[[], Any],
        reference: Tokenizer,
        *,
        normalize: Callable[[str], str] | None = None,
        names: Sequence[str] = (),
        cuts_lines: bool = False,
    ):
        self.name = f"gigatoken {importlib.metadata.version('gigatoken')}"
        self._build = build
        self._reference = reference
        self._normalize = normalize
        self._names = names
        self._cuts_lines = cuts_lines
        self._tokenizer: Any = None
        self._start()

    def _start(self) -> None:
        self._tokenizer = None  # the old one goes before the new one comes
        self._tokenizer = self._build()
        self._most_bytes = resident_bytes() + CACHE_BYTES

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Flat ids [tokens] uint32 and the length of each text in tokens [texts] int64."""
        if resident_bytes() > self._most_bytes:
            self._start()
        encode = self._tokenizer.encode
        documents = [self._encode_parts(text) if self._is_risky(text) else encode(text) for text in texts]
        lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
        return np.concatenate(documents) if documents else np.empty(0, np.uint32), lengths

    def _is_risky(self, text: str) -> bool:
        return not text.isascii() and (has_strange_characters(text) or not self._is_normal(text))

    def _is_normal(self, text: str) -> bool:
        return self._normalize is None or unicodedata.is_normalized("NFC", text)

    def _encode_parts(self, text: str) -> np.ndarray:
        lines = _BEFORE_LINES.split(text) if self._cuts_lines else [text]
        parts = ((risky, "".join(group)) for risky, group in groupby(lines, self._is_risky))
        return np.concatenate(
            [self._encode_risky(part) if risky else self._tokenizer.encode(part) for risky, part in parts]
        )

    def _encode_risky(self, text: str) -> np.ndarray:
        if self._normalize is not None and not has_strange_characters(text):
            normal = self._normalize(text)
            if self._is_normal(normal) and not any(name in part for name in self._names for part in (text, normal)):
                ids: np.ndarray = self._tokenizer.encode(normal)
                return ids
        return np.array(self._reference.encode(text), np.uint32)


def lines_are_apart(reference: BackendTokenizer | TiktokenTokenizer) -> bool:
    """Whether a line that begins with a letter or a digit is encoded by itself as it is after other lines; found out by trying."""
    if any("\n" in name for name in reference.special_names):
        return False
    starts = {start: reference.encode(start) for start in _LINE_STARTS}
    return all(
        reference.encode(f"{end}\n{start}") == reference.encode(f"{end}\n") + ids
        for end in _LINE_ENDS
        for start, ids in starts.items()
    )


def build_gigatoken(tokenizer: BackendTokenizer | TiktokenTokenizer, content: dict[str, Any]) -> GigatokenEngine:
    """`content`: that of tokenizer.json. Raises what gigatoken raises for a tokenizer that it does not know."""
    import gigatoken

    if isinstance(tokenizer, TiktokenTokenizer):
        build = partial(gigatoken.Tokenizer.from_tiktoken, tokenizer.files[0])
        return GigatokenEngine(build, tokenizer, cuts_lines=lines_are_apart(tokenizer))
    normalizer = tokenizer.backend.normalizer
    return GigatokenEngine(
        partial(gigatoken.Tokenizer, tokenizer.backend),
        tokenizer,
        normalize=None if normalizer is None else normalizer.normalize_str,
        names=[token["content"] for token in content["added_tokens"] if not token["normalized"]],
        cuts_lines=lines_are_apart(tokenizer),
    )


def why_not(tokenizer: BackendTokenizer | TiktokenTokenizer, content: dict[str, Any]) -> str | None:
    """What gigatoken treats otherwise than the tokenizer's own library does; None where nothing is known."""
    if isinstance(tokenizer, TiktokenTokenizer):
        return None if tokenizer.files else "it takes rank files only, not encodings by their name"
    if tokenizer.spells_out_specials:
        return "special tokens are spelled out"
    model, before = content["model"], content["pre_tokenizer"] or {}
    steps = before.get("pretokenizers", [before])
    kinds = [step.get("type") for step in steps]
    if model["type"] != "BPE" or model.get("dropout") or model.get("byte_fallback"):
        return "only byte-level BPE without dropout is taken to it"
    if not (kinds == ["ByteLevel"] and steps[0].get("use_regex", True)) and kinds != ["Split", "ByteLevel"]:
        return f"its way to cut words is not tested with {kinds}"
    if kinds == ["Split", "ByteLevel"] and steps[1].get("use_regex", True):
        return "words are cut twice"
    if (content["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        return f"its normalisation is not tested with {content['normalizer']['type']}"
    if (content["post_processor"] or {"type": "ByteLevel"})["type"] != "ByteLevel":
        return "the tokenizer adds tokens around a text"
    if any(token["single_word"] or token["lstrip"] or token["rstrip"] for token in content["added_tokens"]):
        return "an added token is single_word, lstrip or rstrip"
    return None


def resident_bytes() -> int:
    """Memory of this process; right in a forked one, too."""
    return int(_process(os.getpid()).memory_info().rss)


@cache
def _process(number: int) -> psutil.Process:
    return psutil.Process(number)


def has_strange_characters(text: str) -> bool:
    """Whether a text holds a character that this Python's Unicode does not know."""
    if text.isascii():
        return False
    others = text.encode().translate(None, _ASCII).decode()  # characters that are not ASCII: few, in most texts
    codes = np.frombuffer(others.encode("utf-32-le"), dtype="<u4")
    return bool(_strange()[codes].any())


@cache
def _strange() -> np.ndarray:
    """[code points] bool. Planes that are unassigned as a whole are not asked for each of their characters."""
    table = np.ones(sys.maxunicode + 1, dtype=bool)
    for block in (range(0x34000), range(0xE0000, 0xE1000)):
        table[block.start : block.stop] = [unicodedata.category(chr(code)) == "Cn" for code in block]
    table[0xF0000:] = False  # private use
    return table
