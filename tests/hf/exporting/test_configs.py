"""Which architecture a model is exported as, and configurations there and back."""

import json

import pytest

from megamesh.config.keys import RecursionConfig
from megamesh.hf.exporting.configs import SpecialTokens, to_hf_config
from megamesh.hf.importing.imported_config import from_hf_config
from megamesh.hf.names import exact_architecture
from tests.hf.small_models import MESH, PLAIN, llama_config, model_config


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (model_config(), "gpt_neox"),
        (model_config(gpt_j_residual=False, activation="relu", use_bias_in_attn_linear=False), "gpt_neox"),
        (model_config(no_weight_tying=False), "gpt_neox"),
        (model_config(scale_embeddings=True), "gpt_neox"),
        (model_config(scale_embeddings=True, no_weight_tying=False), "megamesh"),
        (model_config(gpt_j_tied=True), "megamesh"),
        (model_config(num_kv_heads=2), "megamesh"),
        (model_config(use_bias_in_norms=False), "megamesh"),
        (model_config(use_bias_in_mlp=False), "megamesh"),
        (model_config(use_qk_layernorm=True), "megamesh"),
        (model_config(pos_emb="learned"), "megamesh"),
        (model_config(pos_emb="none"), "megamesh"),
        (model_config(rotary_pct=0.4), "megamesh"),  # 3 of 8 dimensions: 2 are turned here, 4 in transformers
        (model_config(norm="rmsnorm"), "megamesh"),
        (llama_config(), "llama"),
        (llama_config(activation="geglu", use_bias_in_attn_linear=True, use_bias_in_mlp=True), "llama"),
        (llama_config(no_weight_tying=False), "llama"),
        (llama_config(rotary_pct=0.5), "megamesh"),
        (llama_config(attention_dropout=0.1), "llama"),
        (llama_config(hidden_dropout=0.1), "megamesh"),  # transformers' Llama drops nothing of a state
        (model_config(hidden_dropout=0.1, attention_dropout=0.1), "gpt_neox"),
        (llama_config(gpt_j_residual=True), "megamesh"),
        (llama_config(activation="silu"), "megamesh"),
        (llama_config(norm="layernorm"), "megamesh"),
    ],
)
def test_only_exact_architectures_are_exported_as_stock(model, expected: str) -> None:
    assert exact_architecture(model, PLAIN) == expected
    assert exact_architecture(model, MESH) == "megamesh"


@pytest.mark.parametrize(
    ("model", "recursion"),
    [
        (model_config(), PLAIN),
        (llama_config(), PLAIN),
        (
            llama_config(use_qk_layernorm=True, scale_embeddings=True, hidden_dropout=0.1),
            RecursionConfig(
                recursion="1+1R2+1",
                mesh_num_slots=4,
                mesh_transition_input="prelude",
                mesh_router_init="slot",
                mesh_router_slot_bias=2.0,
            ),
        ),
        (
            model_config(gpt_j_tied=True, pos_emb="learned"),
            RecursionConfig(recursion="1+1+1+1", recursion_scheme="residual+anchor*"),
        ),
    ],
)
def test_what_is_written_reads_back_as_the_same_model(model, recursion: str | None) -> None:
    architecture = exact_architecture(model, recursion)
    written = to_hf_config(architecture, model, recursion, 64, SpecialTokens(None, 0, 5), "float32")
    read = from_hf_config(json.loads(written.to_json_string(use_diff=False)))
    computed = {"norm_epsilon", "rotary_dim", "gated", "mlp_width", "kv_heads", "head_dim"}
    assert {key: getattr(read.model, key) for key in computed} == {key: getattr(model, key) for key in computed}
    kept = (
        "activation",
        "gpt_j_residual",
        "gpt_j_tied",
        "norm",
        "pos_emb",
        "use_qk_layernorm",
        "scale_embeddings",
        "hidden_dropout",
        "no_weight_tying",
    )
    assert [getattr(read.model, key) for key in kept] == [getattr(model, key) for key in kept]
    assert read.vocab_size == 64
    assert read.recursion.layout == recursion.layout
    if recursion.layout:
        assert read.recursion.recursion_scheme == recursion.recursion_scheme
    if recursion.layout and recursion.recursion_scheme == "mesh":
        assert read.recursion == recursion


def test_ids_of_special_tokens_are_written_also_where_there_are_none() -> None:
    for model in (model_config(), llama_config()):
        config = to_hf_config(
            exact_architecture(model, PLAIN), model, PLAIN, 64, SpecialTokens(None, 7, None), "float32"
        )
        written = json.loads(config.to_json_string())
        assert written["eos_token_id"] == 7 and written["bos_token_id"] is None
