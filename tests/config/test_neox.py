"""GPT-NeoX files: they mean here what they mean there, or are refused with the mend."""

from typing import Any

import pytest

from megamesh.config.keys import PrecisionConfig
from megamesh.config.load import SECTION_OF
from megamesh.config.neox import IGNORED, REFUSED, RENAMED

from .conftest import Load, Problems

# The keys of a published Pythia configuration, with its precision block left to the tests.
PYTHIA = {
    "pipe-parallel-size": 1,
    "model-parallel-size": 1,
    "seq-length": 128,
    "rotary-pct": 0.25,
    "no-weight-tying": True,
    "gpt-j-residual": True,
    "output-layer-parallelism": "column",
    "attention-config": [[["flash"], 4]],
    "scaled-upper-triang-masked-softmax-fusion": True,
    "bias-gelu-fusion": True,
    "init_method": "small_init",
    "output_layer_init_method": "wang_init",
    "optimizer": {"type": "Adam", "params": {"lr": 0.001, "betas": [0.9, 0.95], "eps": 1.0e-8}},
    "min_lr": 0.0001,
    "zero_optimization": {
        "stage": 1,
        "allgather_partitions": True,
        "allgather_bucket_size": 500000000,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 500000000,
        "contiguous_gradients": True,
        "cpu_offload": False,
    },
    "train_batch_size": None,
    "train_micro_batch_size_per_gpu": 32,
    "gas": 1,
    "data-impl": "mmap",
    "num_workers": 1,
    "checkpoint-activations": True,
    "checkpoint-num-layers": 1,
    "partition-activations": True,
    "synchronize-each-layer": True,
    "gradient_clipping": 1.0,
    "weight-decay": 0.1,
    "hidden-dropout": 0,
    "attention-dropout": 0,
    "lr-decay-iters": 10,
    "distributed-backend": "nccl",
    "lr-decay-style": "cosine",
    "warmup": 0.01,
    "save-interval": 1000,
    "extra-save-iters": [0, 1, 2, 4],
    "eval-interval": 1000,
    "eval-iters": 10,
    "log-interval": 10,
    "steps_per_print": 10,
    "wall_clock_breakdown": True,
    "tokenizer-type": "HFTokenizer",
    "vocab-file": "20B_tokenizer.json",
    "launcher": "slurm",
    "deepspeed_slurm": True,
}
FP16 = {
    "fp16": True,
    "enabled": True,
    "loss_scale": 0,
    "loss_scale_window": 500,
    "initial_scale_power": 12,
    "hysteresis": 3,
    "min_loss_scale": 2,
}
SCALED = PrecisionConfig(
    precision="fp16", loss_scale=0, loss_scale_window=500, initial_scale_power=12, hysteresis=3, min_loss_scale=2
)


def test_a_pythia_file_loads_as_it_is(load: Load) -> None:
    loaded = load(**PYTHIA, fp16=FP16)
    assert loaded.run.precision == SCALED
    assert not set(FP16) & set(loaded.ignored_keys)
    assert (loaded.run.checkpoint.checkpoint_factor, loaded.run.batch.gradient_accumulation_steps) == (1000, 1)


@pytest.mark.parametrize("precision", ["bfloat16", "fp32"])
def test_the_command_line_takes_a_pythia_file_to_another_precision(load: Load, precision: str) -> None:
    assert load(**PYTHIA, fp16=FP16, overrides={"precision": precision}).run.precision == PrecisionConfig(
        precision=precision
    )


@pytest.mark.parametrize(
    ("keys", "precision"),
    [
        ({}, "bfloat16"),
        ({"precision": "fp32"}, "fp32"),
        ({"precision": "fp16"}, "fp16"),
        ({"bf16": {"enabled": True}}, "bfloat16"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, "bfloat16"),
        ({"bf16": {"enabled": True}, "precision": "bfloat16"}, "bfloat16"),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": True}}, "fp16"),
        ({"fp16": {"enabled": True}}, "fp16"),
        ({"fp16": {"enabled": True, "type": "fp16", "auto_cast": True}, "precision": "fp16"}, "fp16"),
        ({"fp16": {"type": "fp16"}, "precision": "fp16"}, "fp16"),
        ({"fp16": {"enabled": True, "type": "bfloat16", "loss_scale": 0}}, "bfloat16"),
        ({"fp16": {"enabled": False}}, "fp32"),
        ({"fp16": FP16 | {"enabled": False}}, "fp32"),
        ({"fp16": {"loss_scale": 0}}, "fp32"),
        ({"fp16": FP16 | {"enabled": False}, "precision": "bfloat16"}, "bfloat16"),
        ({"fp16": {"enabled": False}, "bf16": {"enabled": False}}, "fp32"),
        ({"fp16": {"enabled": False}, "overrides": {"precision": "fp16"}}, "fp16"),
    ],
)
def test_precision_from_either_spelling(load: Load, keys: dict[str, object], precision: str) -> None:
    assert load(**keys).run.precision == PrecisionConfig(precision=precision)


@pytest.mark.parametrize(
    ("keys", "essentials"),
    [
        (
            {"precision": "fp32", "bf16": {"enabled": True}},
            ["bf16 block asks for bfloat16", "precision=fp32", "keep one"],
        ),
        ({"fp16": FP16, "precision": "bfloat16"}, ["fp16 block asks for fp16", "precision=bfloat16"]),
        ({"fp16": FP16, "precision": "fp32"}, ["fp16 block asks for fp16", "precision=fp32"]),
        ({"fp16": FP16, "bf16": {"enabled": True}}, ["bf16 block asks for bfloat16", "precision=fp16"]),
        ({"fp16": {"enabled": False}, "precision": "fp16"}, ["fp16 block is not enabled", "precision=fp16"]),
        (
            {"fp16": FP16, "loss_scale_window": 100},
            ["fp16 block says loss_scale_window=500", "says loss_scale_window=100", "keep one"],
        ),
        ({"fp16": FP16, "min_scale": 1}, ["fp16 block says min_loss_scale=2", "says min_loss_scale=1"]),
        ({"bf16": True}, ["is not a block"]),
        ({"fp16": True}, ["fp16=true is not a block", "precision: fp16"]),
        ({"precision": "fp8"}, ["is not one of fp32, fp16, bfloat16"]),
        ({"fp16": {"enabled": "auto"}}, ["fp16.enabled=auto is not true or false"]),
        ({"bf16": {"enabled": 1}}, ["bf16.enabled=1 is not true or false"]),
        ({"fp16": FP16 | {"loss_scale_windows": 1}}, ["fp16.loss_scale_windows", "did you mean loss_scale_window?"]),
        ({"fp16": FP16 | {"opt_level": "O2"}}, ["fp16.opt_level is not a known key; remove it"]),
        ({"bf16": {"enabled": True, "enable": 1}}, ["bf16.enable is not a known key; did you mean enabled?"]),
        ({"fp16": FP16 | {"type": "fp8"}}, ["fp16.type=fp8 is not one of fp16, bfloat16"]),
        ({"fp16": FP16 | {"consecutive_hysteresis": True}}, ["fp16.consecutive_hysteresis=true", "remove it"]),
        ({"fp16": FP16 | {"fp16_master_weights_and_grads": True}}, ["fp32 always; remove it"]),
        ({"bf16": {"enabled": True, "check_grad_overflow": False}}, ["bf16.check_grad_overflow=false must stay on"]),
        ({"fp16": FP16 | {"hysteresis": 0}}, ["hysteresis=0 must be at least 1"]),
        ({"fp16": FP16 | {"loss_scale": -1}}, ["loss_scale=-1 must be at least 0"]),
        ({"precision": "fp16", "loss_scale_window": "many"}, ["loss_scale_window=many is not a whole number"]),
    ],
)
def test_precision_that_contradicts_or_does_not_exist(
    problems: Problems, keys: dict[str, object], essentials: list[str]
) -> None:
    (problem,) = problems(**keys)
    assert "run.yml:" in problem and all(essential in problem for essential in essentials)


@pytest.mark.parametrize(
    "keys",
    [
        {"fp16": FP16, "hysteresis": 3},
        {"fp16": {"enabled": True, "loss_scale": 0, "hysteresis": 3}, "loss_scale_window": 500.0}
        | {"initial_scale_power": 12, "min_scale": 2.0},
        {"precision": "fp16", "fp16": {key: value for key, value in FP16.items() if key != "enabled"}},
        {"fp16": FP16 | {"hysteresis": 7}, "overrides": {"hysteresis": 3}},
        {"fp16": FP16 | {"hysteresis": 7}, "overrides": {"fp16.hysteresis": 3}},
        {"fp16": FP16 | {"enabled": False}, "overrides": {"precision": "fp16"}},
        {"fp16": FP16 | {"consecutive_hysteresis": False, "auto_cast": False}, "loss_scale": None},
        {"precision": "fp16", **{key: value for key, value in FP16.items() if key not in ("fp16", "enabled")}},
    ],
    ids=str,
)
def test_loss_scaling_means_the_same_in_the_block_and_beside_it(load: Load, keys: dict[str, Any]) -> None:
    loaded = load(**keys)
    assert loaded.run.precision == SCALED and loaded.ignored_keys == []


@pytest.mark.parametrize("keys", [{}, {"precision": "fp32"}, {"fp16": FP16 | {"enabled": False}}], ids=str)
def test_loss_scaling_beside_another_precision_loads_and_is_named(
    load: Load, keys: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="megamesh"):
        loaded = load(**keys, loss_scale_window=1000, hysteresis=2, min_scale=1.0, dynamic_loss_scale=True)
    assert loaded.ignored_keys == ["dynamic_loss_scale", "loss_scale_window", "hysteresis", "min_loss_scale"]
    assert "without meaning here: dynamic_loss_scale, loss_scale_window, hysteresis, min_loss_scale" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "mend"),
    [
        ("sliding_window_width", 4096, "not supported"),
        ("use_wandb", True, "tensorboard_dir"),
        ("num_unique_layers", 6, "recursion"),
        ("mlp_type", "llama", "swiglu"),
        ("te_mha", True, "Transformer Engine"),
        ("lr", 1e-3, "optimizer:"),
        ("zero_stage", 1, "zero_optimization"),
        ("batch_size", 4, "train_micro_batch_size_per_gpu"),
        ("checkpoint_in_cpu", True, "recomputed"),
        ("label_data_paths", ["a"], "train_label_data_paths"),
        ("eod_mask_loss", True, "not supported"),
        ("curriculum_learning", {"enabled": True}, "not supported"),
        ("soft_prompt_tuning", {"enabled": True}, "not supported"),
        ("moe_num_experts", 8, "experts"),
        ("gradient_predivide_factor", 2.0, "fp32"),
        ("model_arch", "t5", "decoder-only"),
        ("amp", {"enabled": True}, "bfloat16"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_with_the_mend(
    problems: Problems, key: str, value: object, mend: str
) -> None:
    (problem,) = problems(**{key: value})
    assert f": {key}=" in problem and mend in problem


def test_the_default_width_of_a_gated_mlp_is_said_because_neox_has_another(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="megamesh"):
        load(activation="swiglu", intermediate_size=172)
        assert caplog.messages == []
        assert load(activation="swiglu", mlp_multiple_of=100).run.model.mlp_width == 200
    assert "the gated MLP is 200 wide; GPT-NeoX builds half" in caplog.text
    assert load(activation="gelu", mlp_multiple_of=100).run.model.mlp_width == 300


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_the_values_that_ask_for_nothing_are_accepted(load: Load, key: str) -> None:
    for value in [*REFUSED[key].accepted, {"enabled": False}]:
        assert load(**{key: value}).ignored_keys == []


@pytest.mark.parametrize("key", sorted(IGNORED))
def test_every_ignored_key_is_accepted_and_listed(load: Load, key: str) -> None:
    assert load(**{key: "anything"}).ignored_keys == [key]


def test_a_key_belongs_to_one_kind() -> None:
    kinds = [set(SECTION_OF), set(RENAMED), set(IGNORED), set(REFUSED)]
    assert sum(map(len, kinds)) == len(set().union(*kinds))
    assert set(RENAMED.values()) <= set(SECTION_OF)


def test_a_blend_with_labels_means_the_same(load: Load) -> None:
    """Keys of data that once were refused or had no meaning here."""
    keys = {
        "train-data-paths": ["a", "b"],
        "train-label-data-paths": ["c", "d"],
        "valid-data-paths": ["e"],
        "weight-by-num-documents": True,
        "weighted-sampler-alpha": 0.3,
        "weighted-document-limit": 1000,
        "pack-impl": "pack_until_overflow",
        "allow-chopped": False,
    }
    loaded = load(data_path=None, **keys)
    assert loaded.ignored_keys == []
    given = loaded.run.data.model_dump()
    assert {key: given[key.replace("-", "_")] for key in keys} == keys
    assert load(data_path=None, train_data_paths=["a"], eval_iters=0, weighted_sampler_alpha=0.3).ignored_keys == []
