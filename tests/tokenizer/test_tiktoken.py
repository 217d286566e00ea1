"""tiktoken's encodings: ids are tiktoken's own and those of the transformers tokenizer that is exported; nothing is downloaded.

Fails when tiktoken moves what tiktoken_ranks.py replaces in it: its loaders of ranks, its reader of files.
"""

import base64
import json
import random
from pathlib import Path

import pytest
import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from megamesh.config.keys import TokenizerConfig
from megamesh.errors import ConfigError, DataError
from megamesh.tokenizer import build_tokenizer, tokenizer_identity
from megamesh.tokenizer.engines import LibraryEngine, fastest_engine
from megamesh.tokenizer.tiktoken_ranks import SCRAPS, TiktokenTokenizer, _written_bytes

END = "<|endoftext|>"


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """Bytes, then merges in the order in which they were learned."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([Path(json.__file__).read_text(encoding="utf-8"), *SCRAPS], trainer)
    byte = {written: number for number, written in enumerate(_written_bytes())}
    learned = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    return {bytes(byte[c] for c in token): rank for token, rank in learned}


@pytest.fixture
def folder(tmp_path: Path, ranks: dict[bytes, int]) -> Path:
    lines = (base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items())
    content = b"".join(lines)
    for name in ("cl100k_base", "o200k_base", "mine", "unknown", "gpt2"):
        (tmp_path / f"{name}.tiktoken").write_bytes(content)
    description = {"pattern": r"\p{L}+| ?\p{N}{1,2}|[^\p{L}\p{N}]", "special_tokens": {END: 500, "<|x|>": 503}}
    (tmp_path / "mine.json").write_text(json.dumps(description))
    return tmp_path


def made(path: Path) -> TiktokenTokenizer:
    found = build_tokenizer(TokenizerConfig(tokenizer_type="TiktokenTokenizer", vocab_file=str(path)))
    assert isinstance(found, TiktokenTokenizer)
    return found


def texts(special: list[str]) -> list[str]:
    draw = random.Random(3)
    return ["", *("".join(draw.choices([*SCRAPS, *special], k=draw.randrange(40))) for _ in range(300))]


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base", "mine"])
def test_ids_are_tiktokens_and_those_of_the_exported_tokenizer(
    folder: Path, ranks: dict[bytes, int], name: str, tmp_path: Path
) -> None:
    found = made(folder / f"{name}.tiktoken")
    theirs = tiktoken.Encoding(
        "test", pat_str=found._encoding._pat_str, mergeable_ranks=ranks,
        special_tokens={token: found._encoding.encode_single_token(token) for token in found.special_names},
    )  # fmt: skip
    found.save_pretrained(tmp_path / "exported")
    exported = AutoTokenizer.from_pretrained(tmp_path / "exported")
    for text in texts(found.special_names):
        expected = theirs.encode(text, allowed_special="all")
        assert found.encode(text) == expected
        assert exported(text)["input_ids"] == expected
        plain = theirs.decode([i for i in expected if i < len(ranks)])
        assert found.decode(expected) == plain
    assert found.eod_id == theirs.encode_single_token(END)
    assert exported.eos_token_id == found.eod_id


def test_engine_is_gigatoken_or_tiktoken_with_its_ids(folder: Path) -> None:
    for name in ("cl100k_base", "mine"):
        found = made(folder / f"{name}.tiktoken")
        for choice in ("auto", "reference"):
            engine, line = fastest_engine(found, choice)
            assert "tiktoken" in line
            ids, _ = engine.encode(texts(found.special_names))
            assert ids.tolist() == [i for text in texts(found.special_names) for i in found.encode(text)]
    assert isinstance(engine, LibraryEngine)


def test_identity_covers_the_description(folder: Path) -> None:
    config = TokenizerConfig(tokenizer_type="TiktokenTokenizer", vocab_file=str(folder / "mine.tiktoken"))
    kind, size, files, traits = tokenizer_identity(config, build_tokenizer(config))
    assert (kind, size, traits) == ("TiktokenTokenizer", 504, {"eod_id": 500, "special_tokens_are_text": False})
    assert files == [str(folder / "mine.tiktoken"), str(folder / "mine.json")]


def test_ids_that_no_token_has_decode_to_nothing(folder: Path) -> None:
    found = made(folder / "mine.tiktoken")
    assert found.decode([501, *found.encode("a b"), 502]) == "a b"
    with pytest.raises(DataError, match="token id 504 is outside"):
        found.decode([504])


def test_what_cannot_be_loaded_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "broken.tiktoken").write_text("YQ==\n")
    (folder / "short.tiktoken").write_text("YQ== 0\n")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder / "empty"))
    for name, message in {
        "unknown.tiktoken": "does not say how words are cut; name it as the encoding",
        "broken.tiktoken": "not a .tiktoken file of tokens and ranks",
        "short.tiktoken": "no token for the byte 0",
        "gpt2.tiktoken": "not the ranks of gpt2",
        "none.tiktoken": "does not exist, nor is it an encoding of tiktoken",
    }.items():
        with pytest.raises(DataError, match=message):
            made(folder / name)
    with pytest.raises(
        DataError, match=r"cl100k_base: https?://.* is not in TIKTOKEN_CACHE_DIR=.*nothing is downloaded"
    ):
        made(Path("cl100k_base"))
    with pytest.raises(ConfigError, match="needs vocab_file"):
        build_tokenizer(TokenizerConfig(tokenizer_type="TiktokenTokenizer"))
    for text, message in (
        ("{", "pattern and special_tokens"),
        ('{"pattern": 3, "special_tokens": {}}', "must be text"),
    ):
        (folder / "mine.json").write_text(text)
        with pytest.raises(DataError, match=message):
            made(folder / "mine.tiktoken")
