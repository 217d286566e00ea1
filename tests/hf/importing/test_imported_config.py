"""config.json of any age as our configuration; what would be computed differently is refused by its key."""

import json
from pathlib import Path
from typing import Any

import pytest

from megamesh.errors import CheckpointError, ConfigError
from megamesh.hf.exporting.configs import SpecialTokens, to_hf_config
from megamesh.hf.importing.imported_config import from_hf_config
from megamesh.hf.importing.pretrained import read_pretrained_config
from tests.hf.small_models import MESH, model_config
from tests.hf.stock_models import OLD_LLAMA, OLD_PYTHIA

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def test_pythias_file_of_2023_is_read() -> None:
    imported = from_hf_config(OLD_PYTHIA)
    model = imported.model
    assert imported.architecture == "gpt_neox" and imported.vocab_size == model.vocab_size == 64
    assert (model.num_layers, model.hidden_size, model.num_attention_heads, model.mlp_width) == (3, 32, 4, 128)
    assert (model.pos_emb, model.rotary_dim, model.rotary_emb_base) == ("rotary", 2, 10000)
    assert (model.norm, model.norm_epsilon, model.activation) == ("layernorm", 1e-5, "gelu")
    assert model.gpt_j_residual and not model.gpt_j_tied and model.no_weight_tying
    assert model.use_bias_in_attn_linear and model.use_bias_in_mlp and model.use_bias_in_norms
    changed = from_hf_config(OLD_PYTHIA | {"rotary_pct": 1.0, "rotary_emb_base": 5000, "use_parallel_residual": False})
    assert changed.model.rotary_dim == 8 and changed.model.rotary_emb_base == 5000 and not changed.model.gpt_j_residual


def test_llamas_file_of_2023_is_read() -> None:
    model = from_hf_config(OLD_LLAMA).model
    assert (model.norm, model.norm_epsilon, model.activation, model.mlp_width) == ("rmsnorm", 1e-5, "swiglu", 48)
    assert (model.kv_heads, model.rotary_dim, model.rotary_emb_base) == (2, 8, 10000)
    assert not (model.use_bias_in_attn_linear or model.use_bias_in_mlp or model.gpt_j_residual)
    assert from_hf_config(OLD_LLAMA | {"rope_theta": 500000.0}).model.rotary_emb_base == 500000
    biased = from_hf_config(OLD_LLAMA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}).model
    assert biased.use_bias_in_attn_linear and biased.use_bias_in_mlp and not biased.no_weight_tying
    without = {key: value for key, value in OLD_LLAMA.items() if key != "num_key_value_heads"}
    assert from_hf_config(without).model.kv_heads == 4


@pytest.mark.parametrize(
    ("old", "changes", "expected"),
    [
        (OLD_PYTHIA, {"hidden_act": "relu"}, "relu"),
        (OLD_PYTHIA, {"hidden_act": "silu"}, "silu"),
        (OLD_PYTHIA, {"hidden_act": "swish"}, "silu"),
        (OLD_LLAMA, {"hidden_act": "gelu"}, "geglu"),
        (OLD_LLAMA, {"hidden_act": "swish"}, "swiglu"),
    ],
)
def test_activations_that_ours_has_are_read(old: dict, changes: dict, expected: str) -> None:
    assert from_hf_config(old | changes).model.activation == expected


@pytest.mark.parametrize(
    ("old", "changes", "text"),
    [
        (OLD_LLAMA, {"model_type": "bert"}, "model_type='bert'"),
        (OLD_LLAMA, {"model_type": None}, "model_type=None"),
        (OLD_LLAMA, {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        (OLD_LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (OLD_PYTHIA, {"hidden_act": "gelu_new"}, "hidden_act='gelu_new'"),
        (OLD_PYTHIA, {"hidden_act": "gelu_fast"}, "hidden_act='gelu_fast'"),
        (OLD_PYTHIA, {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act='gelu_pytorch_tanh'"),
        (OLD_LLAMA, {"hidden_act": "relu"}, "hidden_act='relu'"),
        (OLD_LLAMA, {"head_dim": 16}, "head_dim=16"),
        (OLD_PYTHIA, {"head_dim": 16}, "head_dim=16"),
        (OLD_LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        (OLD_LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
        (OLD_LLAMA, {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}}, "rope_type='llama3'"),
        (OLD_PYTHIA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        (OLD_LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        (OLD_PYTHIA, {"rotary_pct": 0.4}, "turns 3 of 8 dimensions"),
        (OLD_PYTHIA, {"rotary_pct": 0.1}, "turns 0 of 8 dimensions"),
        (OLD_LLAMA, {"hidden_size": "many"}, "hidden_size"),
        (OLD_LLAMA, {"hidden_size": 34}, "multiple of the number of attention heads"),
        (OLD_LLAMA, {"rope_theta": "large"}, "rotary_emb_base='large'"),
        (OLD_LLAMA, {"rms_norm_eps": 0.0}, "rms_norm_epsilon=0.0"),
        (OLD_LLAMA, {"num_hidden_layers": 0}, "num_layers=0"),
        (OLD_LLAMA, {"is_causal": False}, "is_causal=False"),
        (OLD_PYTHIA, {"is_causal": None}, "is_causal=None"),
        (OLD_LLAMA, {"num_attention_heads": 0}, "num_attention_heads=0"),
        (OLD_PYTHIA, {"rotary_pct": "x"}, "partial_rotary_factor='x'"),
        (OLD_PYTHIA, {"rotary_pct": float("nan")}, "partial_rotary_factor=nan"),
        (OLD_PYTHIA, {"rotary_pct": None}, "partial_rotary_factor=None"),
        (OLD_PYTHIA, {"num_attention_heads": 0}, "num_attention_heads=0"),
        (OLD_LLAMA, {"num_key_value_heads": 0}, "num_kv_heads=0"),
        (OLD_LLAMA, {"model_type": ["llama"]}, "model_type=['llama']"),
        (OLD_LLAMA, {"architectures": 5}, "architectures=5"),
        (OLD_LLAMA, {"architectures": "NotLlamaForCausalLM"}, "architectures=NotLlama"),
    ],
)
def test_what_ours_cannot_compute_is_refused_by_its_key(old: dict, changes: dict, text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_hf_config(old | changes)
    assert text in str(refused.value) and "\n" not in str(refused.value)


def test_our_own_models_with_other_heads_are_refused() -> None:
    written: dict[str, Any] = to_hf_config("megamesh", model_config(), MESH, 64, SpecialTokens(), "float32").to_dict()
    assert from_hf_config(written).recursion == MESH.model_copy(update={"mesh_num_slots": 5})
    with pytest.raises(ConfigError, match="head_dim=16"):
        from_hf_config(written | {"head_dim": 16})


@pytest.mark.parametrize("rotary_dim", [-2, 3, 10])
def test_our_own_models_turn_pairs_that_there_are(rotary_dim: int) -> None:
    written: dict[str, Any] = to_hf_config("megamesh", model_config(), MESH, 64, SpecialTokens(), "float32").to_dict()
    assert from_hf_config(written | {"rotary_dim": 4}).model.rotary_dim == 4
    with pytest.raises(ConfigError, match=f"rotary_dim={rotary_dim} of 8 dimensions"):
        from_hf_config(written | {"rotary_dim": rotary_dim})


def test_a_causal_model_that_says_so_is_read() -> None:
    assert from_hf_config(OLD_LLAMA | {"is_causal": True}) == from_hf_config(OLD_LLAMA)


def test_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text in ("", "{", "[]", "3", "[" * 10**5):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            read_pretrained_config(tmp_path)
    path.write_text(json.dumps(OLD_LLAMA | {"model_type": "bert"}))
    with pytest.raises(ConfigError, match=r"config\.json: model_type"):
        read_pretrained_config(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_pretrained_config(tmp_path)
