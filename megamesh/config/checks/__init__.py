"""All rules across keys and sections, run together.

    model.py       shapes, attention, recursion
    parallel.py    what is divided over ranks
    optimizer.py   optimizer, ZeRO, schedule, loss scale
    run.py         batch, length, recomputation, compilation
    data.py        data, weights, labels, tokenizer
    checkpoint.py  when checkpoints are written, and what is read

Each rule is left out where a key that it reads is itself wrong, so that a problem is reported once.
"""

from collections.abc import Set as AbstractSet

from megamesh.config.checks.checkpoint import CHECKPOINT_RULES
from megamesh.config.checks.data import DATA_RULES
from megamesh.config.checks.model import MODEL_RULES
from megamesh.config.checks.optimizer import OPTIMIZER_RULES
from megamesh.config.checks.parallel import PARALLEL_RULES
from megamesh.config.checks.run import RUN_RULES
from megamesh.config.rule import Given, Rule

RULES: tuple[Rule, ...] = (*MODEL_RULES, *PARALLEL_RULES, *OPTIMIZER_RULES, *RUN_RULES, *DATA_RULES, *CHECKPOINT_RULES)


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
