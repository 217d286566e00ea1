"""Tokenizers that run in the `tokenizers` library: HF tokenizer.json, GPT-2's vocab.json + merges.txt, and characters.

    tokenizer.json ───────────────────┐
    vocab.json + merges.txt ──────────┼─▶ tokenizers.Tokenizer ─▶ BackendTokenizer
    characters.json (train_tokenizer) ┘

End-of-document id: `<|endoftext|>` where the vocabulary has it (as GPT-NeoX does); else the eos_token that a tokenizer_config.json beside
tokenizer.json declares; else `</s>`, `<eos>` or `<|end_of_text|>`. A file with none of these is refused.
A post-processor in tokenizer.json applies, as it does in GPT-NeoX and transformers (one that prepends a BOS prepends it here too).
In the text, the name of a special token encodes as that token, except with characters, where it is spelled out, and where a
tokenizer_config.json beside tokenizer.json asks for that (split_special_tokens, as our exports do where the source spells out).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from megamesh.errors import DataError
from megamesh.tokenizer.base import check_ids

END_OF_TEXT = "<|endoftext|>"
EOS_NAMES = ("</s>", "<eos>", "<|end_of_text|>")
PAD_NAMES = ("<|padding|>", "<pad>", "[PAD]")
UNKNOWN = "<unk>"
CHARACTERS_TYPE = "megamesh-characters"


class BackendTokenizer:
    """A `tokenizers.Tokenizer` behind the protocol of base.py; `special` holds the tokens named eos_token, bos_token and pad_token."""

    def __init__(self, backend: Tokenizer, name: str, special: dict[str, str], *, spell_out_specials: bool = False):
        self.name = name
        self.vocab_size = _largest_id(backend) + 1
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = spell_out_specials
        self._special = special
        self._spell_out_specials = spell_out_specials
        self.eod_id = self._id("eos_token", required=True)
        self.eos_id: int | None = self.eod_id
        self.bos_id = self._id("bos_token")
        self.pad_id = self._id("pad_token")

    def _id(self, role: str, required: bool = False) -> Any:
        token = self._special.get(role)
        found = None if token is None else self._backend.token_to_id(token)
        if found is None and required:
            known = ", ".join((END_OF_TEXT, *EOS_NAMES))
            raise DataError(
                f"{self.name}: no end-of-document token: the vocabulary holds none of {known}, "
                "and no tokenizer_config.json beside it declares an eos_token"
            )
        return found

    @property
    def backend(self) -> Tokenizer:
        """The library's tokenizer."""
        return self._backend

    @property
    def spells_out_specials(self) -> bool:
        """Whether the name of a special token in the text is text like any other."""
        return self._spell_out_specials

    @property
    def special_names(self) -> list[str]:
        """The tokens that were added to the model's own, special ones and others."""
        return [token.content for token in self._backend.get_added_tokens_decoder().values()]

    def encode(self, text: str) -> list[int]:
        return list(self._backend.encode(text).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(check_ids(ids, self.vocab_size, self.name), skip_special_tokens=True)

    def save_pretrained(self, folder: str | Path) -> None:
        write_pretrained(Path(folder), self._backend, self._special, spell_out_specials=self._spell_out_specials)


def write_pretrained(folder: Path, backend: Tokenizer, special: dict[str, str], *, spell_out_specials: bool) -> None:
    """Write tokenizer.json and tokenizer_config.json for transformers. `special` maps eos_token, bos_token, … to tokens.

    OSError as from the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        backend.save(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception for what the disk refuses
        raise OSError(f"{folder / 'tokenizer.json'}: {error}") from error
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": spell_out_specials,
        **special,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def load_hf(path: Path) -> BackendTokenizer:
    """Read a tokenizer.json (and, for its special tokens, a tokenizer_config.json beside it)."""
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for anything it cannot parse
        raise DataError(f"{path}: not a tokenizer.json of the tokenizers library ({error})") from error
    declared = tokenizer_config(path.parent / "tokenizer_config.json")
    special = {
        role: token for role, token in _special_tokens(declared).items() if backend.token_to_id(token) is not None
    }
    candidates = (END_OF_TEXT, special.get("eos_token"), *EOS_NAMES)
    for token in candidates:
        if token is not None and backend.token_to_id(token) is not None:
            special["eos_token"] = token
            break
    if "pad_token" not in special:
        special.update([("pad_token", name) for name in PAD_NAMES if backend.token_to_id(name) is not None][:1])
    spell_out = declared.get("split_special_tokens") is True
    return BackendTokenizer(backend, f"HFTokenizer {path}", special, spell_out_specials=spell_out)


def load_gpt2_bpe(vocab: Path, merges: Path) -> BackendTokenizer:
    """Read GPT-2's byte-level BPE: vocab.json and merges.txt."""
    try:
        backend = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # as above
        raise DataError(f"{vocab}, {merges}: not a GPT-2 vocabulary and its merges ({error})") from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id(END_OF_TEXT) is None:
        raise DataError(f"{vocab}: has no {END_OF_TEXT}, the end-of-document token of GPT2BPETokenizer")
    backend.add_special_tokens([END_OF_TEXT])
    return BackendTokenizer(backend, f"GPT2BPETokenizer {vocab}", {"eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT})


def load_characters(path: Path) -> BackendTokenizer:
    """Read the vocabulary of single characters that tools/train_tokenizer.py writes."""
    mend = "write one with tools/train_tokenizer.py --type characters"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not a vocabulary of characters ({error}); {mend}") from error
    characters = content.get("characters") if isinstance(content, dict) else None
    if not isinstance(content, dict) or content.get("type") != CHARACTERS_TYPE or not isinstance(characters, list):
        raise DataError(f"{path}: not a vocabulary of characters (no {CHARACTERS_TYPE!r} in it); {mend}")
    wrong = [c for c in characters if not isinstance(c, str) or len(c) != 1]
    if wrong or len(set(characters)) != len(characters):
        raise DataError(
            f"{path}: `characters` must be different single characters; found {wrong[0]!r}"
            if wrong
            else f"{path}: a character occurs twice; {mend}"
        )
    vocabulary = {token: i for i, token in enumerate((END_OF_TEXT, UNKNOWN, *characters))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"(?m)."), "isolated"
    )  # Oniguruma's (?m) lets the dot match a newline
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([END_OF_TEXT, UNKNOWN])
    return BackendTokenizer(
        backend, f"CharLevelTokenizer {path}", {"eos_token": END_OF_TEXT, "unk_token": UNKNOWN}, spell_out_specials=True
    )


def _largest_id(backend: Tokenizer) -> int:
    return max(backend.get_vocab(with_added_tokens=True).values(), default=-1)


def tokenizer_config(path: Path) -> dict[str, Any]:
    """A tokenizer_config.json; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); repair or remove it") from error
    return config if isinstance(config, dict) else {}


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """eos_token, bos_token, pad_token and unk_token of a tokenizer_config.json."""
    found = {}
    for role in ("eos_token", "bos_token", "pad_token", "unk_token"):
        token = config.get(role)
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            found[role] = token
    return found
