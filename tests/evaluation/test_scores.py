"""Perplexities and accuracies of models whose predictions are known."""

import json
import math
from pathlib import Path

import pytest
import torch

from megamesh.errors import DataError
from megamesh.evaluation.scores import ChoiceScore, Question, TextScore, read_questions, score_choices, score_texts
from megamesh.model.transformer import Transformer
from tests.hf.small_models import KNOWN, build, model_config, tokenizer

SIZES = {"max_length": 16, "batch_size": 3}


def indifferent() -> Transformer:
    """A model to which all tokens are equally likely."""
    model = build(model_config())
    torch.nn.init.zeros_(model.head.weight)
    return model


def test_an_indifferent_model_has_the_perplexity_of_its_vocabulary(tmp_path: Path) -> None:
    texts = ["The end of it", "x" * 40, "", " two\nwords "]
    found = score_texts(indifferent(), tokenizer(tmp_path), iter(texts), **SIZES)
    num_tokens = sum(map(len, texts))  # characters are tokens, and bytes
    assert (found.num_documents, found.num_tokens, found.num_words, found.num_bytes) == (4, num_tokens, 10, num_tokens)
    assert found.token_perplexity == found.byte_perplexity == pytest.approx(KNOWN, rel=1e-6)
    assert found.word_perplexity == pytest.approx(KNOWN ** (num_tokens / 10), rel=1e-5)
    assert found.loss == pytest.approx(math.log(KNOWN), rel=1e-6)
    assert found.bits_per_byte == pytest.approx(math.log2(KNOWN), rel=1e-6)


def test_bytes_are_those_of_utf8_and_what_is_too_large_is_infinite(tmp_path: Path) -> None:
    found = score_texts(indifferent(), tokenizer(tmp_path), ["é" * 1000], **SIZES)
    assert (found.num_tokens, found.num_bytes, found.num_words) == (1000, 2000, 1)
    assert found.byte_perplexity == pytest.approx(math.sqrt(KNOWN), rel=1e-6) and found.word_perplexity == math.inf


def test_an_indifferent_model_takes_the_shortest_choice_and_per_character_the_first(tmp_path: Path) -> None:
    questions = [
        Question("a", ("abcd", "ab", "abcdefgh"), 1),
        Question("", ("abcd", "ab", "abcdefgh"), 0),
        Question("b c", ("abcd", "abcdefgh"), 0),
        Question("b c", ("abcd", "abcdefgh"), 1),
    ]
    found = score_choices(indifferent(), tokenizer(tmp_path), iter(questions), delimiter="", **SIZES)
    assert found == ChoiceScore(4, acc=0.5, acc_norm=0.5)
    assert found.acc_stderr == pytest.approx(math.sqrt(0.25 / 3))
    assert ChoiceScore(1, 1.0, 1.0).acc_stderr is None


def test_the_delimiter_stands_before_the_choice_and_does_not_count_as_its_length(tmp_path: Path) -> None:
    """Its three tokens make both choices less likely, the short one more so for each of its characters."""
    question = [Question("a", ("abcd", "abcdefgh"), 1)]
    options = {**SIZES, "delimiter": " - "}
    found = score_choices(indifferent(), tokenizer(tmp_path), question, **options)
    assert found == ChoiceScore(1, acc=0.0, acc_norm=1.0)


def test_nothing_to_measure_is_an_error(tmp_path: Path) -> None:
    for texts in ([], [""]):
        with pytest.raises(DataError, match="no token"):
            score_texts(indifferent(), tokenizer(tmp_path), texts, **SIZES)
    with pytest.raises(DataError, match="no question"):
        score_choices(indifferent(), tokenizer(tmp_path), [], **SIZES)


def test_the_loss_is_a_mean_over_all_documents() -> None:
    score = TextScore(-12.0, num_documents=2, num_tokens=6, num_words=3, num_bytes=24)
    assert (score.loss, score.token_perplexity, score.word_perplexity) == (2.0, math.exp(2), math.exp(4))
    assert score.bits_per_byte == pytest.approx(0.5 / math.log(2))


def test_questions_are_read_and_what_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    good = {"context": "a\u2028b", "choices": ["x", "y"], "answer": 1, "note": "more keys do no harm"}
    path.write_text(json.dumps(good, ensure_ascii=False) + "\n\n" + json.dumps(good) + "\n", encoding="utf-8")
    assert read_questions(path) == [Question("a\u2028b", ("x", "y"), 1)] * 2
    for change, text in (
        ({"answer": 2}, "answer=2 is not the number of a choice, 0 to 1"),
        ({"answer": True}, "answer=True"),
        ({"choices": ["x"]}, "two or more"),
        ({"choices": ["x", ""]}, "none empty"),
        ({"context": None}, "a text as `context`"),
        ({"context": "\ud800"}, "a text as `context`"),
    ):
        path.write_text(json.dumps(good) + "\n" + json.dumps(good | change))
        with pytest.raises(DataError, match=f"questions.jsonl:2: .*{text}"):
            read_questions(path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match=r"questions\.jsonl:1: not a question"):
        read_questions(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no question"):
        read_questions(path)
