"""Learn a vocabulary from text.

    documents ─▶ lines, thinned to max_bytes ─▶ sentencepiece (unigram, bpe) ─▶ .model
              ─▶ thinned to max_bytes        ─▶ byte-level BPE               ─▶ tokenizer.json
              ─────────────────────────────────▶ characters                  ─▶ characters.json

Same documents and settings give the same file, on any machine: text is thinned evenly instead of at random, and the number of training
threads (which decides the order of floating-point sums) is a constant. Text round-trips exactly: no normalisation, no dummy prefix, all
whitespace kept, newline and tab are tokens of their own, and what the vocabulary lacks falls back to bytes.
"""

import io
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from megamesh.errors import ConfigError, DataError
from megamesh.tokenizer.backend import CHARACTERS_TYPE, END_OF_TEXT, UNKNOWN
from megamesh.tokenizer.spm_export import UNIGRAM

log = logging.getLogger(__name__)

TRAINING_THREADS = 4
LONGEST_LINE_BYTES = 16384


def train_sentencepiece(lines: Iterable[str], output: Path, *, vocab_size: int, model_type: str) -> None:
    """Train a sentencepiece model (`unigram` or `bpe`) with byte fallback. Ids: 0 <unk>, 1 <s>, 2 </s> (end of document), 3 <pad>.

    Raises ConfigError where the vocabulary size does not suit the text, DataError where there is no text.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9999,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            user_defined_symbols=["\n", "\t"],
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            max_sentence_length=LONGEST_LINE_BYTES,
            num_threads=TRAINING_THREADS,
            train_extremely_large_corpus=True,
            minloglevel=2,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(f"--vocab-size={vocab_size} with --type sentencepiece: {_reason(error)}") from error
    write_atomically(output, quantised(model.getvalue()))


def quantised(model: bytes) -> bytes:
    """The model with its scores rounded to multiples of 1/256.

    Sums of some thousand such scores are exact in fp32 and fp64. So where two segmentations score the same (16 + 8 and 8 + 16 spaces),
    sentencepiece (fp32) and tokenizers (fp64) see the same tie and break it alike, instead of each following its own rounding errors.
    """
    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    if proto.trainer_spec.model_type == UNIGRAM:
        for piece in proto.pieces:
            piece.score = round(piece.score * 256) / 256
    return bytes(proto.SerializeToString())


def _reason(error: Exception) -> str:
    """The last sentence of a sentencepiece error, which is the one that says what to change."""
    text = str(error).strip()
    return text.rsplit("] ", 1)[-1].split(" or decrease character_coverage")[0] or "no text to learn from"


def train_byte_level_bpe(documents: Iterable[str], output: Path, *, vocab_size: int) -> None:
    """Train GPT-2's kind of byte-level BPE; id 0 is <|endoftext|>."""
    smallest = len(pre_tokenizers.ByteLevel.alphabet()) + 1
    if vocab_size < smallest:
        raise ConfigError(f"--vocab-size={vocab_size} is too small for bytes; use at least {smallest}")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    if backend.get_vocab_size() < vocab_size:
        log.warning(
            "the text holds only %d tokens that occur twice; --vocab-size asked for %d",
            backend.get_vocab_size(),
            vocab_size,
        )
    write_atomically(output, backend.to_str().encode("utf-8"))


def train_characters(documents: Iterable[str], output: Path, *, vocab_size: int | None) -> None:
    """Collect every character of the text (the `vocab_size` - 2 most frequent, where that is given)."""
    counts: dict[str, int] = {}
    for document in documents:
        for character in document:
            counts[character] = counts.get(character, 0) + 1
    if vocab_size is not None and vocab_size < 3:
        raise ConfigError(f"--vocab-size={vocab_size} is too small; {END_OF_TEXT} and {UNKNOWN} take two")
    frequent = sorted(counts, key=lambda c: (-counts[c], c))[: None if vocab_size is None else vocab_size - 2]
    content = {"type": CHARACTERS_TYPE, "characters": sorted(frequent)}
    write_atomically(output, (json.dumps(content, ensure_ascii=True, indent=0) + "\n").encode("ascii"))


def lines_of(documents: Iterable[str]) -> Iterator[str]:
    """The lines of documents, without line ends and empty lines; one longer than sentencepiece accepts is cut instead of dropped."""
    limit = LONGEST_LINE_BYTES // 4
    for document in documents:
        for line in document.split("\n"):
            yield from (line[i : i + limit] for i in range(0, len(line), limit))


def thinned(texts: Iterable[str], *, total_bytes: int, max_bytes: int) -> Iterator[str]:
    """Every k-th text, evenly, so that about `max_bytes` of `total_bytes` remain."""
    share = min(1.0, max_bytes / max(total_bytes, 1))
    for number, text in enumerate(texts):
        if int((number + 1) * share) > int(number * share):
            yield text


def non_empty(documents: Iterable[str], source: str) -> Iterator[str]:
    """The documents; raises DataError at the end where none of them held a character."""
    seen = False
    for document in documents:
        seen = seen or bool(document)
        yield document
    if not seen:
        raise DataError(f"{source}: no text to learn a vocabulary from")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under its name only when all of it is on disk. Raises DataError where it cannot be."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}); choose another --output") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
