"""What the model card says of a training, and that it says nothing of where and when."""

import re
from pathlib import Path

from megamesh.checkpoint.meta import RunState
from megamesh.config.keys import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    Section,
    TokenizerConfig,
    TrainingConfig,
)
from megamesh.config.sections import SECTIONS, RunConfig
from megamesh.hf.exporting.card import model_card
from megamesh.hf.exporting.facts import training_facts
from tests.hf.small_models import KNOWN, MESH, build, export, llama_config, model_config

VERSIONS = {"torch": "2.13.0", "megamesh": "0.1.0"}


def run_of(**given: Section) -> RunConfig:
    given.setdefault("model", model_config(seq_length=32))
    given.setdefault("training", TrainingConfig(train_iters=1000))
    given.setdefault("tokenizer", TokenizerConfig(tokenizer_type="HFTokenizer", vocab_file="/home/me/tokenizer.json"))
    return RunConfig(**{name: given[name] if name in given else section() for name, section in SECTIONS.items()})


def test_the_facts_of_a_training() -> None:
    optimizer = OptimizerConfig(
        optimizer={"type": "AdamW", "params": {"lr": 6e-4, "betas": [0.9, 0.95], "eps": 1e-8}},
        lr_decay_style="cosine",
        min_lr=6e-5,
        warmup=0.01,
    )
    run = run_of(
        optimizer=optimizer,
        precision=PrecisionConfig(precision="bfloat16"),
        data=DataConfig(train_data_paths=["/data/secret/pile", "books"], train_data_weights=[0.75, 0.25]),
    )
    assert training_facts(RunState(500, 64_000, 7, skipped_steps=2), VERSIONS, run) == {
        "steps": "500, 2 of them skipped (not finite)",
        "tokens seen": "2,048,000 (64,000 sequences of 32)",
        "batch": "4,096 tokens (128 sequences)",
        "optimizer": "AdamW, betas 0.9 and 0.95, epsilon 1e-08, weight decay 0.1, gradient clipping 1",
        "learning rate": "0.0006, cosine decay to 6e-05 over 1,000 steps, after a warm-up over 1% of 1,000 steps",
        "precision": "bfloat16",
        "seed": "7",
        "training data": "pile (weight 0.75), books (weight 0.25)",
        "tokenizer": "HFTokenizer tokenizer.json",
        "software": "megamesh 0.1.0, torch 2.13.0",
    }


def test_what_was_not_said_is_left_out_and_the_rest_is_as_it_was() -> None:
    optimizer = OptimizerConfig(lr_decay_style="constant", warmup=0.0, gradient_clipping=0.0)
    run = run_of(
        optimizer=optimizer,
        training=TrainingConfig(train_epochs=1),
        data=DataConfig(data_path="/data/corpus_text_document", split="99,1"),
        model=model_config(hidden_dropout=0.1),
    )
    facts = training_facts(RunState(3, 10, 7), {}, run)
    assert facts["batch"] == "213.3 tokens (3.3 sequences) on average"
    assert facts["learning rate"] == "0.001, constant" and "no gradient clipping" in facts["optimizer"]
    assert facts["training data"] == "corpus_text_document (split 99,1)" and facts["dropout"] == "states 0.1"
    assert "software" not in facts
    assert (
        "decay to 0 over the run"
        in training_facts(RunState(3, 12, 7), {}, run_of(training=TrainingConfig()))["learning rate"]
    )


def test_weights_that_were_not_trained_have_no_training() -> None:
    facts = training_facts(RunState(0, 0, 7), VERSIONS, run_of())
    assert list(facts) == ["steps", "tokenizer", "software"] and facts["steps"].startswith("0: ")


def card(model: ModelConfig, facts: dict[str, str]) -> str:
    return model_card("out", "megamesh", model, MESH, KNOWN, KNOWN, "float32", facts)


def test_the_card_has_a_table_of_facts_where_there_are_any(tmp_path: Path) -> None:
    model = llama_config()
    ours = build(model)
    text = card(model, {"steps": "500", "seed": "7"})
    assert "## Training\n\n| | |\n|---|---|\n| steps | 500 |\n| seed | 7 |\n" in text
    assert card(model, {}).rstrip() == text.partition("\n## Training")[0].rstrip()
    total = sum(parameter.numel() for parameter in ours.parameters())
    outside = ours.embedding.weight.numel() + ours.head.weight.numel()
    assert f"| parameters | {total:,} ({total - outside:,} without embeddings and head) |" in text
    assert "Recursion scheme: `mesh` with 5 slots" in text
    written = (export(ours, tmp_path) / "README.md").read_text()
    assert "## Training" not in written and not re.search(r"\{\w*\}", written)


def test_a_tokenizer_with_code_of_its_own_is_loaded_with_trust() -> None:
    given = ("name", "llama", llama_config(), run_of().recursion, 57, 57, "float32", {})
    assert "trust_remote_code" not in model_card(*given)
    assert 'AutoTokenizer.from_pretrained("name", trust_remote_code=True)' in model_card(*given, tokenizer_code=True)
