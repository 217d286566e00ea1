"""Keys as other programs spell them: a hint that leads to a configuration that loads."""

from typing import Any

import pytest

from megamesh.config.load import SECTION_OF
from megamesh.config.neox import IGNORED, REFUSED, RENAMED
from megamesh.config.other_spellings import IN_PARAMS, MEANT, OTHER_VALUES
from megamesh.config.precision_blocks import PRECISION_BLOCKS

from .conftest import Load, Problems


def test_every_spelling_is_unknown_and_every_target_is_a_key() -> None:
    known = {*SECTION_OF, *RENAMED, *IGNORED, *REFUSED, *PRECISION_BLOCKS}
    assert not known & {*MEANT, *OTHER_VALUES} and not MEANT.keys() & OTHER_VALUES.keys()
    for target in MEANT.values():
        key, *inner = target.split(".")
        assert key in SECTION_OF and (not inner or key == "optimizer"), target
    assert all(text.split(",")[0].split(".")[0].split(" ")[0] in SECTION_OF for text in OTHER_VALUES.values())


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("learning_rate", 3e-4, "write lr in the optimizer block, optimizer: {params: {lr: 0.0003}}"),
        ("adam_eps", 1e-8, "write eps in the optimizer block, optimizer: {params: {eps: 1e-08}}"),
        ("betas", [0.9, 0.95], "write betas in the optimizer block, optimizer: {params: {betas: [0.9, 0.95]}}"),
        ("adam_beta1", 0.9, "write optimizer.params.betas, a pair such as [0.9, 0.95]"),
        ("beta2", 0.95, "write optimizer.params.betas, a pair such as [0.9, 0.95]"),
        ("min_learning_rate", 1e-5, "write min_lr"),
        ("micro_batch_size", 4, "write train_micro_batch_size_per_gpu"),
        ("per-device-train-batch-size", 4, "write train_micro_batch_size_per_gpu"),
        ("max_steps", 10, "write train_iters"),
        ("warmup_steps", 10, "write warmup, a share of lr_decay_iters such as 0.01"),
        ("tie_word_embeddings", True, "write no_weight_tying, which says the opposite"),
        ("n_layer", 4, "write num_layers"),
        ("block_size", 4, "write seq_length"),
    ],
)
def test_another_programs_key_is_told_what_it_is_here(problems: Problems, key: str, value: Any, hint: str) -> None:
    (problem,) = problems(**{key: value})
    assert problem.endswith(f": {key.replace('-', '_')} is not a known key; {hint}")


def test_a_setting_is_told_the_setting_that_works(problems: Problems, load: Load) -> None:
    (problem,) = problems(overrides={"learning_rate": 3e-4})
    assert problem == "command line: learning_rate is not a known key; write --set optimizer.params.lr=0.0003"
    assert load(overrides={"optimizer.params.lr": 0.0003}).run.optimizer.peak_lr == 3e-4
    (problem,) = problems(batch_size=4)
    assert "write train_micro_batch_size_per_gpu (one process), or train_batch_size" in problem
    (problem,) = problems(lr=1e-3)
    assert "or --set optimizer.params.lr=" in problem


@pytest.mark.parametrize(
    ("block", "hint"),
    [
        ({"type": "Adam", "lr": 1e-3, "params": {"lr": 1e-3}}, "optimizer.lr is not known; write it in params"),
        ({"params": {"lr": 1e-3}, "learning_rate": 1e-3}, "optimizer.learning_rate is not known; write lr"),
        (
            {"params": {"lr": 1e-3}, "weight_decay": 0.1},
            "optimizer.weight_decay is not known; write the key weight_decay",
        ),
        (
            {"params": {"lr": 1e-3, "beta1": 0.9}},
            "optimizer.params.beta1=0.9 is not supported; write betas: [0.9, 0.95]",
        ),
        (
            {"params": {"lr": 1e-3, "weight_decay": 0.1}},
            "optimizer.params.weight_decay=0.1 is not supported; write the key",
        ),
    ],
)
def test_inside_the_optimizer_block_too(problems: Problems, block: dict[str, Any], hint: str) -> None:
    (problem,) = problems(optimizer=block)
    assert hint in problem


def test_what_belongs_into_params_has_a_mend() -> None:
    assert {"learning_rate", "adam_epsilon", "beta1", "adam_beta2"} <= IN_PARAMS.keys()
