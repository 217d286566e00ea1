"""The fastest exact way from texts to ids for a tokenizer.

    tokenizer ─▶ gigatoken, where its ids are the tokenizer's own; else the tokenizer's library in batches ─▶ flat ids + lengths

The tokenizer of base.py is the reference; an engine gives its ids or is not used. Four things see to that:
- rules of structure: parts of a tokenizer.json which gigatoken is known to treat otherwise (see `_why_not`) keep it from being chosen;
- a probe at the start: texts of every kind that tokenizers trip over, and the names of all special tokens;
- characters that this Python's Unicode does not know yet go to the reference, text by text: libraries differ in what they know of them;
- a sample throughout (`CheckedEngine`): about a thousandth of the text is encoded by the reference too, and a difference stops the run.
"""

import importlib.metadata
import importlib.util
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal, Protocol

import numpy as np
import psutil

from megamesh.errors import ConfigError, DataError
from megamesh.tokenizer.backend import BackendTokenizer
from megamesh.tokenizer.base import Tokenizer
from megamesh.tokenizer.spm import SentencePieceTokenizer
from megamesh.tokenizer.tiktoken_ranks import TiktokenTokenizer

Choice = Literal["auto", "gigatoken", "reference"]
CHECKED_SHARE = 1 / 1000
WHOLE = 65536  # characters; longer texts are compared in windows
WINDOW = 4096
CACHE_BYTES = 96 << 20  # some hundred thousand words
_ASCII = bytes(range(128))

PROBE = (
    "", " ", "  ", "\n", "\r\n", "\t\t", " \n \n  x", "a" * 1000, " " * 200 + "x", "\n" * 100, "=" * 300, "-=" * 200,
    "don't DON'T I'll we'Ve 's 'S it'd",
    "x = {'a': [1, 22, 333, 4444, 55555]}  # comment\n\n\tdef f(self, *args):\n        return None\r\n",
    "0 1 12 123 1234 12345678901234567890 1,234.50 ٣٤٥ १२३ Ⅷ ½ ² 𝟘 １２",
    "\0 \x01\x0b\x0c\x1c\x7f\x85\xa0\xad\u200b\u200d\u2028\u2029\u2060\u3000\ufeff\ufffd\ufffe\uffff\ue000\U0010ffff",
    "e\u0301 \u0301 Å Ω K ﬁ ß ẞ İ ı ǅ ſ \u1e9b\u0323 \u0345 \u1100\u1161\u11a8 각 \u09c7\u09be",
    "漢字かなカナ 한국어 مرحبا ـ שלום हिन्दी ไทย ษา \u0e01\u0e33 Ελληνικά Кириллица 𐐀 々〇 ᴬ ʰ ‿ ＿ ٪",
    "🙂🙂 👨\u200d👩\u200d👧 🇩🇪 👍🏽 ❤️ ①",
    "http://example.org/a?b=c&d=%20#e <b>bold</b> \\n C:\\path ~!@#$%^&*()_+`{}|[];:\"'<>,.?/ …“”‘’—–",
)  # fmt: skip


class Engine(Protocol):
    """Texts to ids; `name` says whose work it is."""

    name: str

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Flat ids [tokens], unsigned or int32, and the length of each text in tokens [texts] int64."""
        ...


class LibraryEngine:
    """The tokenizer's own library, in batches."""

    def __init__(self, tokenizer: Tokenizer):
        library = {BackendTokenizer: "tokenizers", SentencePieceTokenizer: "sentencepiece"}.get(
            type(tokenizer), "tiktoken"
        )
        self.name = f"{library} {importlib.metadata.version(library)}"
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        documents = self._tokenizer.encode_batch(texts)
        lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
        ids = np.empty(int(lengths.sum()), dtype=np.int32)
        end = 0
        for document in documents:
            ids[end : end + len(document)] = document
            end += len(document)
        return ids, lengths


class GigatokenEngine:
    """gigatoken, on one thread. Texts that it may take otherwise than `reference` go there.

    These hold characters that Unicode had not assigned, or, with `only_normal`, are not in normal form C: gigatoken looks for added tokens
    in the text as it comes, also for those that tokenizers looks for in its normal form.

    gigatoken 0.10 keeps the ids of every word that it has seen, for ever. So the tokenizer is built anew when the process has grown by
    CACHE_BYTES since it was built.
    """

    def __init__(self, build: Callable[[], Any], reference: Tokenizer, *, only_normal: bool = False):
        self.name = f"gigatoken {importlib.metadata.version('gigatoken')}"
        self._build = build
        self._reference = reference
        self._only_normal = only_normal
        self._tokenizer: Any = None
        self._start()

    def _start(self) -> None:
        self._tokenizer = None  # the old one goes before the new one comes
        self._tokenizer = self._build()
        self._most_bytes = resident_bytes() + CACHE_BYTES

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if resident_bytes() > self._most_bytes:
            self._start()
        encode = self._tokenizer.encode
        documents = [
            np.array(self._reference.encode(text), np.uint32) if self._is_risky(text) else encode(text)
            for text in texts
        ]
        lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
        return np.concatenate(documents) if documents else np.empty(0, np.uint32), lengths

    def _is_risky(self, text: str) -> bool:
        return not text.isascii() and (
            has_strange_characters(text) or (self._only_normal and not unicodedata.is_normalized("NFC", text))
        )


def resident_bytes() -> int:
    """Memory of this process; right in a forked one, too."""
    return int(_process(os.getpid()).memory_info().rss)


@cache
def _process(number: int) -> psutil.Process:
    return psutil.Process(number)


class CheckedEngine:
    """An engine whose ids are compared with the reference's on a sample of the text, a thousandth by default.

    Compared are texts, and windows of texts longer than WHOLE, at places that the amount of text seen so far decides. `encode` raises
    DataError on a difference.
    """

    def __init__(self, engine: Engine, reference: Tokenizer, share: float = CHECKED_SHARE):
        self.name = engine.name
        self._engine, self._reference, self._share = engine, reference, share
        self._owed = float(WINDOW)
        self._seen = 0

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = self._engine.encode(texts)
        ends = np.cumsum(lengths)
        size = sum(map(len, texts))
        self._owed += self._share * size
        self._seen += size
        place = self._seen
        while texts and self._owed > 0:
            place = (place * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            i = (place >> 40) % len(texts)
            if len(texts[i]) > WHOLE:
                start = (place >> 8) % (len(texts[i]) - WINDOW)
                self._compare(texts[i][start : start + WINDOW], None)
            else:
                self._compare(texts[i], ids[ends[i] - lengths[i] : ends[i]])
            self._owed -= max(len(texts[i]) if len(texts[i]) <= WHOLE else WINDOW, 64)
        return ids, lengths

    def _compare(self, text: str, found: np.ndarray | None) -> None:
        given = self._engine.encode([text])[0] if found is None else found
        difference = _difference(text, given, self._reference)
        if difference is not None:
            raise DataError(
                f"{self.name} differs from {self._reference.name}: {difference}; "
                "--tokenizer-engine reference is exact. Please report this text"
            )


def fastest_engine(tokenizer: Tokenizer, choice: Choice = "auto") -> tuple[Engine, str]:
    """The engine, and one line that says which it is and why.

    Raises ConfigError where the choice is gigatoken and that is not installed or not exact.
    """
    reference = LibraryEngine(tokenizer)
    if choice == "reference":
        return reference, f"tokenizer engine: {reference.name}"
    engine, reason = _gigatoken(tokenizer)
    if engine is not None:
        return CheckedEngine(
            engine, tokenizer
        ), f"tokenizer engine: {engine.name}, compared with {reference.name} throughout"
    if choice == "gigatoken":
        raise ConfigError(f"--tokenizer-engine=gigatoken: {reason}; leave it out, or choose reference")
    return reference, f"tokenizer engine: {reference.name} (not gigatoken: {reason})"


def _gigatoken(tokenizer: Tokenizer) -> tuple[Engine | None, str]:
    """The engine, or None and why not."""
    if not isinstance(tokenizer, BackendTokenizer | TiktokenTokenizer):
        return None, f"it does not take the place of {LibraryEngine(tokenizer).name.split()[0]}"
    if importlib.util.find_spec("gigatoken") is None:
        return None, "it is not installed; pip install megamesh[data]"
    content = json.loads(tokenizer.backend.to_str()) if isinstance(tokenizer, BackendTokenizer) else {}
    reason = _why_not(tokenizer, content)
    if reason is not None:
        return None, reason
    try:
        engine = _build_gigatoken(tokenizer, content)
    except Exception as error:  # it refuses what it does not know with exceptions of several kinds
        return None, f"it does not take this tokenizer: {str(error).splitlines()[0]}"
    difference = first_difference(engine, tokenizer, [*PROBE, *_around(tokenizer.special_names)])
    return (engine, "") if difference is None else (None, f"its ids differ: {difference}")


def _build_gigatoken(tokenizer: BackendTokenizer | TiktokenTokenizer, content: dict[str, Any]) -> GigatokenEngine:
    """`content`: that of tokenizer.json."""
    import gigatoken

    if isinstance(tokenizer, TiktokenTokenizer):
        return GigatokenEngine(partial(gigatoken.Tokenizer.from_tiktoken, tokenizer.files[0]), tokenizer)
    looked_for_later = any(token["normalized"] and token["content"].strip(" ") for token in content["added_tokens"])
    return GigatokenEngine(
        partial(gigatoken.Tokenizer, tokenizer.backend),
        tokenizer,
        only_normal=content["normalizer"] is not None and looked_for_later,
    )


def _around(names: Sequence[str]) -> list[str]:
    """Texts that hold the names of special tokens, whole, doubled, broken and inside words."""
    return [
        text
        for name in names
        for text in (name, f"a{name}{name}b", f"  {name}  \n", name[:-1], f"{name[1:]} {name.upper()}")
    ]


def _why_not(tokenizer: BackendTokenizer | TiktokenTokenizer, content: dict[str, Any]) -> str | None:
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


def first_difference(engine: Engine, reference: Tokenizer, texts: Sequence[str]) -> str | None:
    """Where an engine's ids are first not the reference's: the text and both ids around the place; None where they are equal."""
    ids, lengths = engine.encode(texts)
    ends = np.cumsum(lengths)
    each = (_difference(text, ids[e - n : e], reference) for text, e, n in zip(texts, ends, lengths, strict=True))
    return next((difference for difference in each if difference is not None), None)


def _difference(text: str, ids: np.ndarray, reference: Tokenizer) -> str | None:
    found, expected = ids.tolist(), reference.encode(text)
    if found == expected:
        return None
    pairs = zip(found, expected, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected)))
    around = slice(max(at - 2, 0), at + 3)
    return f"{_short(text)} gives {found[around]} instead of {expected[around]} from token {around.start} on"


def _short(text: str, limit: int = 120) -> str:
    return ascii(text) if len(text) <= limit else f"{text[:limit]!a}… ({len(text)} characters)"


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
