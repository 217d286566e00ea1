"""Rules across keys: each contradiction is one message with the keys, their places and the mend."""

from typing import Any

import pytest

from megamesh.config.load import SECTION_OF

from .conftest import Load, Problems

REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    # shapes
    (
        {"num_attention_heads": 5},
        ["num_attention_heads=5 (", "does not divide hidden_size=64 (", "use 1, 2, 4, 8, 16, 32 or 64"],
    ),
    ({"num_kv_heads": 3}, ["num_kv_heads=3", "does not divide num_attention_heads=4", "use 1, 2 or 4"]),
    ({"rotary_pct": 0.1}, ["rotary_pct=0.1", "head dimension 16", "use at least 0.125"]),
    *(
        (
            {"pos_emb": pos_emb, "seq_length": 256},
            ["seq_length=256", "max_position_embeddings=128", "use max_position_embeddings: 256"],
        )
        for pos_emb in ("learned", "rotary", "none")
    ),
    ({"gpt_j_tied": True}, ["gpt_j_tied=true", "gpt_j_residual: true"]),
    (
        {
            "activation": "swiglu",
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "intermediate_size": 32768,
            "mlp_multiple_of": 256,
        },
        ["intermediate_size=32768", "mlp_multiple_of=256", "intermediate_size: 11008"],
    ),
    ({"intermediate_size": 200, "mlp_multiple_of": 64}, ["intermediate_size=200", "intermediate_size: 256"]),
    ({"hidden_size": 10**30 + 1}, ["does not divide hidden_size=1000000000000000000000000000001", "use 1"]),
    # attention
    ({"attention_config": [[["sparse_fixed"], 4]]}, ["sparse_fixed attention is not supported", '[[["flash"], 4]]']),
    ({"attention_config": [[["flash", "local"], 2]]}, ["local attention is not supported"]),
    ({"attention_config": [[["flash"], 3]]}, ["covers 3 layers", "num_layers=4"]),
    ({"attention_config": ["flash"]}, ["covers 1 layers", "num_layers=4"]),
    ({"attention_config": [["flash", 4]]}, ["is not a list of"]),
    ({"attention_config": [[["flash"], -4], [["flash"], 8]]}, ["is not a list of"]),
    ({"attention_config": [[["flash"], 2.7], [["flash"], 2]]}, ["is not a list of"]),
    ({"attention_config": [[["flash"], "all"], [["flash"], 9]]}, ["covers 13 layers"]),
    ({"attention_config": [[[], "all"]]}, ["is not a list of"]),
    # recursion
    ({"recursion": "1+2R2+1"}, ["recursion=1+2R2+1", "computes 6 layers", "num_layers=4", "num_layers: 6"]),
    ({"recursion": "1+2R+1"}, ["is not a layer notation", "4+8R2+4"]),
    ({"recursion": "1+0R2+3"}, ["empty core"]),
    ({"recursion": "1+1+2+0"}, ["differ in length", "1+1+1+0"]),
    ({"recursion": "1+1R2+1", "recursion_scheme": "ancher"}, ["'ancher' is not a scheme", "residual+anchor"]),
    ({"recursion": "1+1R2+1", "recursion_scheme": "mesh+anchor"}, ["mesh cannot be part of a sum"]),
    ({"recursion": "1+1R2+1", "recursion_scheme": "anchor+anchor"}, ["names a term twice"]),
    ({"recursion": "1+1R2+1", "mesh_router_init": "slot", "mesh_num_slots": 3}, ["mesh_num_slots=3", "at least 4"]),
    (
        {"recursion": "1+1R2+1", "recursion_scheme": " mesh", "mesh_router_init": "slot", "mesh_num_slots": 3},
        ["mesh_num_slots=3", "at least 4"],
    ),
    ({"recursion_scheme": "mesh"}, ["recursion_scheme=mesh", "without recursion"]),
    ({"mesh_num_slots": 5}, ["mesh_num_slots=5", "without recursion"]),
    ({"checkpoint_activations_per": "loop"}, ["needs recursion"]),
    # batch and length
    ({"train_micro_batch_size_per_gpu": 3}, ["train_batch_size=8", "train_micro_batch_size_per_gpu=3"]),
    (
        {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3},
        ["train_batch_size=8", "gradient_accumulation_steps=3", "= 12"],
    ),
    ({"train_batch_size": None}, ["no batch size", "train_batch_size"]),
    ({"train_epochs": 1}, ["train_iters=10", "train_epochs=1", "keep one"]),
    ({"train_iters": None}, ["train_iters", "train_epochs"]),
    # optimizer
    ({"optimizer": {"type": "Lamb", "params": {"lr": 1e-3}}}, ["optimizer.type=Lamb", "AdamW"]),
    ({"optimizer": {"type": "Adam", "params": {}}}, ["optimizer.params.lr is missing"]),
    ({"optimizer": {"type": "Adam", "params": {"lr": "fast"}}}, ["optimizer.params.lr=fast", "positive number"]),
    ({"optimizer": {"type": "Adam", "params": {"lr": float("inf")}}}, ["optimizer.params.lr=inf", "positive number"]),
    (
        {"optimizer": {"type": "Adam", "params": {"lr": 1e-3, "betas": [0.9]}}},
        ["optimizer.params.betas=[0.9]", "two numbers"],
    ),
    ({"optimizer": {"type": "Adam", "params": {"lr": 1e-3, "eps": 0}}}, ["optimizer.params.eps=0"]),
    (
        {"optimizer": {"type": "Adam", "params": {"lr": 1e-3, "weight_decay": 0.1}}},
        ["optimizer.params.weight_decay", "key weight_decay"],
    ),
    (
        {"optimizer": {"type": "Adam", "params": {"lr": 1e-3, "momentum": 0.1}}},
        ["optimizer.params.momentum", "lr, betas and eps"],
    ),
    ({"optimizer": {"type": "Adam", "param": {}, "params": {"lr": 1e-3}}}, ["optimizer.param is not known"]),
    ({"optimizer": {"type": "Adam", "params": {"lr": 1e-3}}, "min_lr": 1e-2}, ["min_lr=0.01", "above the peak"]),
    # ZeRO
    ({"zero_optimization": {"stage": 4}}, ["zero_optimization.stage=4", "0, 1, 2 or 3"]),
    ({"zero_optimization": {"stage": "1"}}, ['zero_optimization.stage="1"', "is not a ZeRO stage"]),
    ({"zero_optimization": {"stage": 1.0}}, ["zero_optimization.stage=1.0", "is not a ZeRO stage"]),
    ({"zero_optimization": {"overlap_comm": 1}}, ["zero_optimization.overlap_comm=1", "true or false"]),
    (
        {"zero_optimization": {"reduce_bucket_size": 0}},
        ["zero_optimization.reduce_bucket_size=0 holds no gradient", "at least 1"],
    ),
    ({"zero_optimization": {"allgather_bucket_size": 7}}, ["not an even number of at least 2", "use 8"]),
    (
        {"zero_optimization": {"reduce_bucket_size": "auto"}},
        ["zero_optimization.reduce_bucket_size=auto", "whole number of at least 1"],
    ),
    ({"zero_optimization": {"sub_group_size": -1}}, ["zero_optimization.sub_group_size=-1", "at least 0"]),
    ({"zero_optimization": {"overlap-comm": True}}, ["zero_optimization.overlap-comm", "did you mean overlap_comm?"]),
    ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, ["offload_optimizer", "checkpoints"]),
    ({"zero_optimization": {"stage": 1, "cpu_offload": True}}, ["cpu_offload=true", "checkpoints"]),
    ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}, ["zero_hpz_partition_size=8"]),
    ({"zero_optimization": {"stage": 3, "zero_quantized_gradients": True}}, ["zero_quantized_gradients", "numbers"]),
    ({"zero_optimization": {"stage": 1, "overlap_com": True}}, ["zero_optimization.overlap_com is not known"]),
    # loss scale
    (
        {"precision": "fp16", "initial_scale_power": 3, "min_loss_scale": 10},
        ["initial_scale_power=3 (", "at 8, below min_loss_scale=10.0 (", "use initial_scale_power: 4"],
    ),
    # compilation
    (
        {"compile": True, "zero_optimization": {"stage": 3}},
        ["compile=true (", "ZeRO stage 3 (", "compile: false, or stage 0, 1 or 2"],
    ),
    # data
    ({"data_path": None}, ["no data", "data_path", "train_data_paths"]),
    (
        {"train_data_paths": ["a"], "valid_data_paths": ["b"]},
        ["data_path=corpus", "train_data_paths=[a]", "exclude each other"],
    ),
    ({"data_path": None, "train_data_paths": ["a"]}, ["eval_iters=100", "valid_data_paths"]),
    ({"data_path": None, "train_data_paths": [], "eval_iters": 0}, ["train_data_paths=[]", "at least one"]),
    (
        {"data_path": None, "train_data_paths": ["a", "b"], "train_data_weights": [1.0], "eval_iters": 0},
        ["train_data_weights=[1.0]", "1 weights for the 2 prefixes"],
    ),
    ({"train_data_weights": [1.0]}, ["needs train_data_paths"]),
    (
        {"data_path": None, "train_data_paths": ["a", "b"], "train_label_data_paths": ["c"], "eval_iters": 0},
        ["train_label_data_paths=[c]", "1 prefixes for the 2 of train_data_paths"],
    ),
    ({"weight_by_num_tokens": True}, ["weight_by_num_tokens=true", "needs train_data_paths"]),
    (
        {
            "data_path": None,
            "train_data_paths": ["a", "b"],
            "train_data_weights": [1.0, 2.0],
            "weight_by_num_documents": True,
            "eval_iters": 0,
        },
        ["weight_by_num_documents=true", "train_data_weights=[1.0, 2.0]", "both decide the weights"],
    ),
    (
        {
            "data_path": None,
            "train_data_paths": ["a", "b"],
            "train_data_weights": [1.0, 2.0],
            "train_iters": None,
            "train_epochs": 2,
            "eval_iters": 0,
        },
        ["train_epochs=2", "leave no choice to train_data_weights"],
    ),
    (
        {"valid_per_dataset": True, "eval_iters": 1},
        ["valid_per_dataset=true", "needs valid_data_paths"],
    ),
    (
        {
            "data_path": None,
            "train_data_paths": ["a"],
            "valid_data_paths": ["b"],
            "valid_per_dataset": True,
            "eval_iters": 0,
        },
        ["valid_per_dataset=true", "has no effect with eval_iters=0"],
    ),
    ({"weighted_document_limit": 9}, ["weighted_document_limit=9", "has no effect without weight_by_num_documents"]),
    (
        {"data_path": None, "train_data_paths": ["a"], "train_data_weights": [-1.0], "eval_iters": 0},
        ["must not be negative"],
    ),
    ({"split": "a,b"}, ["split=a,b", "969,30,1"]),
    ({"split": "1,2,3,4"}, ["has 4 shares"]),
    ({"split": ""}, ['split=""', "969,30,1"]),
    ({"split": "0,0,0"}, ["one of them above 0"]),
    ({"split": "1,nan,1"}, ["at least 0"]),
    ({"split": "-1,2,3"}, ["at least 0"]),
    ({"split": "0,1,0"}, ["nothing to train on"]),
    ({"split": "100,0,0"}, ["nothing to validate on", "eval_iters: 0"]),
    ({"vocab_size": None}, ["tokenizer_type=GPT2BPETokenizer", "needs vocab_file"]),
    ({"vocab_size": None, "tokenizer_type": "CharLevelTokenizer"}, ["tokenizer_type=CharLevel", "needs vocab_file"]),
    ({"vocab_file": "tokenizer.json"}, ["needs merge_file", "vocab_file=tokenizer.json", "HFTokenizer"]),
    # checkpoints
    ({"checkpoint_scale": "log"}, ["checkpoint_scale=log", "checkpoint_factor"]),
    ({"checkpoint_scale": "log", "checkpoint_factor": 1}, ["checkpoint_factor: 2"]),
    ({"extra_save_iters": [1, -2]}, ["extra_save_iters=[1, -2]", "negative"]),
    ({"finetune": True}, ["finetune=true", "needs load"]),
    ({"finetune": True, "load": "a", "save": "a"}, ["one folder", "another save"]),
    ({"no_load_optim": True}, ["no_load_optim=true", "without load"]),
]


@pytest.mark.parametrize(
    ("keys", "essentials"), REFUSED, ids=[", ".join(keys) + "-" + essentials[-1] for keys, essentials in REFUSED]
)
def test_contradiction_is_one_message_with_keys_and_mend(
    problems: Problems, keys: dict[str, Any], essentials: list[str]
) -> None:
    (problem,) = problems(**keys)
    for essential in essentials:
        assert essential in problem


ACCEPTED: list[dict[str, Any]] = [
    {"num_kv_heads": 2},
    {"seq_length": 64},
    {"seq_length": 128, "pos_emb": "learned"},
    {"attention_config": [[["flash"], "all"]]},
    {"attention_config": [[["global", "flash"], 2]]},
    {"attention_config": ["global", "flash", "global", "flash"]},
    {"recursion": "1+1R2+1"},
    {"recursion": "1+1+1+1", "recursion_scheme": "residual+anchor*"},
    {"recursion": "1+1r2+1", "mesh_router_init": "slot", "mesh_num_slots": 4},
    {"recursion": "1+1R2+1", "recursion_scheme": "base", "mesh_num_slots": 1},
    {"num_layers": 6, "recursion": "1+2R2+1", "checkpoint_activations_per": "loop", "checkpoint_activations": True},
    {"activation": "swiglu", "intermediate_size": 172},
    {"activation": "swiglu", "mlp_multiple_of": 256},
    {"pipe_parallel_size": 1},
    {"compile": True, "zero_optimization": {"stage": 2}},
    {"precision": "fp16", "loss_scale": 128.0, "initial_scale_power": 3, "min_loss_scale": 10.0},
    {"precision": "fp16", "initial_scale_power": 4, "min_loss_scale": 10.0},
    {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2},
    {"train_iters": None, "train_epochs": 2},
    {
        "zero_optimization": {
            "stage": 3,
            "stage3_max_reuse_distance": 0,
            "offload_param": {"device": "none"},
            "cpu_offload": False,
        }
    },
    {"data_path": None, "train_data_paths": ["a", "b"], "train_data_weights": [1, 0], "eval_iters": 0},
    {"data_path": None, "train_data_paths": ["a"], "valid_data_paths": ["b"]},
    {"split": "969, 30, 1"},
    {"split": "9/1"},
    {"split": "1,0,0", "eval_iters": 0},
    {"vocab_size": None, "vocab_file": "vocab.json", "merge_file": "merges.txt"},
    {"vocab_size": None, "vocab_file": "tokenizer.json", "tokenizer_type": "HFTokenizer"},
    {"checkpoint_scale": "log", "checkpoint_factor": 2},
    {"finetune": True, "load": "a", "save": "b"},
    {"no_load_optim": True, "save": "a"},
]


@pytest.mark.parametrize("keys", ACCEPTED, ids=str)
def test_what_is_right_loads(load: Load, keys: dict[str, Any]) -> None:
    run = load(**keys).run.model_dump()
    assert {key: run[SECTION_OF[key]][key] for key in keys} == keys


@pytest.mark.parametrize(
    ("split", "shares"), [("969,30,1", (0.969, 0.03, 0.001)), ("9/1", (0.9, 0.1, 0.0)), ("1", (1.0, 0.0, 0.0))]
)
def test_split_shares_sum_to_one(load: Load, split: str, shares: tuple[float, ...]) -> None:
    assert load(split=split, eval_iters=0).run.data.split_shares == pytest.approx(shares)


def test_zero_keys_are_deepspeeds_own() -> None:
    """Every key that is passed on or refused by name exists in DeepSpeed, and every key of DeepSpeed's is one of the two."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from megamesh.config.checks.optimizer import ZERO_KEYS, ZERO_REFUSED

    theirs = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert theirs - ZERO_KEYS - ZERO_REFUSED.keys() == {"save_muon_momentum_buffer_in_memory", "leaf_module"}
    assert theirs >= ZERO_KEYS
