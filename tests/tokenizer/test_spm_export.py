"""Sentencepiece models of other people: what transformers reads of them gives our ids, or nothing is written."""

import json
import time
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from megamesh.config.keys import TokenizerConfig
from megamesh.errors import ConfigError, DataError
from megamesh.hf.importing.imported_tokenizer import TokenizerChoice, find_tokenizer
from megamesh.tokenizer import build_tokenizer
from megamesh.tokenizer.charsmap import probe_texts, replacements
from megamesh.tokenizer.spm import SentencePieceTokenizer, exported_as_model
from megamesh.tokenizer.train import train_characters

LINES = [
    "안녕하세요 한국어 문장입니다 그리고 또 다른 문장",
    "これはガギグゲゴ日本語がぎぐげごの文章です",
    "বাংলা ভাষায় কথা বলো কোথায় যাও কৌশল",
    "Việt Nam tiếng Việt được",
    "the cat sat on the mat, and the dog ran from <0xA> to <unk>",
]
DECOMPOSED = [
    unicodedata.normalize("NFD", "안녕하세요 한국어"),
    unicodedata.normalize("NFD", "日本語が"),
    "ｶﾞｷﾞ",
    "ক\u09c7\u09beথায়",
    unicodedata.normalize("NFD", "tiếng Việt"),
    "\x85",
    "e\u0302\u0323 e\u0323\u0302 ﬁ\u0308",
    "half ½ and ﬁ, ① <s> </s> <unk> <0x0A>",
    "  two  before\r\n\tand\nafter  ",
    "",
]


def trained(folder: Path, model_type: str = "bpe", **options: object) -> SentencePieceTokenizer:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20),
        model_prefix=str(folder / "m"),
        model_type=model_type,
        vocab_size=500,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return SentencePieceTokenizer(folder / "m.model")


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc_cf"])
def test_a_normaliser_that_others_follow_otherwise_is_refused_with_the_text(
    model_type: str, rule: str, tmp_path: Path
) -> None:
    ours = trained(tmp_path, model_type, normalization_rule_name=rule, byte_fallback=True)
    began = time.process_time()
    with pytest.raises(DataError) as refused:
        ours.save_pretrained(tmp_path / "out")
    assert time.process_time() - began < 5
    assert "same token ids" in str(refused.value) and "--tokenizer-files sentencepiece" in str(refused.value)
    assert len(str(refused.value)) < 600 and not (tmp_path / "out").exists()


def test_every_key_of_a_normaliser_is_tried(tmp_path: Path) -> None:
    """Rules of one's own: `tokenizers` drops the mark behind a letter that it replaces. None of the fixed texts has that letter."""
    (tmp_path / "rules.tsv").write_text("24D0\t61\n")
    ours = trained(tmp_path, normalization_rule_tsv=str(tmp_path / "rules.tsv"), byte_fallback=True)
    with pytest.raises(DataError, match="its normaliser makes") as refused:
        ours.save_pretrained(tmp_path / "out")
    assert "ⓐ" in str(refused.value)


@pytest.mark.parametrize("dummy_prefix", [True, False])
@pytest.mark.parametrize("squeezed", [True, False])
def test_spaces_alone_are_carried_over(dummy_prefix: bool, squeezed: bool, tmp_path: Path) -> None:
    rules = {"add_dummy_prefix": dummy_prefix, "remove_extra_whitespaces": squeezed}
    ours = trained(tmp_path, normalization_rule_name="identity", byte_fallback=True, **rules)
    ours.save_pretrained(tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (*DECOMPOSED, "\n line ends stay \n", " \u3000 and wide spaces\u3000 "):
        assert theirs(text)["input_ids"] == ours.encode(text)


@pytest.mark.parametrize(
    ("model_type", "architecture", "options"),
    [
        ("unigram", "llama", {}),
        ("bpe", "gpt_neox", {"normalization_rule_name": "nmt_nfkc_cf", "byte_fallback": True}),
        ("unigram", None, {"user_defined_symbols": ["<sym>", "\n"], "byte_fallback": True}),
        (
            "unigram",
            None,
            {
                "normalization_rule_name": "identity",
                "user_defined_symbols": ["\n", "\t"],
                "add_dummy_prefix": False,
                "remove_extra_whitespaces": False,
                "byte_fallback": True,
            },
        ),
    ],
)
def test_the_model_itself_gives_our_ids_whatever_its_normaliser(
    model_type: str,
    architecture: str | None,
    options: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ours = trained(tmp_path, model_type, **options)
    exported_as_model(ours).save_pretrained(tmp_path / "out")
    if architecture:
        (tmp_path / "out" / "config.json").write_text(json.dumps({"model_type": architecture}))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    for text in [*LINES, *DECOMPOSED, "a<sym> <sym>\n\nb\t\tc" * 3]:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == ours.decode(ids)
    assert theirs(["the cat", "the"], padding=False)["input_ids"] == ours.encode_batch(["the cat", "the"])
    assert len(theirs) == ours.vocab_size and theirs.eos_token_id == ours.eod_id
    with pytest.raises(ValueError):  # noqa: PT011 - transformers' words differ, and no other ids may be given
        AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    again = build_tokenizer(find_tokenizer(tmp_path / "out", TokenizerChoice()))
    assert again.encode(DECOMPOSED[0]) == ours.encode(DECOMPOSED[0])


def test_only_a_sentencepiece_model_is_exported_as_one(tmp_path: Path) -> None:
    train_characters(LINES, tmp_path / "c.json", vocab_size=None)
    characters = build_tokenizer(
        TokenizerConfig(tokenizer_type="CharLevelTokenizer", vocab_file=str(tmp_path / "c.json"))
    )
    with pytest.raises(ConfigError, match=r"c\.json is no sentencepiece model; leave the option out"):
        exported_as_model(characters)


def test_the_rules_are_read_as_sentencepiece_applies_them(tmp_path: Path) -> None:
    rules = {"ab": "x", "a": "yy", "abc": "z", "é": "e", "🙂": "", "가": "ga"}
    lines = ("\t".join(" ".join(f"{ord(c):X}" for c in text) for text in rule) + "\n" for rule in rules.items())
    (tmp_path / "rules.tsv").write_text("".join(lines))
    ours = trained(tmp_path, normalization_rule_tsv=str(tmp_path / "rules.tsv"))
    assert replacements(_charsmap(ours)) == rules
    together = "".join(probe_texts(rules))
    assert all(key in together for key in rules)
    with pytest.raises(DataError, match="precompiled_charsmap cannot be read"):
        replacements(b"\x00\x01")


def test_the_default_rules_are_read_whole(tmp_path: Path) -> None:
    ours = trained(tmp_path)
    found = replacements(_charsmap(ours))
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    assert len(found) > 200_000 and max(map(len, found)) == 4
    for key in sorted(found)[::97]:
        assert library.normalize(f"x{key}x").removeprefix("\u2581") == f"x{found[key]}x".replace(" ", "\u2581")


def _charsmap(tokenizer: SentencePieceTokenizer) -> bytes:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(tokenizer.path.read_bytes())
    return bytes(proto.normalizer_spec.precompiled_charsmap)
