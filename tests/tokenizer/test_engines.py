"""Engines give the tokenizer's own ids on any text, or are not chosen, with a reason; a wrong one is caught."""

import json
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gigatoken
import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as cutting

from megamesh.errors import ConfigError, DataError
from megamesh.tokenizer import engines, train
from megamesh.tokenizer.backend import BackendTokenizer, load_characters
from megamesh.tokenizer.engines import CHECKED_SHARE, CheckedEngine, LibraryEngine, fastest_engine
from megamesh.tokenizer.gigatoken_engine import (
    CACHE_BYTES,
    GigatokenEngine,
    has_strange_characters,
    lines_are_apart,
    resident_bytes,
)
from megamesh.tokenizer.spm import SentencePieceTokenizer
from megamesh.tokenizer.tiktoken_ranks import SCRAPS

CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
END, PAD = "<|endoftext|>", "<|padding|>"
HARD = (
    *SCRAPS,
    END,
    PAD,
    END[:-1],
    "\u0378",
    "\U000e0001",
    "\ufffe",
    "\u1e9b\u0323",
    "\ud7b0",
    "aaaa",
    " " * 30,
    "foo",
    "bar",
)


def words(pattern: str | None = None, **byte_level: bool) -> Any:
    if pattern is None:
        return cutting.ByteLevel(add_prefix_space=False, **byte_level)
    last = cutting.ByteLevel(add_prefix_space=False, use_regex=False)
    return cutting.Sequence([cutting.Split(Regex(pattern), "isolated"), last])


def bpe(before: Any, *, normalizer: Any = None, added: Sequence[AddedToken] = (), after: Any = None) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer, backend.pre_tokenizer, backend.decoder = normalizer, before, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[END, PAD], initial_alphabet=cutting.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([Path(json.__file__).read_text(encoding="utf-8"), *SCRAPS * 3], trainer)
    if added:
        backend.add_tokens(list(added))
    if after is not None:
        backend.post_processor = after
    return backend


def tokenizer(backend: Tokenizer, **more: bool) -> BackendTokenizer:
    return BackendTokenizer(backend, "HFTokenizer test", {"eos_token": END}, **more)


def hard_texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(HARD, k=draw.choice([0, 1, 2, 5, 20, 100]))) for _ in range(count)]


SPACES = [AddedToken(" " * n, normalized=True) for n in range(2, 25)]
EXACT = {
    "GPT-2": lambda: bpe(words()),
    "GPT-NeoX": lambda: bpe(words(), normalizer=normalizers.NFC(), added=SPACES),
    "Llama 3": lambda: bpe(words(CL100K)),
    "Qwen": lambda: bpe(words(CL100K.replace("{1,3}", "")), normalizer=normalizers.NFC(), added=[AddedToken("foo")]),
    "ByteLevel after": lambda: bpe(words(), after=processors.ByteLevel(trim_offsets=True)),
}
OTHERS = {
    "a token before each text": (
        lambda: bpe(words(), after=processors.TemplateProcessing(f"{END} $A", special_tokens=[(END, 0)])),
        "adds tokens around a text",
    ),
    "single_word": (lambda: bpe(words(), added=[AddedToken("foo", single_word=True)]), "single_word"),
    "lstrip": (lambda: bpe(words(), added=[AddedToken("foo", lstrip=True)]), "lstrip"),
    "no words": (lambda: bpe(words(use_regex=False)), "way to cut words"),
    "digits": (lambda: bpe(cutting.Sequence([cutting.Digits(), words()])), "way to cut words"),
    "lower case": (lambda: bpe(words(), normalizer=normalizers.Lowercase()), "Lowercase"),
}


@pytest.mark.parametrize("name", EXACT)
def test_gigatoken_is_chosen_where_its_ids_are_equal(name: str) -> None:
    found = tokenizer(EXACT[name]())
    engine, line = fastest_engine(found)
    assert line.startswith("tokenizer engine: gigatoken ") and "compared with tokenizers" in line
    texts = hard_texts(1500)
    ids, lengths = engine.encode(texts)
    expected = found.encode_batch(texts)
    assert lengths.tolist() == list(map(len, expected))
    assert ids.tolist() == [token for document in expected for token in document]


def new_words(count: int, seed: int) -> str:
    """Words that hardly occur twice."""
    generator = np.random.default_rng(seed)
    letters = generator.integers(ord("a"), ord("z") + 1, 9 * count, dtype=np.uint8)
    letters[8::9] = ord(" ")
    return letters.tobytes().decode()


def test_memory_does_not_grow_with_the_number_of_different_words() -> None:
    """gigatoken keeps the ids of each word: 300 MB for 4 million of them, unless it is built anew."""
    found = tokenizer(EXACT["GPT-2"]())
    built = []

    def build() -> Any:
        built.append(resident_bytes())
        return gigatoken.Tokenizer(found.backend)

    engine, most = GigatokenEngine(build, found), 0
    for number in range(40):
        engine.encode([new_words(100_000, number)])
        most = max(most, resident_bytes() - built[0])
    assert len(built) >= 3
    assert most < CACHE_BYTES + (130 << 20)  # and one doubling of its table
    assert max(built) - built[0] < 64 << 20  # the memory comes back


def test_a_tokenizer_that_was_built_anew_gives_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megamesh.tokenizer.gigatoken_engine.CACHE_BYTES", -(1 << 40))
    found, texts, builds = tokenizer(EXACT["GPT-NeoX"]()), hard_texts(20), []
    engine, _ = fastest_engine(found)
    monkeypatch.setattr(engine._engine, "_build", lambda: builds.append(1) or gigatoken.Tokenizer(found.backend))  # type: ignore[attr-defined]
    for _ in range(3):
        ids, _ = engine.encode(texts)
        assert ids.tolist() == [token for text in texts for token in found.encode(text)]
    assert len(builds) >= 3


@pytest.mark.parametrize("name", OTHERS)
def test_the_library_is_chosen_elsewhere_and_the_reason_told(name: str) -> None:
    make, reason = OTHERS[name]
    found = tokenizer(make())
    engine, line = fastest_engine(found)
    assert isinstance(engine, LibraryEngine)
    assert line.startswith("tokenizer engine: tokenizers ") and reason in line
    with pytest.raises(ConfigError, match=r"--tokenizer-engine=gigatoken.*choose reference"):
        fastest_engine(found, "gigatoken")
    texts = hard_texts(50)
    ids, _ = engine.encode(texts)
    assert ids.tolist() == [token for text in texts for token in found.encode(text)]


def test_spelled_out_special_tokens_are_left_to_the_library() -> None:
    engine, line = fastest_engine(tokenizer(EXACT["GPT-2"](), spell_out_specials=True))
    assert isinstance(engine, LibraryEngine) and "spelled out" in line


def test_other_kinds_of_tokenizers_have_their_own_library(tmp_path: Path) -> None:
    text = Path(json.__file__).read_text(encoding="utf-8")
    train.train_sentencepiece(text.splitlines(), tmp_path / "s.model", vocab_size=400, model_type="unigram")
    train.train_characters([text], tmp_path / "c.json", vocab_size=None)
    made = (
        (SentencePieceTokenizer(tmp_path / "s.model"), "sentencepiece"),
        (load_characters(tmp_path / "c.json"), "tokenizers"),
    )
    for found, library in made:
        engine, line = fastest_engine(found)
        assert line.startswith(f"tokenizer engine: {library} "), line
        ids, lengths = engine.encode(["import json", "", "é"])
        assert [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] == found.encode_batch(
            ["import json", "", "é"]
        )


def test_reference_is_what_was_asked_for() -> None:
    engine, line = fastest_engine(tokenizer(EXACT["GPT-2"]()), "reference")
    assert isinstance(engine, LibraryEngine) and line == f"tokenizer engine: {engine.name}"


class Wrong:
    """The reference, but for texts that hold a mark."""

    name = "wrong 1.0"

    def __init__(self, reference: BackendTokenizer, mark: str) -> None:
        self._right, self._mark = LibraryEngine(reference), mark

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return self._right.encode([text.replace(self._mark, "x") for text in texts])


def test_an_engine_that_fails_the_probe_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "build_gigatoken", lambda found, _: Wrong(found, "漢"))
    _, line = fastest_engine(tokenizer(EXACT["GPT-2"]()))
    assert "not gigatoken: its ids differ" in line


@pytest.mark.parametrize(("repeats", "share"), [(50, CHECKED_SHARE), (9_000, 20 * CHECKED_SHARE)])
def test_a_difference_in_the_midst_stops_the_run(repeats: int, share: float) -> None:
    """Every fourth text is wrong; long texts are compared in windows."""
    reference = tokenizer(EXACT["GPT-2"]())
    engine = CheckedEngine(Wrong(reference, "é"), reference, share)
    good = "plain words " * repeats
    batch = [good, good, good, good.replace("words", "é")]

    def encode_much() -> None:
        for _ in range(90_000 // repeats):
            engine.encode(batch)

    with pytest.raises(DataError, match=r"wrong 1\.0 differs from HFTokenizer test.*--tokenizer-engine reference"):
        encode_much()


class WrongIds:
    """Another id in the midst of every long text's."""

    name = "wrong 1.0"

    def __init__(self, reference: BackendTokenizer) -> None:
        self._right = LibraryEngine(reference)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = self._right.encode(texts)
        return np.where(np.arange(len(ids)) % 200 == 100, 7, ids).astype(np.uint32), lengths


def test_of_long_texts_the_ids_that_are_written_are_compared() -> None:
    reference = tokenizer(EXACT["GPT-2"]())
    text = "".join(draw for draw in hard_texts(9000) if "\ud7b0" not in draw)
    assert len(text) > 100_000
    CheckedEngine(LibraryEngine(reference), reference).encode([text])
    with pytest.raises(DataError, match=r"wrong 1\.0 differs from HFTokenizer test"):
        CheckedEngine(WrongIds(reference), reference).encode([text])


def marks() -> list[str]:
    """Texts with every combining mark, alone and where it is to change its place."""
    found = [chr(code) for code in range(0x20000) if unicodedata.combining(chr(code))]
    return [text for mark in found for text in (f"a{mark}", f"\u0c15\u0c4d{mark} ", f"e{mark}\u0301x", f"\u0301{mark}")]


@pytest.mark.parametrize("name", EXACT)
def test_normal_forms_are_the_librarys(name: str) -> None:
    """Libraries know combining marks of different versions of Unicode."""
    found, texts = (
        tokenizer(EXACT[name]()),
        [*marks(), f"{END}\u0338", "क़ख़ज़ ड़ढ़" * 3, "\u0958 \u212b foo\u0338 \u1100\u1161\u11a8"],
    )
    engine, line = fastest_engine(found)
    assert "gigatoken" in line
    ids, lengths = engine.encode(texts)
    expected = found.encode_batch(texts)
    assert lengths.tolist() == list(map(len, expected))
    assert ids.tolist() == [token for document in expected for token in document]


def test_a_risky_line_of_a_long_text_does_not_send_the_others_to_the_library() -> None:
    found = tokenizer(EXACT["GPT-NeoX"]())
    engine, _ = fastest_engine(found)
    line = "Some words of a line, é and 漢.\n"
    text = line * 500 + "a\u0378 b\n" + line * 500 + "e\u0301\u0c15\n"
    sizes = []
    reference = found.encode
    engine._engine._reference = type(
        "Counted", (), {"encode": lambda _, part: sizes.append(len(part)) or reference(part)}
    )()  # type: ignore[attr-defined]
    ids, _ = engine._engine.encode([text])  # type: ignore[attr-defined]
    assert ids.tolist() == reference(text)
    assert sizes == [len("a\u0378 b\n")]


def test_lines_are_cut_only_where_that_changes_no_id() -> None:
    assert lines_are_apart(tokenizer(EXACT["Llama 3"]()))
    assert not lines_are_apart(tokenizer(bpe(words(), added=[AddedToken("\nfoo")])))
    assert not lines_are_apart(tokenizer(bpe(words(r"[\s\S]{1,7}"))))


def test_a_right_engine_is_never_stopped() -> None:
    """Its ids are passed on as they are."""
    reference = tokenizer(EXACT["GPT-2"]())
    engine = CheckedEngine(LibraryEngine(reference), reference, share=1.0)
    for texts in (*(hard_texts(20, seed) for seed in range(10)), ["🙂 é" * 40_000, ""], []):
        ids, lengths = engine.encode(texts)
        expected = reference.encode_batch(texts)
        assert lengths.tolist() == list(map(len, expected))
        assert ids.tolist() == [token for document in expected for token in document]


def test_characters_that_unicode_does_not_know_yet() -> None:
    assert [has_strange_characters(text) for text in ("abc", "é漢🙂\ue000", "a\u0378", "\U000e0002", "\uffff", "")] == [
        False, False, True, True, True, False,
    ]  # fmt: skip
