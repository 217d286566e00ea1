"""Records → tokens and labels, an output each, aligned document by document and token by token.

    --mask-before-token   texts ─▶ ids ─▶ labels: what comes after the mark        outputs <key>, <key>_label for every key
    --segment-keys        texts of the keys ─▶ ids, joined ─▶ labels: the unmasked keys      outputs text, text_label
    --chat-key            conversation ─ chat template ─▶ ids ─▶ labels: what the model says     outputs <key>, <key>_label

Labels are int32: the id where it is counted in the loss, else -100. They go to `<prefix>_<output>_document`, as tokens do, and training
reads them with train_label_data_paths beside train_data_paths. GPT-NeoX names the labels of --mask-before-token `<prefix>_label_document`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from megamesh.data.preprocessing.encoders import Column, Encoder, TextEncoder, append_to_each
from megamesh.data.preprocessing.label_masks import join_segments, mask_before, parse_pattern
from megamesh.data.store.format import token_dtype
from megamesh.data.store.manifest import Tokenizer, digest
from megamesh.errors import ConfigError

LABEL_DTYPE = np.dtype("<i4")
SEGMENTS_OUTPUT = "text"


def label_output(key: str) -> str:
    return f"{key}_label"


@dataclass(frozen=True)
class Masking:
    """What is asked for: at most one of mark, segment_keys and chat_key, and what goes with it. Flags of the tool, checked by `check`."""

    mark: str | None = None
    segment_keys: tuple[str, ...] = ()
    mask_keys: tuple[str, ...] = ()
    chat_key: str | None = None
    chat_template: str | None = None
    generation_role: str = "assistant"
    no_mask: bool = False
    only_last: bool = False
    for_rm: bool = False

    @property
    def keys_flag(self) -> str:
        """The flag that names the keys that are read."""
        if self.segment_keys:
            return "--segment-keys"
        return "--chat-key" if self.chat_key is not None else "--jsonl-keys"

    def keys(self, jsonl_keys: Sequence[str] | None) -> tuple[str, ...]:
        """The keys that are read. Raises ConfigError where the flags do not go together."""
        self._check()
        named = self.segment_keys or ((self.chat_key,) if self.chat_key is not None else ())
        if named and jsonl_keys is not None:
            raise ConfigError(
                f"--jsonl-keys={' '.join(jsonl_keys)}: {self.keys_flag} names the keys that are read; leave one out"
            )
        keys = named or tuple(jsonl_keys or ("text",))
        if len(set(keys)) != len(keys):
            raise ConfigError(f"{self.keys_flag}={' '.join(keys)} names a key twice")
        if self.mark is not None and {label_output(key) for key in keys} & set(keys):
            raise ConfigError(
                f"--jsonl-keys={' '.join(keys)}: --mask-before-token writes a label output of that name itself"
            )
        return keys

    def _check(self) -> None:
        asked = {
            "--mask-before-token": self.mark is not None,
            "--segment-keys": bool(self.segment_keys),
            "--chat-key": self.chat_key is not None,
        }
        chosen = [flag for flag, given in asked.items() if given]
        if len(chosen) > 1:
            raise ConfigError(f"{' and '.join(chosen)} are different ways to mask; choose one")
        if self.mask_keys and not self.segment_keys:
            raise ConfigError(
                f"--mask-keys={' '.join(self.mask_keys)} needs --segment-keys, the keys that make a document"
            )
        self._check_segments()
        chat_only = {
            "--chat-template": self.chat_template is not None,
            "--no-mask": self.no_mask,
            "--only-last": self.only_last,
            "--for-rm": self.for_rm,
            "--generation-role": self.generation_role != "assistant",
        }
        for flag, given in chat_only.items():
            if given and self.chat_key is None:
                raise ConfigError(f"{flag} is about conversations: name their key with --chat-key, or leave it out")
        counted = [flag for flag in ("no_mask", "only_last", "for_rm") if getattr(self, flag)]
        if len(counted) > 1:
            flags = " and ".join(f"--{flag.replace('_', '-')}" for flag in counted)
            raise ConfigError(f"{flags} count different tokens; choose one")

    def _check_segments(self) -> None:
        strange = [key for key in self.mask_keys if key not in self.segment_keys]
        if strange:
            raise ConfigError(
                f"--mask-keys={' '.join(strange)} is not among --segment-keys={' '.join(self.segment_keys)}"
            )
        if self.segment_keys and set(self.mask_keys) == set(self.segment_keys):
            raise ConfigError(
                "--mask-keys names all of --segment-keys, so nothing would be counted in the loss; leave one out"
            )

    def described(self, template: Any = None) -> dict[str, Any]:
        """For the manifest: all that outputs depend on, the template as a digest; empty where nothing is masked."""
        facts = {name: value for name, value in asdict(self).items() if value and name != "chat_template"}
        if self.chat_key is None:
            facts.pop("generation_role")
        else:
            facts["chat_template"] = digest(repr(template).encode())
        return {name: list(value) if isinstance(value, tuple) else value for name, value in facts.items()}


class MarkEncoder:
    """Every key is an output, with labels beside it that count what comes after the mark's first occurrence."""

    def __init__(self, texts: TextEncoder, mark: str):
        self._mark = parse_pattern(mark, texts.tokenizer.vocab_size)
        self.tokenizer, self.keys = texts.tokenizer, texts.keys
        self.labels = tuple(map(label_output, texts.keys))
        self.outputs: Mapping[str, np.dtype] = {**texts.outputs, **dict.fromkeys(self.labels, LABEL_DTYPE)}
        self._texts = texts

    def prepare(self, values: Sequence[list[str]]) -> Sequence[list[str]]:
        return self._texts.prepare(values)

    def encode(self, values: Sequence[Sequence[str]]) -> dict[str, Column]:
        columns = self._texts.encode(values)
        labels = {
            label_output(key): Column(mask_before(column.ids, column.lengths, self._mark), column.lengths)
            for key, column in columns.items()
        }
        return {**columns, **labels}


class SegmentEncoder:
    """The texts of a record's keys are encoded one by one and joined to one document; the labels count those that are not masked.

    An end-of-document token is counted.
    """

    def __init__(self, texts: TextEncoder, mask_keys: Sequence[str], *, eod_id: int | None):
        self.tokenizer, self.keys = texts.tokenizer, texts.keys
        self.labels: tuple[str, ...] = (label_output(SEGMENTS_OUTPUT),)
        self.outputs: Mapping[str, np.dtype] = {
            SEGMENTS_OUTPUT: token_dtype(texts.tokenizer.vocab_size),
            **dict.fromkeys(self.labels, LABEL_DTYPE),
        }
        self._texts = texts
        self._masked = [key in mask_keys for key in texts.keys]
        self._eod_id = eod_id

    def prepare(self, values: Sequence[list[str]]) -> Sequence[list[str]]:
        return self._texts.prepare(values)

    def encode(self, values: Sequence[Sequence[str]]) -> dict[str, Column]:
        segments = self._texts.encode(values)
        ids, lengths, joined_labels = join_segments([segments[key] for key in self.keys], self._masked)
        tokens, labels = Column(ids, lengths), Column(joined_labels, lengths)
        if self._eod_id is not None:
            tokens, labels = append_to_each(tokens, self._eod_id), append_to_each(labels, self._eod_id)
        return {SEGMENTS_OUTPUT: tokens, label_output(SEGMENTS_OUTPUT): labels}


class Conversations(Protocol):
    """What turns conversations into ids and labels (the tokenizer package has one)."""

    def encode(self, conversations: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flat ids [tokens], the length of each conversation in tokens, and labels [tokens]."""
        ...


class ChatEncoder:
    """A conversation is a document; the labels, unless everything is counted, count what the model says."""

    def __init__(self, conversations: Conversations, tokenizer: Tokenizer, key: str, *, with_labels: bool):
        self.tokenizer = tokenizer
        self.keys: tuple[str, ...] = (key,)
        self.labels: tuple[str, ...] = (label_output(key),) if with_labels else ()
        self.outputs: Mapping[str, np.dtype] = {
            key: token_dtype(tokenizer.vocab_size),
            **dict.fromkeys(self.labels, LABEL_DTYPE),
        }
        self._conversations = conversations

    def prepare(self, values: Sequence[list[Any]]) -> Sequence[list[Any]]:
        return values

    def encode(self, values: Sequence[Sequence[Any]]) -> dict[str, Column]:
        ids, lengths, labels = self._conversations.encode(values[0])
        columns = dict(zip(self.outputs, (ids, labels), strict=False))
        return {name: Column(column, lengths) for name, column in columns.items()}


def masked_encoder(texts: TextEncoder, masking: Masking, eod_id: int | None) -> Encoder:
    """The encoder of texts that the flags ask for; `texts` must append no end-of-document token where there are segments."""
    if masking.mark is not None:
        return MarkEncoder(texts, masking.mark)
    return SegmentEncoder(texts, masking.mask_keys, eod_id=eod_id) if masking.segment_keys else texts
