"""Text to token ids: HF tokenizer.json, GPT-2 BPE, sentencepiece and characters behind one protocol."""

from megamesh.tokenizer.base import Tokenizer
from megamesh.tokenizer.build import build_tokenizer, tokenizer_identity

__all__ = ["Tokenizer", "build_tokenizer", "tokenizer_identity"]
