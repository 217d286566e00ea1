"""tools/evaluate.py: the numbers of the library for files and a checkpoint, on one process or several."""

import json
from pathlib import Path

import pytest

from megamesh.evaluation.scores import Question, score_choices, score_texts
from tests.generation.checkpoints import write_checkpoint
from tests.hf.small_models import MESH, build, model_config, tokenizer, tokenizer_file
from tests.processes import run_ranks
from tools.evaluate import main

TEXTS = ["The end of it", "Two words and many more, so that there is more than one window. " * 3]
QUESTIONS = [Question("The", ("end", "beginning"), 0), Question("a b c", ("d", "x y"), 1), Question("", ("A", "z"), 0)]
SIZES = {"max_length": 64, "batch_size": 8}


@pytest.fixture
def ours(tmp_path: Path):
    module = build(model_config())
    write_checkpoint(tmp_path / "save", module, MESH, tokenizer_file(tmp_path))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    records = ({"context": q.context, "choices": q.choices, "answer": q.answer} for q in QUESTIONS)
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return module


def options(tmp_path: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(tmp_path / "save"), "--device", "cpu", *more]


def both(tmp_path: Path) -> list[str]:
    return ["--text", str(tmp_path / "texts.jsonl"), "--choices", str(tmp_path / "questions.jsonl")]


def test_texts_and_questions_are_measured(ours, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(options(tmp_path, *both(tmp_path), "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    letters = tokenizer(tmp_path)
    text, choices = score_texts(ours, letters, TEXTS, **SIZES), score_choices(ours, letters, QUESTIONS, **SIZES)
    assert (found["step"], found["dtype"]) == (10, "float32")
    for name, value in found["text"].items():
        assert value == pytest.approx(getattr(text, name), rel=1e-6), name
    assert {name: getattr(choices, name) for name in found["choices"]} == found["choices"]

    assert main(options(tmp_path, *both(tmp_path))) == 0
    table = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  "))
    assert table["bits_per_byte"] == f"{text.bits_per_byte:.6g}" and table["acc"] == f"{choices.acc:.6g}"


def test_options_change_what_they_say(ours, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def measured(*more: str) -> dict:
        assert main(options(tmp_path, *both(tmp_path), "--json", *more)) == 0
        return json.loads(capsys.readouterr().out)

    letters = tokenizer(tmp_path)
    short = {**SIZES, "max_length": 5}
    expected = score_texts(ours, letters, TEXTS, **short).bits_per_byte
    (tmp_path / "questions.jsonl").write_text(json.dumps({"context": "The", "choices": ["end", "a"], "answer": 0}))
    assert measured("--max-length", "5")["text"]["bits_per_byte"] == pytest.approx(expected, rel=1e-6)
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "The", "other": "end"}))
    assert measured("--jsonl-keys", "text", "other")["text"]["num_documents"] == 2
    assert measured("--dtype", "bfloat16")["text"]["loss"] == pytest.approx(measured()["text"]["loss"], rel=0.05)


def test_the_window_is_the_trained_length_and_at_most_the_positions(
    tmp_path: Path, ours, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    module = build(model_config(seq_length=16))
    write_checkpoint(tmp_path / "save", module, MESH, tokenizer_file(tmp_path), step=11)

    def loss(*more: str) -> float:
        assert main(options(tmp_path, "--text", str(tmp_path / "texts.jsonl"), "--json", *more)) == 0
        return json.loads(capsys.readouterr().out)["text"]["loss"]

    letters = tokenizer(tmp_path)
    by_length = {
        length: score_texts(module, letters, TEXTS, max_length=length, batch_size=8).loss for length in (16, 64)
    }
    assert abs(by_length[16] - by_length[64]) > 1e-4
    assert loss() == pytest.approx(by_length[16], rel=1e-6) and "trained on" not in caplog.text
    assert loss("--max-length", "64") == pytest.approx(by_length[64], rel=1e-6)
    assert caplog.text.count("--max-length=64 is more than the 16 tokens that the model was trained on") == 1
    assert main(options(tmp_path, "--text", str(tmp_path / "texts.jsonl"), "--max-length", "65")) == 1
    assert "--max-length=65 is more than the 64 positions" in capsys.readouterr().err  # rotary, too


def test_two_processes_say_once_what_one_says(ours, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = options(tmp_path, *both(tmp_path), "--json")
    assert main(asked) == 0
    alone = json.loads(capsys.readouterr().out)
    first, second = run_ranks(2, "tools/evaluate.py", *asked)
    assert (first.returncode, second.returncode, second.stdout) == (0, 0, ""), first.stderr + second.stderr
    together = json.loads(first.stdout)
    assert together["text"] == pytest.approx(alone["text"], rel=1e-5) and together["choices"] == alone["choices"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--text", "{folder}/none.txt"), "does not exist; name files, globs or folders"),
        (("--text", "{folder}/questions.jsonl"), "questions.jsonl:1: no key 'text'"),
        (("--choices", "{folder}/none.jsonl"), "none.jsonl cannot be read"),
        (("--choices", "{folder}/texts.jsonl"), "texts.jsonl:1: not a question"),
        (("--text", "{folder}/texts.jsonl", "--max-length", "65"), "--max-length=65 is more than the 64 positions"),
        (("--text", "{folder}/texts.jsonl", "--checkpoint", "{folder}/none"), "none does not exist"),
    ],
)
def test_what_cannot_be_measured_is_one_error(
    ours, tmp_path: Path, capsys: pytest.CaptureFixture[str], more, text: str
) -> None:
    module = build(model_config(pos_emb="learned"))
    write_checkpoint(tmp_path / "save", module, MESH, tokenizer_file(tmp_path), step=11)
    assert main(options(tmp_path, *(part.format(folder=tmp_path) for part in more))) == 1
    told = capsys.readouterr().err
    assert text in told and told.count("error: ") == 1


def test_something_must_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(options(tmp_path))
    assert "nothing to measure" in capsys.readouterr().err
