"""TokenizerConfig → Tokenizer."""

from typing import Any

from megamesh.config.keys import TokenizerConfig
from megamesh.errors import ConfigError
from megamesh.tokenizer.backend import BackendTokenizer, load_characters, load_gpt2_bpe, load_hf
from megamesh.tokenizer.base import Tokenizer, required_file
from megamesh.tokenizer.spm import SentencePieceTokenizer
from megamesh.tokenizer.tiktoken_ranks import TiktokenTokenizer


def tokenizer_identity(config: TokenizerConfig, tokenizer: Tokenizer) -> tuple[str, int, list[str], dict[str, Any]]:
    """What the manifest of a dataset knows a tokenizer by: kind, number of ids, files, and what a tokenizer_config.json may change.

    The kind has the name of a tiktoken encoding in it, where there is no file.
    """
    kind: str = config.tokenizer_type
    files = [path for path in (config.vocab_file, config.merge_file) if path]
    if isinstance(tokenizer, TiktokenTokenizer):
        kind, files = (kind, [str(path) for path in tokenizer.files]) if tokenizer.files else (tokenizer.name, [])
    spelled = isinstance(tokenizer, BackendTokenizer) and tokenizer.spells_out_specials
    return kind, tokenizer.vocab_size, files, {"eod_id": tokenizer.eod_id, "special_tokens_are_text": spelled}


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer that a configuration names.

    Raises ConfigError where a key is missing and DataError where a file is missing or damaged.
    """
    kind = config.tokenizer_type
    if kind == "HFTokenizer":
        return load_hf(required_file(config.vocab_file, "vocab_file", kind, "a tokenizer.json"))
    if kind == "SPMTokenizer":
        return SentencePieceTokenizer(required_file(config.vocab_file, "vocab_file", kind, "a sentencepiece model"))
    if kind == "TiktokenTokenizer":
        if config.vocab_file is None:
            raise ConfigError(f"tokenizer_type={kind} needs vocab_file: a .tiktoken file or the name of an encoding")
        return TiktokenTokenizer(config.vocab_file)
    if kind == "CharLevelTokenizer":
        return load_characters(
            required_file(
                config.vocab_file, "vocab_file", kind, "a vocabulary of characters (tools/train_tokenizer.py)"
            )
        )
    vocab = required_file(config.vocab_file, "vocab_file", kind, "GPT-2's vocab.json")
    return load_gpt2_bpe(vocab, required_file(config.merge_file, "merge_file", kind, "GPT-2's merges.txt"))
