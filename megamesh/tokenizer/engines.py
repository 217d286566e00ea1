"""The fastest exact way from texts to ids for a tokenizer.

    tokenizer ─▶ gigatoken, where its ids are the tokenizer's own; else the tokenizer's library in batches ─▶ flat ids + lengths

The tokenizer of base.py is the reference; an engine gives its ids or is not used. Four things see to that:
- rules of structure: parts of a tokenizer.json which gigatoken is known to treat otherwise keep it from being chosen (gigatoken_engine.py);
- a probe at the start: texts of every kind that tokenizers trip over, and the names of all special tokens;
- text of which libraries with another Unicode may think otherwise goes to the reference, line by line where that is the same;
- a sample throughout (`CheckedEngine`): about a thousandth of the text is encoded by the reference too, and a difference stops the run.
"""

import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from megamesh.errors import ConfigError, DataError
from megamesh.tokenizer.backend import BackendTokenizer
from megamesh.tokenizer.base import Tokenizer
from megamesh.tokenizer.gigatoken_engine import build_gigatoken, why_not
from megamesh.tokenizer.spm import SentencePieceTokenizer
from megamesh.tokenizer.tiktoken_ranks import TiktokenTokenizer

Choice = Literal["auto", "gigatoken", "reference"]
CHECKED_SHARE = 1 / 1000
WHOLE = 65536  # characters; longer texts are compared in windows
WINDOW = 4096
EDGE = 16  # tokens of a window that what lies outside of it may have changed
WINDOWS = 3

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


class CheckedEngine:
    """An engine whose ids are compared with the reference's on a sample of the text, a thousandth by default.

    Compared are texts, and of texts longer than WHOLE the ids within a window, at places that the amount of text seen so far decides.
    `encode` raises DataError on a difference.
    """

    def __init__(self, engine: Engine, reference: Tokenizer, share: float = CHECKED_SHARE):
        self.name = engine.name
        self._engine, self._reference, self._share = engine, reference, share
        self._owed = float(WINDOW)
        self._place = 0

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = self._engine.encode(texts)
        ends = np.cumsum(lengths)
        size = sum(map(len, texts))
        self._owed += self._share * size
        self._place += size
        while texts and self._owed > 0:
            i = self._draw(len(texts))
            self._owed -= max(self._check(texts[i], ids[ends[i] - lengths[i] : ends[i]]), 64)
        return ids, lengths

    def _draw(self, limit: int) -> int:
        self._place = (self._place * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        return (self._place >> 24) % limit

    def _check(self, text: str, found: np.ndarray) -> int:
        """Compare; how many characters the reference has encoded. A text is compared whole where no window is found in its ids."""
        num_encoded = 0
        for _ in range(WINDOWS if len(text) > WHOLE else 0):
            start = self._draw(len(text) - WINDOW)
            inner = self._reference.encode(text[start : start + WINDOW])[EDGE:-EDGE]
            num_encoded += WINDOW
            if len(inner) >= EDGE and _holds(found, inner):
                return num_encoded
        difference = _difference(text, found, self._reference)
        if difference is not None:
            raise DataError(
                f"{self.name} differs from {self._reference.name}: {difference}; "
                "--tokenizer-engine reference is exact. Please report this text"
            )
        return num_encoded + len(text)


def _holds(ids: np.ndarray, part: Sequence[int]) -> bool:
    """Whether `part` stands in `ids` as it is."""
    content, wanted = ids.tobytes(), np.array(part, ids.dtype).tobytes()
    at = content.find(wanted)
    while at % ids.itemsize and at >= 0:
        at = content.find(wanted, at + 1)
    return at >= 0


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
    reason = why_not(tokenizer, content)
    if reason is not None:
        return None, reason
    try:
        engine = build_gigatoken(tokenizer, content)
    except Exception as error:  # it refuses what it does not know with exceptions of several kinds
        return None, f"it does not take this tokenizer: {str(error).splitlines()[0]}"
    difference = first_difference(engine, tokenizer, [*PROBE, *_around(tokenizer.special_names)])
    return (engine, "") if difference is None else (None, f"its ids differ: {difference}")


def _around(names: Sequence[str]) -> list[str]:
    """Texts that hold the names of special tokens, whole, doubled, broken and inside words."""
    return [
        text
        for name in names
        for text in (name, f"a{name}{name}b", f"  {name}  \n", name[:-1], f"{name[1:]} {name.upper()}")
    ]


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
