"""Files and keys: what loads, and what one error says about everything that does not."""

import json
import logging
from pathlib import Path

import pytest

from megamesh.config.load import load_config
from megamesh.config.sections import RunConfig
from megamesh.errors import ConfigError

from .conftest import VALID, Load, Problems


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


MODEL = "num-layers: 4\nhidden_size: 64\nnum-attention-heads: 4\nmax-position-embeddings: 128\nvocab_size: 100\n"
SITE = "train_batch_size: 8\ntrain-iters: 10\ndata_path: corpus\n"


def errors(*paths: Path, **overrides: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(paths, overrides)
    return caught.value.problems


def test_several_files_with_either_spelling_make_one_run(tmp_path: Path) -> None:
    loaded = load_config([write(tmp_path, "model.yml", MODEL), write(tmp_path, "site.yml", SITE)])
    assert (loaded.run.model.num_layers, loaded.run.batch.train_batch_size, loaded.run.data.data_path) == (
        4,
        8,
        "corpus",
    )
    assert loaded.sources == {"model.yml": MODEL, "site.yml": SITE}
    assert loaded.places["num_layers"] == f"{tmp_path / 'model.yml'}:1"


def test_neox_style_braces_and_quoted_keys_load(tmp_path: Path) -> None:
    text = '{\n  # comment\n  "num-layers": 4,\n  "hidden-size": 64, "num-attention-heads": 4,\n  "max-position-embeddings": 128,\n}\n'
    assert load_config([write(tmp_path, "a.yml", text)], for_training=False).run.model.num_layers == 4


@pytest.mark.parametrize("second", ["num_layers: 5", "num-layers: 4"])
def test_a_key_in_two_files_is_an_error_that_names_both_places(tmp_path: Path, second: str) -> None:
    a, b = write(tmp_path, "a.yml", MODEL), write(tmp_path, "b.yml", SITE + second)
    (problem,) = errors(a, b)
    assert f"{b}:4" in problem and f"{a}:1" in problem and "num_layers is given twice" in problem


def test_a_key_twice_in_a_file_or_in_a_block_is_an_error(tmp_path: Path) -> None:
    text = MODEL + SITE + "seed: 1\nseed: 1\noptimizer:\n  type: Adam\n  params: {lr: 1,\n    lr: 2}\n"
    path = write(tmp_path, "a.yml", text)
    found = errors(path)
    assert any(f"{path}:10" in problem and "seed is given twice" in problem for problem in found)
    assert any(f"{path}:14" in problem and "lr is given twice" in problem for problem in found)


def test_two_spellings_of_one_meaning_are_a_duplicate(problems: Problems) -> None:
    (problem,) = problems(gas=2, gradient_accumulation_steps=2)
    assert "gradient_accumulation_steps is given twice" in problem


def test_exponents_without_a_dot_are_numbers(load: Load) -> None:
    loaded = load(overrides={"min_lr": 0}, layernorm_epsilon=1e-5, optimizer={"type": "AdamW", "params": {"lr": 3e-4}})
    assert loaded.run.model.layernorm_epsilon == 1e-5


@pytest.mark.parametrize(
    ("text", "value"), [("1e-5", 1e-5), ("1E-5", 1e-5), ("1.e-5", 1e-5), ("1.0e-5", 1e-5), (".5", 0.5), ("1", 1.0)]
)
def test_spellings_of_numbers(tmp_path: Path, text: str, value: float) -> None:
    path = write(tmp_path, "a.yml", MODEL + SITE + f"layernorm_epsilon: {text}\n")
    assert load_config([path]).run.model.layernorm_epsilon == value


def test_a_count_may_be_written_with_an_exponent_but_not_with_a_fraction(load: Load, problems: Problems) -> None:
    assert load(train_iters=1e3).run.training.train_iters == 1000
    assert "train_iters=10.5 is not a whole number" in problems(train_iters=10.5)[0]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("num_layer", "num_layers"),
        ("train_itters", "train_iters"),
        ("recursion_schema", "recursion_scheme"),
        ("zero", "zero_optimization"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_nearest_key(problems: Problems, key: str, nearest: str) -> None:
    (problem,) = problems(**{key: 1})
    assert f"run.yml:{len(VALID) + 1}: {key} is not a known key; did you mean {nearest}?" in problem


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("num_layers", "24", "is not a whole number (write it without quotes)"),
        ("num_layers", True, "is not a whole number"),
        ("num_layers", 0, "must be at least 1"),
        ("no_weight_tying", 1, "is not true or false"),
        ("attention_dropout", "none", "is not a number"),
        ("attention_dropout", "0.1", "is not a number (write it without quotes)"),
        ("weight_decay", float("inf"), "is not a finite number"),
        ("train_iters", 0, "must be at least 1"),
        ("attention_dropout", 1.0, "must be less than 1"),
        ("rotary_pct", 0, "must be greater than 0"),
        ("split", [95, 5, 0], "is not text; write 95,5,0"),
        ("save", True, 'is not text (YAML reads a switch; write it in quotes: "true")'),
        ("train_data_paths", "corpus", "is not a list; write [corpus]"),
        ("optimizer", "Adam", "is not a block of keys"),
        ("norm", "scalenorm", "is not one of layernorm, rmsnorm"),
        ("pos_emb", "alibi", "is not one of learned, rotary, none"),
        ("activation", "mish", "is not one of gelu, geglu, relu, silu, swiglu"),
        ("lr_decay_style", "exponential", "is not one of linear, cosine, constant"),
        ("pack_impl", "loose", "is not one of packed, pack_until_overflow, unpacked"),
        ("tokenizer_type", "WordTokenizer", "is not one of HFTokenizer"),
    ],
)
def test_wrong_types_and_values_say_what_is_right(problems: Problems, key: str, value: object, reason: str) -> None:
    matching = [problem for problem in problems(**{key: value}) if reason in problem]
    assert len(matching) == 1 and f": {key}=" in matching[0] and "run.yml:" in matching[0]


def test_a_wrong_entry_of_a_list_is_named(problems: Problems) -> None:
    found = problems(extra_save_iters=[1, "two", 2.0, 0.5])
    assert [problem.split(": ", 1)[1] for problem in found] == [
        "extra_save_iters[1]=two is not a whole number",
        "extra_save_iters[3]=0.5 is not a whole number",
    ]


def test_null_is_not_given(load: Load, tmp_path: Path) -> None:
    path = write(tmp_path, "a.yml", MODEL + SITE + "seed: null\n")
    assert load_config([path]).run.training.seed == 1234
    path.write_text(
        SITE + "num_layers: ~\nhidden_size: 64\nnum_attention_heads: 4\nmax_position_embeddings: 8\nvocab_size: 9\n"
    )
    assert any(problem.startswith("num_layers is missing") for problem in errors(path))


def test_a_key_that_is_taken_away_is_not_given_to_the_rules_either(load: Load) -> None:
    """recursion_scheme has a default, which is nobody's mistake beside a plain stack."""
    loaded = load(recursion="1+1R2+1", recursion_scheme="base", overrides={"recursion": None, "recursion_scheme": None})
    assert loaded.run.recursion.recursion is None


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    text = (
        MODEL.replace("num-attention-heads: 4", "num-attention-heads: 5")
        + SITE
        + ("recursion: 1+2R2+1\nseed: -1\nunknown: 1\nuse_wandb: true\ntrain_epochs: 1\nsequence_parallel: true\n")
    )
    found = "\n".join(errors(write(tmp_path, "a.yml", text)))
    for essential in (
        "num_attention_heads=5",
        "computes 6 layers",
        "seed=-1",
        "unknown",
        "use_wandb",
        "train_epochs=1",
        "sequence_parallel",
    ):
        assert essential in found
    assert len(found.splitlines()) == 7


def test_a_wrong_key_does_not_cause_follow_up_problems(problems: Problems) -> None:
    assert len(problems(hidden_size="wide", num_attention_heads=7)) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("num_layers: [1", "not valid YAML"),
        ("- num_layers\n", "holds no keys"),
        ("a: b: c", "a.yml:1: is not valid YAML"),
        ("a: 1\nb: \0\n", "a.yml:2: is not valid YAML: it holds the control character U+0000"),
        ("a: " + "[" * 400, "is not valid YAML"),
    ],
)
def test_what_is_not_a_configuration_is_said_once(tmp_path: Path, text: str, reason: str) -> None:
    """What such a file would have given is not reported as missing."""
    (problem,) = errors(write(tmp_path, "a.yml", text))
    assert reason in problem


def test_a_key_that_is_not_text_is_named(tmp_path: Path) -> None:
    (problem,) = errors(write(tmp_path, "a.yml", MODEL + SITE + "? [a]\n: 1\n"))
    assert "a.yml:9: a key must be plain text" in problem


def test_a_missing_file_and_a_file_twice(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yml", MODEL + SITE)
    assert errors(path, tmp_path / "b.yml") == [f"{tmp_path / 'b.yml'}: cannot be read: No such file or directory"]
    assert errors(path, path) == [f"{path}: the file is given twice"]


def test_overrides_replace_keys_and_reach_into_blocks(load: Load) -> None:
    loaded = load(
        optimizer={"type": "Adam", "params": {"lr": 1e-3, "betas": [0.9, 0.9]}},
        gas=4,
        overrides={"train-iters": 20, "optimizer.params.lr": 5e-4, "gas": 2, "data_path": "other"},
    )
    assert loaded.run.training.train_iters == 20
    assert (loaded.run.optimizer.peak_lr, loaded.run.optimizer.betas) == (5e-4, (0.9, 0.9))
    assert loaded.run.batch.gradient_accumulation_steps == 2
    assert loaded.places["train_iters"] == "command line" and "optimizer.params.lr" in loaded.sources["overrides.yml"]


def test_an_unknown_override_is_an_error(problems: Problems) -> None:
    (problem,) = problems(overrides={"train_itters": 3})
    assert "command line: train_itters is not a known key; did you mean train_iters?" in problem


def test_keys_without_meaning_are_listed_in_one_notice(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="megamesh"):
        loaded = load(synchronize_each_layer=True, hostfile="/job/hosts", master_port=29500)
    assert loaded.ignored_keys == ["synchronize_each_layer", "hostfile", "master_port"]
    assert [record.getMessage() for record in caplog.records] == [
        "GPT-NeoX keys without meaning here: synchronize_each_layer, hostfile, master_port"
    ]


def test_what_only_training_needs_may_be_left_out_otherwise(load: Load, problems: Problems) -> None:
    less = {"train_batch_size": None, "train_iters": None, "data_path": None, "vocab_size": None}
    found = "\n".join(problems(**less))
    for essential in ("no batch size", "length of the run", "no data", "needs vocab_file"):
        assert essential in found
    assert load(for_training=False, **less).missing == found.splitlines()


def test_a_run_survives_json(load: Load) -> None:
    """Checkpoints store the configuration as JSON."""
    run = load(recursion="1+1R2+1", extra_save_iters=[1, 2], zero_optimization={"stage": 2}).run
    assert RunConfig.model_validate(json.loads(json.dumps(run.model_dump()))) == run
