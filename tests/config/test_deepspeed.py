"""The DeepSpeed dictionary."""

import logging

import pytest

from megamesh.config.batch import ResolvedBatch
from megamesh.config.deepspeed import deepspeed_config, effective_zero_stage, fit_to_rank, reduction_buckets
from megamesh.config.keys import OptimizerConfig, PrecisionConfig

BATCH = ResolvedBatch(train_batch_size=24, micro_batch_size=2, gradient_accumulation_steps=3, data_parallel_size=4)


def optimizer(**zero: object) -> OptimizerConfig:
    return OptimizerConfig(
        optimizer={"type": "Adam", "params": {"lr": 3e-4, "betas": [0.8, 0.9], "eps": 1e-6}},
        zero_optimization=zero,
        gradient_clipping=0.5,
        weight_decay=0.02,
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_fp32_runs_the_stage_that_was_asked_for(stage: int) -> None:
    config = deepspeed_config(optimizer(stage=stage), PrecisionConfig(precision="fp32"), BATCH)
    assert config["zero_optimization"]["stage"] == stage and "bf16" not in config and "fp16" not in config


@pytest.mark.parametrize(("asked", "runs"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_bfloat16_accumulates_in_fp32_and_never_runs_stage_0(
    asked: int, runs: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="megamesh"):
        config = deepspeed_config(optimizer(stage=asked), PrecisionConfig(precision="bfloat16"), BATCH)
    assert config["zero_optimization"]["stage"] == runs
    assert config["bf16"] == {"enabled": True, "immediate_grad_update": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert len(caplog.records) == (asked != runs)


@pytest.mark.parametrize(("asked", "runs"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_fp16_runs_on_the_same_stages_as_bfloat16(asked: int, runs: int, caplog: pytest.LogCaptureFixture) -> None:
    precision = PrecisionConfig(precision="fp16")
    with caplog.at_level(logging.INFO, logger="megamesh"):
        config = deepspeed_config(optimizer(stage=asked), precision, BATCH)
    assert config["zero_optimization"]["stage"] == runs == effective_zero_stage(optimizer(stage=asked), precision)
    assert config["fp16"]["enabled"] and "bf16" not in config
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert [record.getMessage() for record in caplog.records] == (
        ["fp16 with ZeRO 0 runs on ZeRO 1: same numbers, less memory"] if asked != runs else []
    )


def test_the_batch_is_explicit_and_clipping_and_optimizer_are_the_engines() -> None:
    config = deepspeed_config(optimizer(), PrecisionConfig(), BATCH)
    assert (
        config["train_batch_size"],
        config["train_micro_batch_size_per_gpu"],
        config["gradient_accumulation_steps"],
    ) == (24, 2, 3)
    assert config["gradient_clipping"] == 0.0
    assert "optimizer" not in config


def test_the_users_zero_keys_are_passed_on_and_neox_leftovers_dropped() -> None:
    config = deepspeed_config(
        optimizer(stage=2, overlap_comm=True, reduce_bucket_size=1000, cpu_offload=False), PrecisionConfig(), BATCH
    )
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 1000}


def test_buckets_are_cut_to_a_rank_and_do_not_overlap_on_a_ring() -> None:
    given = deepspeed_config(optimizer(stage=1, overlap_comm=True), PrecisionConfig(), BATCH)
    small = fit_to_rank(given, 1000, on_ring=False)["zero_optimization"]
    assert small == {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 1000}
    large = fit_to_rank(given, 10**10, on_ring=True)["zero_optimization"]
    assert large == {"stage": 1, "overlap_comm": False, "reduce_bucket_size": 500_000_000}
    assert given["zero_optimization"] == {"stage": 1, "overlap_comm": True}


def test_buckets_at_neox_usual_settings() -> None:
    """Two of 5e8 elements, in fp32: 3.7 GiB."""
    neox = optimizer(stage=1, overlap_comm=True, reduce_bucket_size=5e8)
    found = reduction_buckets(neox, PrecisionConfig(precision="fp16"), 7 * 10**9, on_ring=False)
    assert found.num_bytes == 2 * 500_000_000 * 4


@pytest.mark.parametrize("precision", ["fp32", "bfloat16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_reads_it(stage: int, precision: str) -> None:
    """DeepSpeed's own parser accepts the dictionary and understands batch, stage and precision as meant."""
    from deepspeed.runtime.config import DeepSpeedConfig

    one_process = ResolvedBatch(
        train_batch_size=6, micro_batch_size=2, gradient_accumulation_steps=3, data_parallel_size=1
    )
    theirs = DeepSpeedConfig(
        deepspeed_config(optimizer(stage=stage), PrecisionConfig(precision=precision), one_process)
    )
    assert theirs.train_batch_size == 6 and theirs.gradient_accumulation_steps == 3
    assert theirs.grad_accum_dtype == "fp32" and theirs.gradient_clipping == 0.0
    assert theirs.bfloat16_config.enabled == (precision == "bfloat16")
    assert theirs.float16_config.enabled == (precision == "fp16")
    assert theirs.zero_optimization_stage == max(stage, int(precision != "fp32"))
