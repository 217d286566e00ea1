"""TokenizerConfig → Tokenizer."""

from megamesh.config.sections import TokenizerConfig
from megamesh.tokenizer.backend import load_characters, load_gpt2_bpe, load_hf
from megamesh.tokenizer.base import Tokenizer, required_file
from megamesh.tokenizer.spm import SentencePieceTokenizer


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer that a configuration names.

    Raises ConfigError where a key is missing and DataError where a file is missing or damaged.
    """
    kind = config.tokenizer_type
    if kind == "HFTokenizer":
        return load_hf(required_file(config.vocab_file, "vocab_file", kind, "a tokenizer.json"))
    if kind == "SPMTokenizer":
        return SentencePieceTokenizer(required_file(config.vocab_file, "vocab_file", kind, "a sentencepiece model"))
    if kind == "CharLevelTokenizer":
        return load_characters(
            required_file(
                config.vocab_file, "vocab_file", kind, "a vocabulary of characters (tools/train_tokenizer.py)"
            )
        )
    vocab = required_file(config.vocab_file, "vocab_file", kind, "GPT-2's vocab.json")
    return load_gpt2_bpe(vocab, required_file(config.merge_file, "merge_file", kind, "GPT-2's merges.txt"))
