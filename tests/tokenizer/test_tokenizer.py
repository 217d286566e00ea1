"""Tokenizers: round trips, end-of-document ids, transformers as the oracle of what is exported, and bad files."""

import json
import pickle
import sysconfig
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer, GPT2TokenizerFast

from megamesh.config.keys import TokenizerConfig
from megamesh.errors import ConfigError, DataError
from megamesh.tokenizer import Tokenizer, build_tokenizer, train

TRICKY = [
    "",
    " ",
    "\n",
    "\t\t x\n\n\n    y   \r\n",
    "    leading and trailing    ",
    "<s> </s> <unk> <pad> <0x0A> spelled out",
    "naïve ﬁ ① 中文 🙂👩‍👩‍👧 e\u0301 \u00a0\u200b\ufeff",
    "nul \x00 and \x7f",
    "-" * 79 + "\n" + " " * 150 + "x = (((((1)))))",
    "x = 1  # one very long line " + "spam, eggs and mmy yyy " * 400,
]


@pytest.fixture(scope="module")
def sources() -> list[str]:
    """Python sources of the running interpreter."""
    folder = Path(sysconfig.get_path("stdlib"))
    names = [
        "ast.py",
        "textwrap.py",
        "json/encoder.py",
        "html/parser.py",
        "reprlib.py",
    ]
    return [(folder / name).read_text(encoding="utf-8") for name in names]


def config(kind: str, vocab: Path, merges: Path | None = None) -> TokenizerConfig:
    return TokenizerConfig(
        tokenizer_type=kind, vocab_file=str(vocab), merge_file=None if merges is None else str(merges)
    )  # type: ignore[arg-type]


KINDS = ["unigram", "bpe", "hf", "gpt2", "characters"]


@pytest.fixture(scope="module")
def trained(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    for model_type in ("unigram", "bpe"):
        train.train_sentencepiece(train.lines_of(sources), folder / model_type, vocab_size=1500, model_type=model_type)
    train.train_byte_level_bpe(sources, folder / "tokenizer.json", vocab_size=1500)
    content = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in content["merges"]))
    train.train_characters(sources, folder / "characters.json", vocab_size=None)
    return {
        "unigram": build_tokenizer(config("SPMTokenizer", folder / "unigram")),
        "bpe": build_tokenizer(config("SPMTokenizer", folder / "bpe")),
        "hf": build_tokenizer(config("HFTokenizer", folder / "tokenizer.json")),
        "gpt2": build_tokenizer(config("GPT2BPETokenizer", folder / "vocab.json", folder / "merges.txt")),
        "characters": build_tokenizer(config("CharLevelTokenizer", folder / "characters.json")),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_back(trained: dict[str, Tokenizer], sources: list[str], kind: str) -> None:
    tokenizer = trained[kind]
    texts = sources if kind == "characters" else sources + TRICKY
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_batches_equal_single_texts_and_ids_lie_in_the_vocabulary(
    trained: dict[str, Tokenizer], sources: list[str], kind: str
) -> None:
    tokenizer = trained[kind]
    texts = sources + TRICKY
    batch = tokenizer.encode_batch(texts)
    assert batch == [tokenizer.encode(text) for text in texts]
    assert {i for ids in batch for i in ids} <= set(range(tokenizer.vocab_size))
    assert all(tokenizer.eod_id not in ids for ids in batch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", [None, "gpt_neox", "llama"])
def test_transformers_gives_the_same_ids(
    trained: dict[str, Tokenizer],
    sources: list[str],
    kind: str,
    model_type: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer = trained[kind]
    tokenizer.save_pretrained(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*sources, *TRICKY, "a<|endoftext|>b"]:
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (
        tokenizer.eos_id,
        tokenizer.bos_id,
        tokenizer.pad_id,
    )
    assert len(theirs) == tokenizer.vocab_size


def test_gpt2_files_give_gpt2s_ids(trained: dict[str, Tokenizer], sources: list[str], tmp_path: Path) -> None:
    folder = Path(trained["gpt2"].name.removeprefix("GPT2BPETokenizer ")).parent
    theirs = GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    for text in sources + TRICKY:
        assert trained["gpt2"].encode(text) == theirs(text)["input_ids"]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_sentencepiece_gives_the_librarys_ids_line_by_line(
    trained: dict[str, Tokenizer], sources: list[str], model_type: str
) -> None:
    tokenizer = trained[model_type]
    library = sentencepiece.SentencePieceProcessor(model_file=tokenizer.name.removeprefix("SPMTokenizer "))
    newline = library.piece_to_id("\n")
    for text in sources:
        expected: list[int] = []
        for number, line in enumerate(text.split("\n")):
            expected += ([newline] if number else []) + library.encode(line)
        assert tokenizer.encode(text) == expected


def test_training_again_gives_the_same_file(sources: list[str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        train.train_sentencepiece(
            train.lines_of(sources), tmp_path / f"{name}.model", vocab_size=800, model_type="unigram"
        )
        train.train_byte_level_bpe(sources, tmp_path / f"{name}.json", vocab_size=800)
    for suffix in ("model", "json"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_foreign_unigram_is_exported_up_to_ties(sources: list[str], tmp_path: Path) -> None:
    """A model with sentencepiece's usual dummy prefix and squeezed spaces: ids differ only between equal scores."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(train.lines_of(sources)),
        model_prefix=str(tmp_path / "m"),
        vocab_size=1000,
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    tokenizer = build_tokenizer(config("SPMTokenizer", tmp_path / "m.model"))
    tokenizer.save_pretrained(tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    lines = [line for text in sources for line in text.split("\n")]
    differing = [(theirs(line)["input_ids"], tokenizer.encode(line)) for line in lines]
    differing = [(a, b) for a, b in differing if a != b]
    assert len(differing) < len(lines) / 200
    for a, b in differing:
        assert sum(map(library.get_score, a)) == pytest.approx(sum(map(library.get_score, b)), abs=1e-3)


def test_model_that_cannot_be_carried_over_is_refused(sources: list[str], tmp_path: Path) -> None:
    """A dummy prefix with user-defined symbols: tokenizers would put the prefix behind every symbol."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(train.lines_of(sources)),
        model_prefix=str(tmp_path / "m"),
        vocab_size=600,
        user_defined_symbols=["\n"],
        normalization_rule_name="identity",
        byte_fallback=True,
        minloglevel=2,
    )
    tokenizer = build_tokenizer(config("SPMTokenizer", tmp_path / "m.model"))
    with pytest.raises(DataError, match="cannot be written for transformers with the same token ids"):
        tokenizer.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("declared", "eod"),
    [
        ({"eos_token": "B"}, "B"),
        ({"eos_token": {"content": "B"}}, "B"),
        ({"eos_token": "missing"}, "</s>"),
        (None, "</s>"),
    ],
)
def test_end_of_document_of_a_tokenizer_json(tmp_path: Path, declared: Any, eod: str) -> None:
    vocabulary = {"A": 0, "B": 1, "</s>": 2}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "A"}})
    )
    if declared is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(declared))
    assert build_tokenizer(config("HFTokenizer", tmp_path / "tokenizer.json")).eod_id == vocabulary[eod]


def test_tokenizers_go_to_other_processes(trained: dict[str, Tokenizer]) -> None:
    tokenizer = pickle.loads(pickle.dumps(trained["unigram"]))
    assert tokenizer.encode("def f(x):") == trained["unigram"].encode("def f(x):")


@pytest.mark.parametrize("kind", KINDS)
def test_id_outside_the_vocabulary_is_named(trained: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = trained[kind]
    with pytest.raises(DataError, match=f"token id {tokenizer.vocab_size} is outside the vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])


def bad_files(folder: Path) -> Iterator[tuple[TokenizerConfig, type[Exception], str]]:
    no_end = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    contents = {
        "junk": "junk",
        "empty": "",
        "noend.json": json.dumps(no_end),
        "list.json": "[]",
        "vocab.json": '{"a": 0}',
        "merges.txt": "#version: 0.2\n",
    }
    contents["long.json"] = json.dumps({"type": "megamesh-characters", "characters": ["ab"]})
    for name, text in contents.items():
        (folder / name).write_text(text)
    yield TokenizerConfig(tokenizer_type="HFTokenizer"), ConfigError, "tokenizer_type=HFTokenizer needs vocab_file"
    yield (
        TokenizerConfig(tokenizer_type="GPT2BPETokenizer", vocab_file=str(folder / "vocab.json")),
        ConfigError,
        "needs merge_file",
    )
    yield config("HFTokenizer", folder / "absent"), DataError, "absent: does not exist; set vocab_file"
    yield config("HFTokenizer", folder), DataError, "is not a file"
    yield config("SPMTokenizer", folder / "empty"), DataError, "empty: is empty"
    yield config("SPMTokenizer", folder / "junk"), DataError, "junk: not a sentencepiece model"
    yield config("HFTokenizer", folder / "junk"), DataError, "junk: not a tokenizer.json"
    yield config("HFTokenizer", folder / "noend.json"), DataError, "no end-of-document token"
    yield config("CharLevelTokenizer", folder / "junk"), DataError, "junk: not a vocabulary of characters"
    yield config("CharLevelTokenizer", folder / "list.json"), DataError, "list.json: not a vocabulary of characters"
    yield (
        config("CharLevelTokenizer", folder / "long.json"),
        DataError,
        "long.json: `characters` must be different single characters; found 'ab'",
    )
    yield (
        config("GPT2BPETokenizer", folder / "vocab.json", folder / "merges.txt"),
        DataError,
        r"vocab.json: has no <\|endoftext\|>",
    )
    yield (
        config("GPT2BPETokenizer", folder / "junk", folder / "merges.txt"),
        DataError,
        "junk, .*merges.txt: not a GPT-2 vocabulary",
    )


@pytest.mark.parametrize("case", range(13))
def test_bad_files_are_named(tmp_path: Path, case: int) -> None:
    settings, kind, message = list(bad_files(tmp_path))[case]
    with pytest.raises(kind, match=message):
        build_tokenizer(settings)


def test_damaged_sentencepiece_model_is_named(trained: dict[str, Tokenizer], tmp_path: Path) -> None:
    whole = Path(trained["unigram"].name.removeprefix("SPMTokenizer ")).read_bytes()
    (tmp_path / "cut.model").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.model: not a sentencepiece model"):
        build_tokenizer(config("SPMTokenizer", tmp_path / "cut.model"))


def test_thinning_keeps_an_even_share_of_the_text() -> None:
    texts = [str(number) for number in range(1000)]
    kept = [int(text) for text in train.thinned(texts, total_bytes=4000, max_bytes=1000)]
    assert {later - earlier for earlier, later in pairwise(kept)} == {4} and len(kept) == 250
    assert list(train.thinned(texts, total_bytes=4000, max_bytes=4000)) == texts


def test_lines_are_cut_rather_than_dropped() -> None:
    long = "é" * (train.LONGEST_LINE_BYTES + 1)
    lines = list(train.lines_of([f"a\n\n{long}\n", "b"]))
    assert "".join(lines) == f"a{long}b" and lines[0] == "a" and lines[-1] == "b"
    assert max(len(line.encode()) for line in lines) <= train.LONGEST_LINE_BYTES
