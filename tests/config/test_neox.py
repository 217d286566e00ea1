"""GPT-NeoX files: they mean here what they mean there, or are refused with the mend."""

import pytest

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
FP16 = {"fp16": True, "enabled": True, "loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1}


def test_a_pythia_file_loads_but_for_fp16(load: Load, problems: Problems) -> None:
    (problem,) = problems(**PYTHIA, fp16=FP16)
    assert "fp16 is not supported" in problem and "--set precision=bfloat16" in problem and "run.yml:" in problem
    run = load(**PYTHIA, fp16=FP16, overrides={"precision": "bfloat16"}).run
    assert run.precision.precision == "bfloat16"
    assert (run.checkpoint.checkpoint_factor, run.batch.gradient_accumulation_steps) == (1000, 1)


@pytest.mark.parametrize(
    ("keys", "precision"),
    [
        ({}, "bfloat16"),
        ({"precision": "fp32"}, "fp32"),
        ({"bf16": {"enabled": True}}, "bfloat16"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, "bfloat16"),
        ({"bf16": {"enabled": True}, "precision": "bfloat16"}, "bfloat16"),
        ({"fp16": {"enabled": True, "type": "bfloat16"}}, "bfloat16"),
        ({"fp16": {"enabled": False}}, "fp32"),
        ({"fp16": {"enabled": False}, "precision": "bfloat16"}, "bfloat16"),
    ],
)
def test_precision_from_either_spelling(load: Load, keys: dict[str, object], precision: str) -> None:
    assert load(**keys).run.precision.precision == precision


@pytest.mark.parametrize(
    ("keys", "essentials"),
    [
        ({"precision": "fp16"}, ["fp16 is not supported", "precision: bfloat16"]),
        (
            {"precision": "fp32", "bf16": {"enabled": True}},
            ["bf16 block asks for bfloat16", "precision=fp32", "keep one"],
        ),
        ({"fp16": FP16, "precision": "bfloat16"}, ["fp16 block asks for fp16", "precision=bfloat16"]),
        ({"bf16": True}, ["is not a block"]),
        ({"precision": "fp8"}, ["is not one of fp32, bfloat16"]),
    ],
)
def test_precision_that_contradicts_or_does_not_exist(
    problems: Problems, keys: dict[str, object], essentials: list[str]
) -> None:
    (problem,) = problems(**keys)
    assert all(essential in problem for essential in essentials)


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
        ("train_label_data_paths", ["a"], "not supported"),
        ("weight_by_num_documents", True, "train_data_weights"),
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
