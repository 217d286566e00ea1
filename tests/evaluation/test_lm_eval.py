"""lm-eval measures exports of mesh models with the example's tasks, and finds what our own evaluation finds in the checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.evaluation import build_tasks
from megamesh.config.keys import TokenizerConfig
from megamesh.evaluation.likelihood import encode_pair, log_likelihoods
from megamesh.evaluation.scores import read_questions, score_choices, score_texts
from megamesh.hf.exporting.export import export_model
from megamesh.tokenizer import build_tokenizer
from megamesh.tokenizer.train import lines_of, train_sentencepiece
from tests.generation.checkpoints import write_checkpoint
from tests.hf.small_models import MESH, build, model_config, source, tokenizer, tokenizer_file
from tools.evaluate import main

pytest.importorskip("lm_eval", reason="lm-eval is an extra of its own: pip install megamesh[eval]")
EXAMPLE = Path(build_tasks.__file__).parent
TEXT, CHOICES = ("word_perplexity", "byte_perplexity", "bits_per_byte"), ("acc", "acc_norm")
LENGTH = 96  # shorter than the documents and, in characters, than some contexts; longer than the choices

LM_EVAL = f"""
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

tasks = TaskManager(include_path={str(EXAMPLE)!r}, include_defaults=False)
for name in sys.argv[1:]:
    found = simple_evaluate(
        model="hf",
        model_args=f"pretrained={{name}},trust_remote_code=True,dtype=float32",
        tasks=["megamesh_text", "megamesh_choices"],
        task_manager=tasks,
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
    )
    answers = sorted(found["samples"]["megamesh_choices"], key=lambda sample: sample["doc_id"])
    likely = [response[0][0] for sample in answers for response in sample["resps"]]
    json.dump(found["results"] | {{"likely": likely}}, open(f"{{name}}-found.json", "w"))
"""


def documents(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "text.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory):
    """A folder with the tasks' data, a checkpoint, and what lm-eval found; by name our model and its tokenizer."""
    folder = tmp_path_factory.mktemp("lm-eval")
    sizes = ["--num-documents", "5", "--num-characters", "1500", "--num-questions", "40"]
    build_tasks.main(["--output", str(folder), *sizes])
    train_sentencepiece(lines_of(documents(folder)), folder / "spm.model", vocab_size=450, model_type="unigram")
    pieces = build_tokenizer(TokenizerConfig(tokenizer_type="SPMTokenizer", vocab_file=str(folder / "spm.model")))
    models = {
        "characters": (build(model_config(max_position_embeddings=LENGTH)), tokenizer(folder)),
        "pieces": (build(model_config(max_position_embeddings=LENGTH, vocab_size=pieces.vocab_size)), pieces),
    }
    for name, (module, letters) in models.items():
        export_model(source(module), letters, folder / name)
    write_checkpoint(folder / "save", models["characters"][0], MESH, tokenizer_file(folder))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    command = [sys.executable, "-c", LM_EVAL, *models]
    ran = subprocess.run(command, cwd=folder, env=os.environ | offline, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder, models


def theirs(folder: Path, name: str) -> tuple[dict[str, float], dict[str, float], list[float]]:
    """What lm-eval found in texts and choices, and the likelihood of every choice."""
    found = json.loads((folder / f"{name}-found.json").read_text())
    text, choices = found["megamesh_text"], found["megamesh_choices"]
    return {n: text[f"{n},none"] for n in TEXT}, {n: choices[f"{n},none"] for n in CHOICES}, found["likely"]


def test_our_tool_finds_in_the_checkpoint_what_lm_eval_finds_in_its_export(
    measured, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = measured
    files = ["--text", str(folder / "text.jsonl"), "--choices", str(folder / "choices.jsonl")]
    assert main(["--checkpoint", str(folder / "save"), *files, "--batch-size", "3", "--device", "cpu", "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    text, choices, _ = theirs(folder, "characters")
    assert {name: ours["text"][name] for name in TEXT} == pytest.approx(text, rel=1e-5)
    assert {name: ours["choices"][name] for name in CHOICES} == choices and 0 < choices["acc"] < 1


@pytest.mark.parametrize("name", ["characters", "pieces"])
def test_every_likelihood_agrees_whatever_the_tokenizer(measured, name: str) -> None:
    folder, models = measured
    module, letters = models[name]
    text, choices, likely = theirs(folder, name)
    questions = read_questions(folder / "choices.jsonl")
    sizes = {"max_length": LENGTH, "batch_size": 5}
    scored = score_texts(module, letters, documents(folder), **sizes)
    assert {name: getattr(scored, name) for name in TEXT} == pytest.approx(text, rel=1e-5)
    answered = score_choices(module, letters, questions, **sizes)
    assert {name: getattr(answered, name) for name in CHOICES} == choices
    pairs = [encode_pair(letters, q.context, f" {choice}") for q in questions for choice in q.choices]
    assert list(log_likelihoods(module, pairs, **sizes)) == pytest.approx(likely, rel=1e-5)
