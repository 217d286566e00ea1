"""How many token ids the model must know: the tokenizer's, or what `vocab_size` says."""

from pathlib import Path

from megamesh.config.sections import ModelConfig, TokenizerConfig
from megamesh.errors import ConfigError
from megamesh.tokenizer.build import build_tokenizer


def vocabulary_size(model: ModelConfig, tokenizer: TokenizerConfig) -> int:
    """The unpadded vocabulary. With a tokenizer file the two must agree; without one, `vocab_size` decides.

    Raises ConfigError where they disagree or both are missing, DataError where the tokenizer's file cannot be read.
    """
    if tokenizer.vocab_file is None:
        if model.vocab_size is None:
            raise ConfigError(
                "vocab_file and vocab_size are both missing; name the tokenizer's file, or give its number of ids"
            )
        return model.vocab_size
    size = build_tokenizer(tokenizer).vocab_size
    if model.vocab_size is not None and model.vocab_size < size:
        raise ConfigError(
            f"vocab_size={model.vocab_size} is smaller than the {size} ids of {tokenizer.vocab_file}; "
            f"leave vocab_size out, or set it to {size}"
        )
    return model.vocab_size or size


def known_vocabulary_size(model: ModelConfig, tokenizer: TokenizerConfig) -> int:
    """The unpadded vocabulary, as training will find it; a tokenizer that is not there yet is not needed beside vocab_size."""
    if model.vocab_size is not None and not (tokenizer.vocab_file and Path(tokenizer.vocab_file).exists()):
        return model.vocab_size
    return vocabulary_size(model, tokenizer)
