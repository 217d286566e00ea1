"""Every value that a message of a rule suggests is accepted by that rule: of random configurations, with one rule at a time."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any
from unittest.mock import patch

from megamesh.config import checks
from megamesh.config.load import SECTION_OF, load_config
from megamesh.config.rule import Given, Rule
from megamesh.errors import ConfigError

VALUE = r"(?!\w+:|or\b)[\w.+,-]*[\w.+-]"
VALUES = rf"{VALUE}(?:, (?:{VALUE}|…))*(?: or {VALUE})?"
KEYED = re.compile(rf"(\w+): ({VALUES})(?: with (\w+): (\w+)| without (\w+))?")
NUMBERS = r"[\d.]+(?:, (?:[\d.]+|…))*(?: or [\d.]+(?!\w))?"
BARE = re.compile(rf"; use (?:at (?:least|most) )?({NUMBERS})")
LIKE = re.compile(rf"(?:like|such as) (\d[\d,+]+)(?: with (\w+): ({VALUE}))?$")
SUGGESTS = {
    "heads_divide_hidden_size",
    "kv_heads_divide_heads",
    "rotary_turns_something",
    "positions_cover_sequence",
    "mlp_width_is_said_once",
    "recursion_adds_up",
    "scheme_is_configured",
    "partition_places_every_layer",
    "heads_divide_over_ranks",
    "mlp_divides_over_ranks",
    "sequence_divides_over_ranks",
    "sequence_parallel_has_ranks",
    "vocabulary_divides_over_ranks",
    "batch_sizes_agree",
    "loss_scale_starts_above_its_minimum",
}
"""Rules whose messages hold values that depend on the configuration."""


def random_keys(random: Random) -> dict[str, Any]:
    """Keys of right types, which seldom agree."""
    heads, cores = random.choice([1, 2, 3, 6, 7, 8, 12]), random.choices(range(3), k=2)
    keys: dict[str, Any] = {
        "num_layers": random.randint(1, 6),
        "hidden_size": heads * random.choice([1, 2, 7, 192]) + random.randint(0, 1),
        "num_attention_heads": heads,
        "num_kv_heads": random.choice([None, 1, 2, 3, 4]),
        "pos_emb": random.choice(["rotary", "learned"]),
        "rotary_pct": random.choice([1.0, 0.25, 0.003]),
        "max_position_embeddings": random.choice([7, 12, 64]),
        "seq_length": random.choice([None, 5, 16]),
        "activation": random.choice(["gelu", "swiglu"]),
        "intermediate_size": random.choice([None, 2, 30, 64]),
        "mlp_multiple_of": random.choice([None, 1, 6, 64]),
        "recursion": random.choice([None, "1+1R2+1", "0+2R2+1", "1+1R3+0", "2+1+1+2", f"1+{cores[0]}+{cores[1]}+1"]),
        "recursion_scheme": random.choice(["base", "mesh", "residual+anchor"]),
        "mesh_num_slots": random.choice([None, 2, 3]),
        "mesh_router_init": random.choice(["normal", "slot"]),
        "no_weight_tying": random.choice([True, False]),
        "pipe_parallel_size": random.randint(1, 6),
        "pipe_partition_method": random.choice(["cost", "1,1", "0,1+1,0+1,0", "type:mlp"]),
        "model_parallel_size": random.choice([1, 2, 3, 4]),
        "sequence_parallel": random.choice([True, False]),
        "vocab_size": random.choice([3, 5, 100]),
        "make_vocab_size_divisible_by": random.choice([1, 4, 128]),
        "train_batch_size": random.choice([None, 1, 7, 12]),
        "train_micro_batch_size_per_gpu": random.choice([None, 2, 5]),
        "gradient_accumulation_steps": random.choice([None, 3]),
        "precision": "fp16",
        "initial_scale_power": random.choice([0, 3, 16]),
        "min_loss_scale": random.choice([0.5, 3.0, float(2**50 + 1), 2.0**64]),
    }
    return {key: value for key, value in keys.items() if value is not None}


def loads(keys: dict[str, Any], rules: tuple[Rule, ...]) -> bool:
    """Whether keys load where there are only these rules; what is wrong with a single key, such as a suggested one, counts."""
    with patch.object(checks, "RULES", rules):
        try:
            load_config([], {key: value for key, value in keys.items() if value is not None}, for_training=False)
        except ConfigError:
            return False
    return True


def problems(keys: dict[str, Any]) -> list[tuple[Rule, str]]:
    """What every rule says of the keys."""
    found: list[tuple[Rule, str]] = []

    def listened(rule: Rule) -> Rule:
        def check(given: Given) -> Iterator[str]:
            found.extend((rule, problem) for problem in rule.check(given))
            yield from ()

        return replace(rule, check=check)

    assert loads(keys, tuple(listened(rule) for rule in checks.RULES if not rule.for_training))
    return found


def suggestions(problem: str) -> Iterator[dict[str, Any]]:
    """Keys to set, of every alternative that a message offers."""
    mends = LIKE.sub("", problem.rpartition("; ")[2])
    for key, values, other_key, other, removed in KEYED.findall(mends):
        for value in re.split(r", | or ", values):
            beside = {other_key: _typed(other)} if other_key else {removed: None} if removed else {}
            if key in SECTION_OF and value not in ("…", "less"):
                yield {key: _typed(value)} | beside
    subject = re.match(r"(?:[^=]*: )?(\w+)=", problem)
    for numbers in BARE.findall(problem):
        assert subject is not None, problem
        yield from ({subject[1]: _typed(value)} for value in re.split(r", | or ", numbers) if value != "…")
    for like, key, value in LIKE.findall(problem):
        assert subject is not None, problem
        yield {subject[1]: like} | ({key: _typed(value)} if key else {})


def _typed(text: str) -> Any:
    """The value that YAML would read."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def test_what_a_message_suggests_is_accepted_by_the_rule_that_suggests_it() -> None:
    random, tried = Random(0), Counter[str]()
    for _ in range(100):
        keys = random_keys(random)
        for rule, problem in problems(keys):
            for mend in suggestions(problem):
                tried[rule.check.__name__] += 1
                assert loads(keys | mend, (rule,)), f"{problem}\n{mend}"
    assert all(tried[name] >= 3 for name in SUGGESTS), tried
