"""Conversations → ids and labels, through the chat template of a tokenizer.json's folder.

    [{role, content}, …] ──template (transformers, jinja2)──▶ text and the spans of it that the model is to write
                         ──tokenizers, with offsets─────────▶ ids, and labels: −100 outside the spans

Ids are those of transformers' apply_chat_template: the names of special tokens become these tokens, in messages too, and no post-processor
adds any. Spans: where the template marks them ({% generation %}), its own; else what a message of the generation role adds to
the text of the messages before it with the prompt to write. That needs texts that nest; a template that rewrites earlier messages is
refused. A token that lies partly in a span is counted. Unlike GPT-NeoX's script, a conversation appears once, not once per message.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend

from megamesh.errors import ConfigError, DataError
from megamesh.tokenizer.backend import BackendTokenizer, tokenizer_config
from megamesh.tokenizer.base import Tokenizer

IGNORED = -100
_MARKS_SPANS = re.compile(r"\{%-?\s*generation\s*-?%\}")

Message = dict[str, Any]
Span = tuple[int, int]


@dataclass(frozen=True)
class ChatTemplate:
    """A jinja2 template, and the special tokens that it may name (`bos_token`, …)."""

    text: str
    special: dict[str, str]


@dataclass(frozen=True)
class ChatOptions:
    """What is counted: the messages of `generation_role`; with `only_last` those at the conversation's end; with `only_end` nothing but
    the end-of-document token (--for-rm); without `mask` every token."""

    generation_role: str = "assistant"
    mask: bool = True
    only_last: bool = False
    only_end: bool = False

    def __post_init__(self) -> None:
        if not self.mask and (self.only_last or self.only_end):
            raise ConfigError(
                "--no-mask counts every token, which contradicts --only-last and --for-rm; keep one of them"
            )


def load_chat_template(vocab_file: str | Path, template_file: str | Path | None = None) -> ChatTemplate:
    """The template in `template_file`, else chat_template.jinja or tokenizer_config.json beside tokenizer.json. Raises DataError."""
    folder = Path(vocab_file).parent
    config = tokenizer_config(folder / "tokenizer_config.json")
    special = {
        key: token["content"] if isinstance(token, dict) else token
        for key, token in config.items()
        if key.endswith("_token") and isinstance(token, str | dict)
    }
    beside = folder / "chat_template.jinja"
    path = Path(template_file) if template_file is not None else beside
    if template_file is not None or beside.is_file():
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), special)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); set --chat-template to a jinja2 file") from error
    text = config.get("chat_template")
    if isinstance(text, list):
        text = next((entry.get("template") for entry in text if entry.get("name") == "default"), None)
    if not isinstance(text, str):
        raise DataError(
            f"{folder}: no chat template (chat_template.jinja, or chat_template in tokenizer_config.json) beside the tokenizer; "
            "name one with --chat-template"
        )
    return ChatTemplate(text, special)


class ConversationEncoder:
    """Conversations, as lists of messages or as JSON text of such, to flat ids, lengths and labels.

    Every conversation ends with `end_id` unless that is None; its label is counted where the last token's is, and always with only_end.
    Raises ConfigError for tokenizers without a tokenizer.json, DataError for what is no conversation or does not fit the template.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, options: ChatOptions, *, end_id: int | None):
        if not isinstance(tokenizer, BackendTokenizer) or tokenizer.spells_out_specials:
            raise ConfigError(
                f"{tokenizer.name}: chat templates need an HFTokenizer (tokenizer.json) whose special tokens are not spelled out"
            )
        if options.only_end and end_id is None:
            raise ConfigError("--for-rm counts nothing but the end-of-document token; add --append-eod")
        try:
            from transformers.utils.chat_template_utils import render_jinja_template
        except ImportError:
            raise ConfigError("chat templates need transformers and jinja2: pip install megamesh[hf]") from None
        self.name = f"chat template, {tokenizer.name}"
        self._render_all = render_jinja_template
        self._template = template
        self._options = options
        self._end_id = end_id
        content = json.loads(tokenizer.backend.to_str())
        content["post_processor"] = None  # it would cut spaces off the offsets
        self._backend = Backend.from_str(json.dumps(content))
        self._marks_spans = bool(_MARKS_SPANS.search(template.text)) and options.generation_role == "assistant"

    def encode(self, conversations: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Flat ids [tokens] int32, lengths [conversations] int64, labels [tokens] int32."""
        rendered = [self._text_and_spans(_messages(conversation)) for conversation in conversations]
        encodings = self._backend.encode_batch([text for text, _ in rendered], add_special_tokens=False)
        ids, labels = [], []
        for encoding, (_, spans) in zip(encodings, rendered, strict=True):
            row = np.array(encoding.ids, dtype=np.int32)
            counted = _inside(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), spans)
            if self._end_id is not None:
                counted = np.append(counted, self._options.only_end or len(row) == 0 or counted[-1])
                row = np.append(row, np.int32(self._end_id))
            ids.append(row)
            labels.append(np.where(counted, row, np.int32(IGNORED)))
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        nothing = np.empty(0, dtype=np.int32)
        return np.concatenate([nothing, *ids]), lengths, np.concatenate([nothing, *labels])

    def _text_and_spans(self, messages: list[Message]) -> tuple[str, list[Span]]:
        if not self._options.mask:
            text, _ = self._render(messages)
            return text, [(0, len(text))]
        if self._options.only_end:
            return self._render(messages)[0], []
        ends_right = messages[-1]["role"] == self._options.generation_role
        if self._marks_spans:
            text, spans = self._render(messages, with_spans=True)
            return text, (spans[-1:] if ends_right else []) if self._options.only_last else spans
        text, _ = self._render(messages)
        last = len(messages) - 1
        wanted = [i for i, message in enumerate(messages) if message["role"] == self._options.generation_role]
        return text, [self._added_by(messages, i, text) for i in wanted if i == last or not self._options.only_last]

    def _added_by(self, messages: list[Message], i: int, text: str) -> Span:
        """What message i adds, behind the prompt to write it."""
        before, _ = self._render(messages[:i], prompt=True)
        through = text if i == len(messages) - 1 else self._render(messages[: i + 1])[0]
        if not through.startswith(before) or not text.startswith(through):
            raise DataError(
                f"the chat template does not write message {i} ({messages[i]['role']}) behind the text of the messages before it, so that "
                f"its tokens cannot be told; mark them in the template with {{% generation %}}: {_short(messages)}"
            )
        return len(before), len(through)

    def _render(
        self, messages: list[Message], *, prompt: bool = False, with_spans: bool = False
    ) -> tuple[str, list[Span]]:
        try:
            texts, spans = self._render_all(
                conversations=[messages],
                chat_template=self._template.text,
                return_assistant_tokens_mask=with_spans,
                add_generation_prompt=prompt,
                **self._template.special,
            )
        except Exception as error:  # a template may raise whatever it likes
            raise DataError(f"the chat template refuses {_short(messages)}: {error}") from error
        return texts[0], list(spans[0]) if with_spans else []


def problem_with(value: Any) -> str | None:
    """Why a value is no conversation; None where it is one."""
    if not isinstance(value, list) or not value:
        return "not a list of messages"
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"message {i} is not an object with a role"
    return None


def _messages(conversation: Any) -> list[Message]:
    """The messages without keys of null, which templates take for text."""
    if isinstance(conversation, str):
        try:
            conversation = json.loads(conversation)
        except ValueError as error:
            raise DataError(f"{_short(conversation)}: not a conversation in JSON ({error})") from error
    problem = problem_with(conversation)
    if problem is not None:
        raise DataError(f"{_short(conversation)}: {problem}; write [{{role, content}}, …]")
    return [{key: value for key, value in message.items() if value is not None} for message in conversation]


def _inside(offsets: np.ndarray, spans: list[Span]) -> np.ndarray:
    """Tokens whose characters [tokens, (first, end)] touch a span."""
    counted = np.zeros(len(offsets), dtype=bool)
    for start, end in spans:
        counted |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
    return counted


def _short(value: Any, limit: int = 160) -> str:
    text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
