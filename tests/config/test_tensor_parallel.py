"""Tensor and sequence parallelism: what does not divide is refused, and every mend that a message names loads."""

import itertools
import re
from typing import Any

import pytest

from megamesh.config.sections import RunConfig
from megamesh.config.tensor_parallel import fitting_sizes, padded_vocabulary, vocabulary_divides
from megamesh.errors import ConfigError

from .conftest import Load, Problems

# 12 heads, so that sizes with other primes than 2 count; the vocabulary is large enough for every size.
BASE = {"hidden_size": 48, "num_attention_heads": 12, "vocab_size": 50000, "seq_length": 96}

REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"model_parallel_size": 8},
        "num_attention_heads=12 (run.yml) is not divisible by model_parallel_size=8 (run.yml); "
        "use model_parallel_size: 1, 2, 3, 4, 6 or 12",
    ),
    (
        {"model_parallel_size": 4, "num_kv_heads": 2},
        "num_kv_heads=2 (run.yml) is not divisible by model_parallel_size=4 (run.yml), and no two ranks can share a key/value head; "
        "use model_parallel_size: 1 or 2",
    ),
    (
        {"model_parallel_size": 4, "intermediate_size": 130},
        "intermediate_size=130 (run.yml) is not divisible by model_parallel_size=4 (run.yml); "
        "use intermediate_size: 132 or model_parallel_size: 1 or 2",
    ),
    (
        {"model_parallel_size": 4, "intermediate_size": 138, "mlp_multiple_of": 6},
        "intermediate_size=138 (run.yml) is not divisible by model_parallel_size=4 (run.yml); "
        "use intermediate_size: 144 or model_parallel_size: 1, 2, 3 or 6",
    ),
    (
        {"model_parallel_size": 3, "activation": "swiglu", "hidden_size": 60},
        "the MLP's default width 160 for hidden_size=60 (run.yml) is not divisible by model_parallel_size=3 (run.yml); "
        "use mlp_multiple_of: 3 or model_parallel_size: 1, 2 or 4",
    ),
    (
        {"model_parallel_size": 6, "activation": "swiglu", "hidden_size": 84, "mlp_multiple_of": 4},
        "the MLP's default width 224 for hidden_size=84 (run.yml) is not divisible by model_parallel_size=6 (run.yml); "
        "use mlp_multiple_of: 12 or model_parallel_size: 1, 2 or 4",
    ),
    (
        {"model_parallel_size": 4, "sequence_parallel": True, "seq_length": 90},
        "seq_length=90 (run.yml) is not divisible by model_parallel_size=4 (run.yml), while sequence_parallel=true (run.yml) splits the "
        "tokens over the ranks; use seq_length: 88 or model_parallel_size: 2, 3 or 6",
    ),
    (
        {"model_parallel_size": 4, "sequence_parallel": True, "seq_length": 95},
        "seq_length=95 (run.yml) is not divisible by model_parallel_size=4 (run.yml), while sequence_parallel=true (run.yml) splits the "
        "tokens over the ranks; use seq_length: 92 or model_parallel_size: 1 with sequence_parallel: false",
    ),
    (
        {"model_parallel_size": 3, "sequence_parallel": True, "seq_length": None},
        "max_position_embeddings=128 (run.yml) is not divisible by model_parallel_size=3 (run.yml), while sequence_parallel=true (run.yml) "
        "splits the tokens over the ranks; use seq_length: 126 or model_parallel_size: 2 or 4",
    ),
    (
        {"model_parallel_size": 4, "seq_length": 90, "recursion": "1+1R2+1"},
        "seq_length=90 (run.yml) is not divisible by model_parallel_size=4 (run.yml), while recursion_scheme=mesh (default) splits its "
        "highway over the ranks, by tokens; use seq_length: 88 or model_parallel_size: 1, 2, 3 or 6",
    ),
    (
        {"model_parallel_size": 4, "seq_length": 3, "recursion": "1+1R2+1"},
        "seq_length=3 (run.yml) is not divisible by model_parallel_size=4 (run.yml), while recursion_scheme=mesh (default) splits its "
        "highway over the ranks, by tokens; use model_parallel_size: 1 or 3",
    ),
    (
        {"sequence_parallel": True},
        "sequence_parallel=true (run.yml) needs more than one tensor-parallel rank, and model_parallel_size=1 (default); "
        "use sequence_parallel: false or model_parallel_size: 2, 3, 4, 6 or 12",
    ),
    (
        {"sequence_parallel": True, "seq_length": 95},
        "sequence_parallel=true (run.yml) needs more than one tensor-parallel rank, and model_parallel_size=1 (default); "
        "use sequence_parallel: false",
    ),
    (
        {"model_parallel_size": 4, "vocab_size": 300},
        "vocab_size=300 (run.yml) is too small for model_parallel_size=4 (run.yml): padded to 512, a multiple of "
        "4 × make_vocab_size_divisible_by=128 (default), it leaves the last rank nothing but padding; "
        "use make_vocab_size_divisible_by: 32 or model_parallel_size: 1, 2 or 3",
    ),
    (
        {"model_parallel_size": 4, "vocab_size": 9, "make_vocab_size_divisible_by": 2},
        "vocab_size=9 (run.yml) is too small for model_parallel_size=4 (run.yml): padded to 16, a multiple of "
        "4 × make_vocab_size_divisible_by=2 (run.yml), it leaves the last rank nothing but padding; use model_parallel_size: 1, 2 or 3",
    ),
    (
        {"model_parallel_size": 2, "sequence_parallel": True, "vocab_size": 100},
        "vocab_size=100 (run.yml) is too small for model_parallel_size=2 (run.yml): padded to 256, a multiple of "
        "2 × make_vocab_size_divisible_by=128 (default), it leaves the last rank nothing but padding; "
        "use make_vocab_size_divisible_by: 64 or model_parallel_size: 1 with sequence_parallel: false",
    ),
]


def without_lines(problem: str) -> str:
    """The message with `run.yml` in place of the whole path and line."""
    return re.sub(r"\([^ ()]*run\.yml:\d+\)", "(run.yml)", re.sub(r"^\S*run\.yml:\d+: ", "", problem))


def mends(problem: str) -> list[dict[str, Any]]:
    """Every way out that a message names: `use a: 1 or b: 2, 3 or 4` gives {a: 1}, {b: 2}, {b: 3}, {b: 4}."""
    one = r"(\w+): (\w+(?:(?:, | or )\d+)*)( with sequence_parallel: false)?"
    return [
        {key: int(value) if value.isdigit() else False} | ({"sequence_parallel": False} if together else {})
        for key, values, together in re.findall(one, problem.split("; use ")[1])
        for value in re.split(", | or ", values)
    ]


@pytest.mark.parametrize(("keys", "message"), REFUSED, ids=[str(keys) for keys, _ in REFUSED])
def test_what_does_not_divide_is_one_message_and_its_mends_load(
    problems: Problems, load: Load, keys: dict[str, Any], message: str
) -> None:
    given = {**BASE, **keys}
    (problem,) = problems(**given)
    assert without_lines(problem) == message
    assert mends(problem)
    for mend in mends(problem):
        run = load(**{**given, **mend}).run
        assert padded_vocabulary(run, run.model.vocab_size or 0) % run.parallel.model_parallel_size == 0


def test_several_things_that_do_not_divide_are_said_together_with_the_sizes_that_fit_all(
    problems: Problems, load: Load
) -> None:
    given = {**BASE, "model_parallel_size": 8, "intermediate_size": 150, "sequence_parallel": True, "seq_length": 90}
    found = problems(**given)
    assert [problem.split("=")[0].split(" ")[-1] for problem in found] == [
        "num_attention_heads",
        "intermediate_size",
        "seq_length",
    ]
    assert all(problem.endswith("model_parallel_size: 2, 3 or 6") for problem in found)
    for size in (2, 3, 6):
        assert load(**{**given, "model_parallel_size": size})


@pytest.mark.parametrize(
    "keys",
    [
        {"model_parallel_size": 4},
        {"model_parallel_size": 12, "sequence_parallel": True},
        {"model_parallel_size": 2, "num_kv_heads": 2},
        {"model_parallel_size": 4, "seq_length": 90},
        {"model_parallel_size": 4, "seq_length": 90, "recursion": "1+1R2+1", "recursion_scheme": "anchor"},
        {"model_parallel_size": 2, "vocab_size": 129},
        *({"model_parallel_size": 3, "zero_optimization": {"stage": stage}} for stage in range(4)),
    ],
    ids=str,
)
def test_what_divides_loads(load: Load, keys: dict[str, Any]) -> None:
    run = load(**{**BASE, **keys}).run
    assert run.parallel.model_parallel_size == keys["model_parallel_size"]


def test_a_wrong_key_leaves_the_division_unsaid(problems: Problems) -> None:
    (problem,) = problems(**{**BASE, "num_attention_heads": "many", "model_parallel_size": 8})
    assert "num_attention_heads=many is not a whole number" in problem


@pytest.mark.parametrize("multiple", [1, 2, 3, 8])
def test_a_vocabulary_divides_where_the_last_rank_holds_a_token(load: Load, multiple: int) -> None:
    """Against the definition: rank r holds rows r·n to (r+1)·n of the padded vocabulary, and ids end at the true one."""
    model = load(make_vocab_size_divisible_by=multiple).run.model
    for vocab_size, size in itertools.product(range(1, 70), range(1, 7)):
        rows = model.padded_vocab_size(vocab_size, size) // size
        held = [len(range(rank * rows, min((rank + 1) * rows, vocab_size))) for rank in range(size)]
        assert sum(held) == vocab_size
        assert vocabulary_divides(vocab_size, multiple, size) == all(held)


@pytest.fixture
def split_run(load: Load) -> RunConfig:
    return load(
        **{
            **BASE,
            "vocab_size": None,
            "vocab_file": "tokenizer.json",
            "tokenizer_type": "HFTokenizer",
            "model_parallel_size": 4,
        }
    ).run


def test_a_vocabulary_that_the_tokenizer_tells_is_checked_then(split_run: RunConfig) -> None:
    assert padded_vocabulary(split_run, 50277) == 50688
    assert padded_vocabulary(split_run, 385) == 512
    with pytest.raises(ConfigError) as caught:
        padded_vocabulary(split_run, 384)
    assert str(caught.value) == (
        "the tokenizer's vocabulary of 384 is too small for model_parallel_size=4: padded to 512, a multiple of "
        "4 × make_vocab_size_divisible_by=128, it leaves the last rank nothing but padding; "
        "use make_vocab_size_divisible_by: 32 or model_parallel_size: 1, 2 or 3"
    )
    assert fitting_sizes(split_run, 384) == [1, 2, 3] and fitting_sizes(split_run, None) == [1, 2, 3, 4, 6, 12]
