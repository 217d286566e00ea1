"""All rules across keys and sections, run together.

    checks_model.py       shapes, attention, recursion
    checks_parallel.py    what is divided over tensor-parallel ranks
    checks_optimizer.py   optimizer, ZeRO, schedule, loss scale
    checks_run.py         batch, length, data, tokenizer, checkpoints

Each rule is left out where a key that it reads is itself wrong, so that a problem is reported once.
"""

from collections.abc import Set as AbstractSet

from megamesh.config.checks_model import MODEL_RULES
from megamesh.config.checks_optimizer import OPTIMIZER_RULES
from megamesh.config.checks_parallel import PARALLEL_RULES
from megamesh.config.checks_run import RUN_RULES
from megamesh.config.rule import Given, Rule

RULES: tuple[Rule, ...] = (*MODEL_RULES, *PARALLEL_RULES, *OPTIMIZER_RULES, *RUN_RULES)


def check_rules(given: Given, bad_keys: AbstractSet[str]) -> list[str]:
    """Every contradiction across keys, in the rules' order."""
    return _run(given, bad_keys, for_training=False)


def check_complete(given: Given, bad_keys: AbstractSet[str]) -> list[str]:
    """What a training run needs and the configuration does not say."""
    return _run(given, bad_keys, for_training=True)


def _run(given: Given, bad_keys: AbstractSet[str], for_training: bool) -> list[str]:
    problems: list[str] = []
    for rule in RULES:
        if rule.for_training == for_training and bad_keys.isdisjoint(rule.keys):
            problems += rule.check(given)
    return problems
