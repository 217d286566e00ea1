"""Parameter counts and FLOPs from the configuration alone, against published numbers and against the model itself."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megamesh.config.keys import ModelConfig, RecursionConfig, TrainingConfig
from megamesh.model.build import build_model, empty_model
from megamesh.model.counts import count_parameters, parameter_shapes
from megamesh.model.flops import flops_per_token

PYTHIA: dict[str, Any] = {
    "max_position_embeddings": 2048,
    "pos_emb": "rotary",
    "rotary_pct": 0.25,
    "no_weight_tying": True,
    "gpt_j_residual": True,
}


def model(num_layers: int, hidden_size: int, num_attention_heads: int, **keys: Any) -> ModelConfig:
    return ModelConfig(
        num_layers=num_layers, hidden_size=hidden_size, num_attention_heads=num_attention_heads, **{**PYTHIA, **keys}
    )


@pytest.mark.parametrize(
    ("recursion", "scheme", "non_embedding", "routers"),
    [
        (None, "mesh", 1_208_602_624, 0),
        ("4+8R2+4", "base", 805_736_448, 0),
        ("4+8R2+4", "anchor", 805_736_448, 0),
        ("4+8R2+4", "mesh", 805_797_918, 61_470),
        ("4+8+8+4", "mesh", 1_208_602_624 + 61_470, 61_470),
        ("4+8R2+4", "static", 805_736_448 + 2 * 3, 2 * 3),
        ("4+8R2+4", "dynamic", 805_736_448 + 2 * (3 * 2048 + 3), 2 * (3 * 2048 + 3)),
    ],
)
def test_published_counts_of_the_1_4b_models(
    recursion: str | None, scheme: str, non_embedding: int, routers: int
) -> None:
    counts = count_parameters(model(24, 2048, 16), RecursionConfig(recursion=recursion, recursion_scheme=scheme), 50304)
    assert (counts.non_embedding, counts.routers) == (non_embedding, routers)
    assert counts.total == non_embedding + 2 * 50304 * 2048


SHAPES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"gpt_j_residual": False, "no_weight_tying": False, "pos_emb": "learned"}, {}),
    ({"gpt_j_tied": True}, {"recursion": "1+1R3+1", "recursion_scheme": "base"}),
    (
        {
            "norm": "rmsnorm",
            "activation": "swiglu",
            "num_kv_heads": 2,
            "use_bias_in_attn_linear": False,
            "use_bias_in_mlp": False,
        },
        {},
    ),
    (
        {"use_qk_layernorm": True, "use_bias_in_norms": False, "intermediate_size": 72},
        {"recursion": "1+1R3+1", "mesh_num_slots": 4},
    ),
    (
        {"use_qk_layernorm": True, "num_kv_heads": 1, "activation": "geglu", "mlp_multiple_of": 16},
        {"recursion": "0+1+1+1+2"},
    ),
    ({}, {"recursion": "1+1R3+1", "recursion_scheme": "static"}),
    ({}, {"recursion": "1+1R3+1", "recursion_scheme": "dynamic"}),
    ({}, {"recursion": "2+2R1+1", "recursion_scheme": "residual+anchor"}),
]


@pytest.mark.parametrize(("keys", "recursion"), SHAPES, ids=str)
def test_names_and_shapes_are_the_models(keys: dict[str, Any], recursion: dict[str, Any]) -> None:
    config, recursive = model(5, 48, 4, **{**keys, "max_position_embeddings": 32}), RecursionConfig(**recursion)
    module = empty_model(config, recursive, 128, device="meta")
    built = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert parameter_shapes(config, recursive, 128) == built
    assert count_parameters(config, recursive, 128).total == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("keys", "recursion"),
    [
        ({}, {}),
        ({"activation": "swiglu", "num_kv_heads": 2, "norm": "rmsnorm"}, {}),
        ({}, {"recursion": "1+1R3+1", "recursion_scheme": "base"}),
        ({"gpt_j_residual": False}, {"recursion": "0+1+1+1+2", "recursion_scheme": "residual+anchor"}),
    ],
    ids=str,
)
def test_flops_are_what_torch_counts(keys: dict[str, Any], recursion: dict[str, Any]) -> None:
    """torch counts the matrix products of the whole attention square; ours is (S+1)/2S of that term."""
    batch, length, vocab_size = 2, 16, 128
    config, recursive = model(5, 48, 4, **{**keys, "max_position_embeddings": length}), RecursionConfig(**recursion)
    module = build_model(config, recursive, TrainingConfig(), vocab_size)
    with (
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        module.logits(torch.zeros(batch, length, dtype=torch.long))
    ours = flops_per_token(config, recursive, vocab_size, length)
    assert counter.get_total_flops() == batch * length * (
        ours.blocks + ours.head + ours.attention * 2 * length / (length + 1)
    )
    assert ours.training == 3 * ours.forward


def test_flops_of_a_recursive_model_are_those_of_its_compute_depth() -> None:
    plain = flops_per_token(model(24, 1024, 16), RecursionConfig(), 50304)
    base = flops_per_token(model(24, 1024, 16), RecursionConfig(recursion="4+8R2+4", recursion_scheme="base"), 50304)
    mesh = flops_per_token(model(24, 1024, 16), RecursionConfig(recursion="4+8R2+4"), 50304)
    assert base == plain
    # K = 2, N = 5: three router sets of two D×N linears; reads of 2 + 3 + 4 sources, each N-dot and D-axpy
    assert mesh.forward - base.forward == 3 * 2 * 2 * 1024 * 5 + 9 * (2 * 5 + 2 * 1024)
