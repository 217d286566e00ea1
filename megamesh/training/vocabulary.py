"""How many token ids the model must know: the tokenizer's, or what `vocab_size` says; and whether the data has that tokenizer's ids."""

import logging
from pathlib import Path

from megamesh.config.keys import DataConfig, ModelConfig, TokenizerConfig
from megamesh.data.samples.paths import as_found
from megamesh.data.store.manifest import tokenizer_disagreement, tokenizer_facts
from megamesh.errors import ConfigError, DataError
from megamesh.tokenizer.build import build_tokenizer, tokenizer_identity

log = logging.getLogger(__name__)

MOST_WARNINGS = 5
SAY_SIZE = "--set vocab_size=50257 (GPT-2's), for example"


def vocabulary_size(model: ModelConfig, tokenizer: TokenizerConfig) -> int:
    """The unpadded vocabulary. With a tokenizer file the two must agree; without one, `vocab_size` decides.

    Raises ConfigError where they disagree or both are missing, DataError where the tokenizer's file cannot be read.
    """
    if tokenizer.vocab_file is None:
        if model.vocab_size is None:
            raise ConfigError(
                f"vocab_file and vocab_size are both missing; name the tokenizer's file, or give its number of ids: {SAY_SIZE}"
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
    """The unpadded vocabulary, as training will find it, for a look ahead: with vocab_size a tokenizer that is not there yet is not needed.

    Raises ConfigError or DataError, which say so, where neither is known.
    """
    files = [Path(path) for path in (tokenizer.vocab_file, tokenizer.merge_file) if path]
    absent = not files or not all(path.exists() for path in files)
    if absent and model.vocab_size is not None:
        return model.vocab_size
    try:
        return vocabulary_size(model, tokenizer)
    except DataError as error:
        raise DataError(
            f"{error}; or, without a tokenizer, say its number of ids: {SAY_SIZE}" if absent else str(error)
        ) from error


def warn_about_tokenizers(data: DataConfig, tokenizer: TokenizerConfig) -> None:
    """Log a warning for each dataset whose manifest names another tokenizer; nothing where the run or a dataset names none."""
    if tokenizer.vocab_file is None:
        return
    ours = tokenizer_facts(*tokenizer_identity(tokenizer, build_tokenizer(tokenizer)))
    prefixes = [data.data_path] if data.data_path is not None else []
    for paths in (data.train_data_paths, data.valid_data_paths, data.test_data_paths):
        prefixes += paths or []
    found = (tokenizer_disagreement(prefix, ours) for prefix in dict.fromkeys(map(as_found, prefixes)))
    messages = [message for message in found if message is not None]
    for message in messages[:MOST_WARNINGS]:
        log.warning("%s", message)
    if len(messages) > MOST_WARNINGS:
        log.warning("%d more datasets were tokenized with another tokenizer", len(messages) - MOST_WARNINGS)
