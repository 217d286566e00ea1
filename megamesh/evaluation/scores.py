"""Numbers that say how good a language model is: perplexity of texts, accuracy on multiple-choice questions.

    documents ──windows──▶ log p of every token ──÷ words, bytes──▶ word and byte perplexity, bits per byte
    questions ──a request per choice──▶ log p of each ──most likely one right?──▶ acc; of each per character ──▶ acc_norm

Contract: the definitions are those of lm-eval's word_perplexity, byte_perplexity, bits_per_byte, acc and acc_norm. Perplexities are over
all documents together; per word and byte they can be compared between tokenizers, per token they cannot.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, tee
from pathlib import Path

from megamesh.errors import DataError
from megamesh.evaluation.likelihood import Request, encode_pair, log_likelihoods, prefix_id, windows
from megamesh.model.transformer import Transformer
from megamesh.tokenizer import Tokenizer

LARGEST_EXPONENT = math.log(1e300)
QUESTION = '{"context": "…", "choices": ["…", "…"], "answer": 0}'


@dataclass(frozen=True)
class TextScore:
    """How well documents are predicted. `log_likelihood` is in nats; words are what white space separates."""

    log_likelihood: float
    num_documents: int
    num_tokens: int
    num_words: int
    num_bytes: int

    @property
    def loss(self) -> float:
        """Cross entropy in nats per token."""
        return -self.log_likelihood / self.num_tokens

    @property
    def token_perplexity(self) -> float:
        return _perplexity(self.log_likelihood, self.num_tokens)

    @property
    def word_perplexity(self) -> float:
        return _perplexity(self.log_likelihood, self.num_words)

    @property
    def byte_perplexity(self) -> float:
        return _perplexity(self.log_likelihood, self.num_bytes)

    @property
    def bits_per_byte(self) -> float:
        return -self.log_likelihood / self.num_bytes / math.log(2)


@dataclass(frozen=True)
class Question:
    """A context, the texts that may follow it, and which of them is right."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class ChoiceScore:
    """The share of questions whose most likely choice is right. acc_norm: the most likely per character."""

    num_questions: int
    acc: float
    acc_norm: float

    @property
    def acc_stderr(self) -> float | None:
        return _standard_error(self.acc, self.num_questions)

    @property
    def acc_norm_stderr(self) -> float | None:
        return _standard_error(self.acc_norm, self.num_questions)


def score_texts(
    model: Transformer, tokenizer: Tokenizer, texts: Iterable[str], *, max_length: int, batch_size: int
) -> TextScore:
    """Predict every token of every document. Texts are drawn as they are needed. Raises DataError where there is none."""
    counts: Counter[str] = Counter()

    def requests() -> Iterator[Request]:
        for text in texts:
            tokens = tokenizer.encode(text)
            counts["documents"] += 1
            counts["tokens"] += len(tokens)
            counts["words"] += len(re.split(r"\s+", text))
            counts["bytes"] += len(text.encode("utf-8"))
            yield from windows(tokens, prefix_id(tokenizer), max_length)

    total = math.fsum(log_likelihoods(model, requests(), max_length=max_length, batch_size=batch_size))
    if not counts["tokens"]:
        raise DataError("the texts hold no token; there is nothing to predict")
    return TextScore(total, counts["documents"], counts["tokens"], counts["words"], counts["bytes"])


def score_choices(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Iterable[Question],
    *,
    max_length: int,
    batch_size: int,
    delimiter: str = " ",
) -> ChoiceScore:
    """Answer every question; `delimiter` stands between context and choice. Of equally likely choices the first counts.

    Questions are drawn as they are needed. Raises DataError where there is none.
    """
    asked, answered = tee(questions)
    requests = (encode_pair(tokenizer, q.context, delimiter + choice) for q in asked for choice in q.choices)
    found = log_likelihoods(model, requests, max_length=max_length, batch_size=batch_size)
    num_questions = num_right = num_right_normed = 0
    for question in answered:
        likely = list(islice(found, len(question.choices)))
        per_character = [value / len(choice) for value, choice in zip(likely, question.choices, strict=True)]
        num_questions += 1
        num_right += _first_largest(likely) == question.answer
        num_right_normed += _first_largest(per_character) == question.answer
    if not num_questions:
        raise DataError("there is no question to answer")
    return ChoiceScore(num_questions, num_right / num_questions, num_right_normed / num_questions)


def read_questions(path: str | Path) -> list[Question]:
    """Questions of a .jsonl file, one per line. Raises DataError, naming the line that is not one."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    # splitlines() would also cut at U+2028, which JSON allows in a string
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not numbered:
        raise DataError(f"{path} holds no question; write one per line: {QUESTION}")
    return [_question(line, f"{path}:{number}") for number, line in numbered]


def _question(line: str, place: str) -> Question:
    try:
        record = json.loads(line)
        context, choices, answer = record["context"], record["choices"], record["answer"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{place}: not a question; write {QUESTION}") from None
    texts = isinstance(choices, list) and all(map(_is_text, [context, *choices]))
    if not texts or "" in choices or len(choices) < 2:
        raise DataError(f"{place}: a question has a text as `context` and two or more, none empty, as `choices`")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise DataError(f"{place}: answer={answer!r} is not the number of a choice, 0 to {len(choices) - 1}")
    return Question(context, tuple(choices), answer)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _first_largest(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _perplexity(log_likelihood: float, count: int) -> float:
    exponent = -log_likelihood / count
    return math.exp(exponent) if exponent < LARGEST_EXPONENT else math.inf


def _standard_error(share: float, count: int) -> float | None:
    """Of the mean of `count` zeros and ones; one of them alone has none."""
    return math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else None
