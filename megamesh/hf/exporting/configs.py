"""Our configuration as transformers'; imported_config.py goes back.

    ModelConfig + RecursionConfig + vocabulary ──to_hf_config──▶ GPTNeoXConfig | LlamaConfig | MegaMeshConfig

Every choice that changes what the model computes is written, also where transformers' default is the same value today.
"""

from dataclasses import dataclass
from typing import Any

from transformers import GPTNeoXConfig, LlamaConfig, PreTrainedConfig

from megamesh.config.keys import ModelConfig, RecursionConfig
from megamesh.config.recursion import RecursionLayout
from megamesh.config.schemes import PLAIN
from megamesh.hf.names import Architecture
from megamesh.hf.remote.configuration_megamesh import MegaMeshConfig
from megamesh.model.recursion.scheme import describe

AUTO_MAP = {
    "AutoConfig": "configuration_megamesh.MegaMeshConfig",
    "AutoModel": "modeling_megamesh.MegaMeshModel",
    "AutoModelForCausalLM": "modeling_megamesh.MegaMeshForCausalLM",
}
CLASSES: dict[Architecture, str] = {
    "gpt_neox": "GPTNeoXForCausalLM",
    "llama": "LlamaForCausalLM",
    "megamesh": "MegaMeshForCausalLM",
}
PLAIN_ACTIVATION = {"geglu": "gelu", "swiglu": "silu"}


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that transformers wants in a model's configuration; None where the tokenizer has no such token."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None


def to_hf_config(
    architecture: Architecture,
    model: ModelConfig,
    recursion: RecursionConfig,
    vocab_size: int,
    special: SpecialTokens,
    dtype: str,
) -> PreTrainedConfig:
    """The configuration to write beside weights of `dtype` ("float32", "bfloat16"). `vocab_size` counts the embedding's rows."""
    common = {
        "architectures": [CLASSES[architecture]],
        "dtype": dtype,
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.mlp_width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "max_position_embeddings": model.longest_sequence,
        "trained_sequence_length": model.sequence_length,
        "hidden_act": PLAIN_ACTIVATION.get(model.activation, model.activation),
        "attention_bias": model.use_bias_in_attn_linear,
        "attention_dropout": model.attention_dropout,
        "initializer_range": model.init_method_std,
        "tie_word_embeddings": not model.no_weight_tying,
        "use_cache": True,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
    }
    if architecture == "gpt_neox":
        return GPTNeoXConfig(**common, **_gpt_neox_keys(model))
    if architecture == "llama":
        return LlamaConfig(**common, **_llama_keys(model))
    return MegaMeshConfig(**common, **_remote_keys(model, recursion), auto_map=dict(AUTO_MAP))


def _gpt_neox_keys(model: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_dropout": model.hidden_dropout,
        "layer_norm_eps": model.layernorm_epsilon,
        "use_parallel_residual": model.gpt_j_residual,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(model.rotary_emb_base),
            "partial_rotary_factor": model.rotary_pct,
        },
    }


def _llama_keys(model: ModelConfig) -> dict[str, Any]:
    return {
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "rms_norm_eps": model.rms_norm_epsilon,
        "mlp_bias": model.use_bias_in_mlp,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(model.rotary_emb_base)},
    }


def _remote_keys(model: ModelConfig, recursion: RecursionConfig) -> dict[str, Any]:
    layout = recursion.layout or RecursionLayout(model.num_layers, 0, 0, 0, shared=True)
    residual = "sequential"
    if model.gpt_j_residual:
        residual = "parallel_tied" if model.gpt_j_tied else "parallel"
    keys: dict[str, Any] = {
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "gated_mlp": model.gated,
        "norm": model.norm,
        "norm_eps": model.norm_epsilon,
        "norm_bias": model.use_bias_in_norms and model.norm == "layernorm",
        "qk_norm": model.use_qk_layernorm,
        "residual": residual,
        "position_embedding": model.pos_emb,
        "rotary_dim": model.rotary_dim,
        "rope_theta": float(model.rotary_emb_base),
        "mlp_bias": model.use_bias_in_mlp,
        "scale_embeddings": model.scale_embeddings,
        "hidden_dropout": model.hidden_dropout,
        "num_prelude_layers": layout.num_prelude,
        "num_core_layers": layout.num_core,
        "num_loops": layout.num_loops,
        "num_coda_layers": layout.num_coda,
        "share_core": layout.shared,
    }
    if not layout.num_loops:
        return keys | {"recursion_scheme": PLAIN}
    scheme = describe(recursion)
    return keys | {"recursion_scheme": "+".join(scheme.terms)} | scheme.exported_keys()
