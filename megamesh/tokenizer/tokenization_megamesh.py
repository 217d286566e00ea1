"""A sentencepiece model in transformers, read by the sentencepiece library itself. The file travels with an export and needs nothing of
MegaMesh.

    text ─▶ cut at `cut_at` ─▶ sentencepiece ─▶ ids ─▶ their pieces ─▶ transformers ─▶ the same ids

Pieces are named by id: the library's own pieces show an unknown character as it stands in the text, which may spell another piece.
"""

import re
from typing import Any, ClassVar

from transformers.tokenization_utils_sentencepiece import SentencePieceBackend


class MegaMeshSentencePieceTokenizer(SentencePieceBackend):
    """The ids that MegaMesh trained with. Names of special tokens in a text are spelled out."""

    # a name that no class of transformers looks for: they would convert the model, and normalise otherwise
    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "sentencepiece.model"}
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    is_fast = False

    def __init__(self, vocab_file: str, cut_at: tuple[str, ...] = (), **kwargs: Any) -> None:
        symbols = "|".join(map(re.escape, sorted(cut_at, key=len, reverse=True)))
        self._cut = re.compile(f"({symbols})") if cut_at else None
        super().__init__(vocab_file=vocab_file, cut_at=cut_at, special_tokens_pattern="none", **kwargs)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        parts = [text] if self._cut is None else self._cut.split(text)
        pieces = []
        for number, part in enumerate(parts):
            # odd ones are symbols, tokens of their own
            pieces += [part] if number % 2 else [self.sp_model.id_to_piece(i) for i in self.sp_model.encode(part)]
        return pieces

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return str(self.sp_model.decode([self.sp_model.piece_to_id(piece) for piece in tokens]))
