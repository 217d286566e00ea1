"""tiktoken's byte-level BPE: rank files and named encodings, always offline.

    vocab_file: cl100k_base (a name)      ─▶ tiktoken's cache (TIKTOKEN_CACHE_DIR) ─┐
    vocab_file: x/cl100k_base.tiktoken    ─▶ that file; pattern as tiktoken has it ─┼─▶ tiktoken.Encoding ─▶ TiktokenTokenizer
    vocab_file: x/mine.tiktoken, mine.json ─▶ {"pattern": …, "special_tokens": {…}} ─┘            │
                                                                  twin in the tokenizers library ◀┘─▶ save_pretrained, gigatoken

The name of a special token in the text encodes as that token. The twin has the same ids on probes and random texts, or it is refused.
One difference can remain: where two pairs overlap that merge into the same token, tiktoken takes the left one, the twin the
one whose parts have lower ranks.
"""

import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from megamesh.errors import ConfigError, DataError
from megamesh.tokenizer.backend import END_OF_TEXT, EOS_NAMES, BackendTokenizer
from megamesh.tokenizer.base import check_ids

if TYPE_CHECKING:
    from tiktoken import Encoding

SUFFIX = ".tiktoken"
SCRAPS = (
    " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\x00", "\x85", "\ufeff", "'s", "'LL", "'", "don't", "WE'VE", "a", "Z", "the", " of",
    "CamelCase", "İ", "ſ", "é", "e\u0301", "ß", "ǅ", "漢字", "한국", "\u1100", "ไทย", "हिन्दी", "١٢٣", "1", "22", "333", "4444", "½", "Ⅷ",
    "🙂", "👨\u200d👩", "\U0001f1e9", "_", "-", "=====", "/", "\\n", "https://", "{", "});", "…", "°", "\u200b", "\u2028", "<|", "|>",
)  # fmt: skip
"""What random texts are strung together from."""


class TiktokenTokenizer:
    """A tiktoken encoding behind the protocol of base.py."""

    def __init__(self, vocab_file: str):
        self.name = f"TiktokenTokenizer {vocab_file}"
        self._vocab_file = vocab_file
        self._encoding = _load(vocab_file)
        self._special: dict[str, int] = {
            name: self._encoding.encode_single_token(name) for name in self._encoding.special_tokens_set
        }
        self._special_ids = frozenset(self._special.values())
        self._end = next((name for name in (END_OF_TEXT, *EOS_NAMES) if name in self._special), None)
        if self._end is None:
            known = ", ".join((END_OF_TEXT, *EOS_NAMES))
            raise DataError(f"{self.name}: no end-of-document token: its special tokens hold none of {known}")
        self.vocab_size = self._encoding.n_vocab
        self.eod_id = self._special[self._end]
        self.eos_id: int | None = self.eod_id
        self.bos_id: int | None = None
        self.pad_id: int | None = None

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode(text, allowed_special="all")

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encoding.encode(text, allowed_special="all") for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        plain = [i for i in check_ids(ids, self.vocab_size, self.name) if i not in self._special_ids]
        return self._encoding.decode([i for i in plain if self._has(i)])

    def _has(self, token_id: int) -> bool:
        """Encodings leave ids free, and a model may produce one."""
        try:
            self._encoding.decode_single_token_bytes(token_id)
        except KeyError:
            return False
        return True

    @property
    def files(self) -> list[Path]:
        """The .tiktoken file and, where there is one, the description beside it; none where the encoding was named."""
        path = Path(self._vocab_file)
        return [file for file in (path, path.with_suffix(".json")) if file.is_file()] if path.is_file() else []

    @property
    def special_names(self) -> list[str]:
        """The special tokens."""
        return list(self._special)

    def twin(self) -> BackendTokenizer:
        """The same tokenizer in the tokenizers library; raises DataError where its ids would differ."""
        ranks = {token: self._encoding.encode_single_token(token) for token in self._encoding.token_byte_values()}
        special = {"eos_token": str(self._end)}
        texts = self._probes()
        expected = self.encode_batch(texts)
        model = _model(ranks, self._special)
        for words in _ways_to_cut(self._encoding._pat_str):
            backend = Tokenizer(model)
            backend.pre_tokenizer = words
            backend.decoder = decoders.ByteLevel()
            backend.add_special_tokens(list(self._special))
            found = BackendTokenizer(backend, self.name, special)
            if found.encode_batch(texts) == expected:
                return found
        raise DataError(
            f"{self.name}: its pattern {self._encoding._pat_str!r} cuts words in a way that the tokenizers library does not follow, "
            "so that transformers could not have the same token ids; convert it by hand to a tokenizer.json"
        )

    def save_pretrained(self, folder: str | Path) -> None:
        self.twin().save_pretrained(folder)

    def _probes(self, num_texts: int = 400, num_scraps: int = 30) -> list[str]:
        draw = random.Random(0)
        scraps = [*SCRAPS, *self._special]
        return ["", *("".join(draw.choices(scraps, k=num_scraps)) for _ in range(num_texts))]

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self._vocab_file,)


def _load(vocab_file: str) -> "Encoding":
    try:
        import tiktoken
        from tiktoken_ext import openai_public
    except ImportError:
        raise ConfigError("TiktokenTokenizer needs the tiktoken package: pip install megamesh[data]") from None
    path = Path(vocab_file)
    if not path.is_file():
        return _from_cache(vocab_file, tiktoken.list_encoding_names())
    ranks = _ranks(path)
    described = path.with_suffix(".json")
    constructor = openai_public.ENCODING_CONSTRUCTORS.get(path.name.removesuffix(SUFFIX))
    if constructor is None and not described.is_file():
        raise DataError(
            f"{path}: a rank file does not say how words are cut; name it as the encoding that it belongs to (cl100k_base{SUFFIX}), "
            f'or write {described} with {{"pattern": "…", "special_tokens": {{"{END_OF_TEXT}": {len(ranks)}}}}}'
        )
    try:
        if constructor is None:
            return tiktoken.Encoding(path.stem, mergeable_ranks=ranks, **_description(described))
        loaders: Any = dict.fromkeys(("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"), lambda *_, **__: ranks)
        with patch.multiple(openai_public, **loaders):
            return tiktoken.Encoding(**constructor())
    except (AssertionError, ValueError) as error:
        raise DataError(f"{path}: not the ranks of {path.stem} ({error}); get the file again") from error


def _from_cache(name: str, known: Sequence[str]) -> "Encoding":
    import tiktoken

    if name not in known:
        problem = "is a folder" if Path(name).is_dir() else "does not exist"
        raise DataError(
            f"{name}: {problem}, nor is it an encoding of tiktoken; set vocab_file to a {SUFFIX} file or one of {', '.join(known)}"
        )
    with _no_network(name):
        return tiktoken.get_encoding(name)


@contextmanager
def _no_network(name: str) -> Iterator[None]:
    """Downloads become a DataError: a cluster's nodes would each wait for them, or wait for ever."""

    def refuse(address: str) -> bytes:
        folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
        where = f"TIKTOKEN_CACHE_DIR={folder}" if folder else "tiktoken's cache (TIKTOKEN_CACHE_DIR is not set)"
        raise DataError(
            f"{name}: {address} is not in {where}, and nothing is downloaded here; fill the cache on a machine with a network "
            f"(TIKTOKEN_CACHE_DIR=… python -c 'import tiktoken; tiktoken.get_encoding(\"{name}\")'), "
            f"or set vocab_file to the {SUFFIX} file"
        )

    with patch("tiktoken.load.read_file", refuse):
        yield


def _ranks(path: Path) -> dict[bytes, int]:
    from tiktoken.load import load_tiktoken_bpe

    try:
        with patch.dict(os.environ, {"TIKTOKEN_CACHE_DIR": ""}):  # no copy of a local file in the cache
            ranks = load_tiktoken_bpe(str(path))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not a {SUFFIX} file of tokens and ranks ({error})") from error
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(f"{path}: has no token for the byte {missing[0]}, so that not every text could be encoded")
    return ranks


def _description(path: Path) -> dict[str, Any]:
    """pat_str and special_tokens from the file beside the ranks."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pattern, special = content["pattern"], content["special_tokens"]
        right = isinstance(pattern, str) and all(isinstance(i, int) and i >= 0 for i in special.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: {error!r}; it needs a pattern and special_tokens, a mapping of names to ids"
        ) from error
    if not right:
        raise DataError(f"{path}: pattern must be text and special_tokens must map names to ids")
    return {"pat_str": pattern, "special_tokens": special}


def _model(ranks: dict[bytes, int], special: dict[str, int]) -> models.BPE:
    """Every way to make a token of two others is a merge; special tokens keep their ids by being in the vocabulary."""
    written = _written_bytes()
    spelled = {token: "".join(written[byte] for byte in token) for token in ranks}
    merges = [
        (rank, ranks[token[:cut]], ranks[token[cut:]], (spelled[token[:cut]], spelled[token[cut:]]))
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()} | special
    return models.BPE(vocabulary, [pair for *_, pair in sorted(merges)], ignore_merges=True)


def _ways_to_cut(pattern: str) -> Iterator[Any]:
    """Likely equals of a tiktoken pattern: GPT-2's own, then the pattern as Oniguruma spells it.

    There a `+` after a quantifier repeats it and `$` is the end of a line.
    """
    yield pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = re.sub(r"([+*?]|\{\d+(?:,\d*)?\})\+", r"\1", pattern).replace(r"\s+$", r"\s+\z")
    yield pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _written_bytes() -> list[str]:
    """GPT-2's character for each byte: itself where it is printable, else the next from U+0100 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte) if byte in visible else chr(next(hidden)) for byte in range(256)]
