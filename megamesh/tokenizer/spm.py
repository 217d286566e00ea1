"""Sentencepiece models (unigram and BPE).

    model file ─▶ SentencePieceProcessor ─▶ SentencePieceTokenizer ──save_pretrained, save_sentencepiece──▶ spm_export.py
    text ─▶ cut at user-defined symbols ─▶ each part encoded by itself ─▶ ids

End-of-document id: the model's eos (`</s>`); a model trained without one is refused. `encode` adds neither bos nor eos.
Exact round trip: every text without U+2581 (sentencepiece's own mark for a space), for models trained by tools/train_tokenizer.py.

A user-defined symbol is always a token of its own, so where the model changes no text, cutting there changes no best segmentation. It
does keep sums short: sentencepiece adds a document's scores in fp32, and after some thousand tokens rounding decides between close
segmentations.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from megamesh.errors import ConfigError, DataError
from megamesh.tokenizer.base import Tokenizer, check_ids
from megamesh.tokenizer.spm_export import USER_DEFINED, export_sentencepiece, write_sentencepiece


class SentencePieceTokenizer:
    """A sentencepiece model behind the protocol of base.py."""

    def __init__(self, path: Path):
        self.name = f"SPMTokenizer {path}"
        self.path = path
        self._model = path.read_bytes()
        try:
            self._processor = SentencePieceProcessor(model_proto=self._model)
        except Exception as error:  # the binding raises RuntimeError or a bare Exception
            raise DataError(f"{path}: not a sentencepiece model ({error})") from error
        self.vocab_size = int(self._processor.get_piece_size())
        if self._processor.eos_id() < 0:
            raise DataError(f"{path}: the model has no eos, which marks the end of a document; train it with an eos_id")
        self.eod_id = int(self._processor.eos_id())
        self.eos_id: int | None = self.eod_id
        self.bos_id = _optional(self._processor.bos_id())
        self.pad_id = _optional(self._processor.pad_id())
        self._symbols = _symbols(self._model)
        self._cut = (
            re.compile("|".join(map(re.escape, sorted(self._symbols, key=len, reverse=True))))
            if self._symbols
            else None
        )

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._cut is None:
            return [list(ids) for ids in self._processor.encode(list(texts), num_threads=1)]
        parts = [self._cut.split(text) for text in texts]
        encoded = iter(self._processor.encode([part for group in parts for part in group], num_threads=1))
        documents = []
        for text, group in zip(texts, parts, strict=True):
            ids = list(next(encoded))
            for symbol, _ in zip(self._cut.finditer(text), group[1:], strict=True):
                ids.append(self._symbols[symbol.group()])
                ids += next(encoded)
            documents.append(ids)
        return documents

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._processor.decode(check_ids(ids, self.vocab_size, self.name)))

    def save_pretrained(self, folder: str | Path) -> None:
        export_sentencepiece(self._processor, self._model, Path(folder), self.name, self.encode)

    def save_sentencepiece(self, folder: str | Path) -> None:
        """Write the model itself, with code that transformers' AutoTokenizer runs (trust_remote_code=True). Same ids for any normaliser."""
        write_sentencepiece(self._processor, self._model, Path(folder), sorted(self._symbols))

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return type(self), (self.path,)


class SentencePieceWithModel(SentencePieceTokenizer):
    """The same, exported as the model itself."""

    def save_pretrained(self, folder: str | Path) -> None:
        self.save_sentencepiece(folder)


def exported_as_model(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer whose export is the sentencepiece model. ConfigError where it is none."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise ConfigError(
            f"--tokenizer-files sentencepiece: {tokenizer.name} is no sentencepiece model; leave the option out"
        )
    return SentencePieceWithModel(tokenizer.path)


def _symbols(model: bytes) -> dict[str, int]:
    """User-defined symbols and their ids, where the model takes text as it is; else none."""
    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    changes = proto.normalizer_spec
    if changes.precompiled_charsmap or changes.add_dummy_prefix or changes.remove_extra_whitespaces:
        return {}
    return {p.piece: i for i, p in enumerate(proto.pieces) if p.type == USER_DEFINED and " " not in p.piece}


def _optional(token_id: int) -> int | None:
    return int(token_id) if token_id >= 0 else None
