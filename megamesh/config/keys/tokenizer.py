"""Keys of the tokenizer."""

from typing import Literal

from pydantic import Field

from megamesh.config.keys.section import Section


class TokenizerConfig(Section):
    """Text to token ids."""

    tokenizer_type: Literal[
        "HFTokenizer", "GPT2BPETokenizer", "SPMTokenizer", "CharLevelTokenizer", "TiktokenTokenizer"
    ] = Field("GPT2BPETokenizer", description="Kind of tokenizer.")
    vocab_file: str | None = Field(
        None,
        description="tokenizer.json, sentencepiece model, vocab.json, vocabulary of characters, .tiktoken file or name of a tiktoken "
        "encoding.",
    )
    merge_file: str | None = Field(None, description="merges.txt of GPT2BPETokenizer.")
