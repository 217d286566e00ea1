"""Our configuration as transformers', and back.

    ModelConfig + RecursionConfig + vocabulary ──to_hf_config──▶ GPTNeoXConfig | LlamaConfig | MegaMeshConfig
                                               ◀─from_hf_config─ the dictionary in a config.json

Every choice that changes what the model computes is written, also where transformers' default is the same value today.
"""

from dataclasses import dataclass
from typing import Any

from transformers import GPTNeoXConfig, LlamaConfig, PreTrainedConfig

from megamesh.config.recursion import RecursionLayout, parse_scheme
from megamesh.config.sections import ModelConfig, RecursionConfig
from megamesh.errors import ConfigError
from megamesh.hf.configuration_megamesh import MegaMeshConfig
from megamesh.hf.names import Architecture

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
GATED_ACTIVATION = {plain: gated for gated, plain in PLAIN_ACTIVATION.items()}


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
        "max_position_embeddings": model.max_position_embeddings,
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
    terms = parse_scheme(recursion.recursion_scheme) if layout.num_loops else ("base",)
    residual = "sequential"
    if model.gpt_j_residual:
        residual = "parallel_tied" if model.gpt_j_tied else "parallel"
    keys = {
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
        "recursion_scheme": "+".join(terms),
    }
    if terms == ("mesh",):
        keys |= {
            "mesh_num_slots": recursion.num_slots,
            "mesh_transition_input": recursion.mesh_transition_input,
            "mesh_router_init": recursion.mesh_router_init,
            "mesh_router_slot_bias": recursion.mesh_router_slot_bias,
        }
    return keys


@dataclass(frozen=True)
class ImportedConfig:
    """What a config.json says, in our terms. `vocab_size` counts the rows of the embedding."""

    architecture: Architecture
    model: ModelConfig
    recursion: RecursionConfig
    vocab_size: int


def from_hf_config(config: dict[str, Any]) -> ImportedConfig:
    """Read a GPTNeoX, Llama or MegaMesh config.json. ConfigError for what our model cannot compute."""
    kind = config.get("model_type")
    if kind not in CLASSES:
        raise ConfigError(f"model_type={kind!r} cannot be read; supported are {', '.join(CLASSES)}")
    theirs = {"gpt_neox": GPTNeoXConfig, "llama": LlamaConfig, "megamesh": MegaMeshConfig}[kind](**config)
    model, recursion = dict(_shared_keys(theirs)), RecursionConfig()
    if kind == "gpt_neox":
        model |= {
            "norm": "layernorm",
            "layernorm_epsilon": theirs.layer_norm_eps,
            "gpt_j_residual": theirs.use_parallel_residual,
            "hidden_dropout": theirs.hidden_dropout,
            "activation": _activation(theirs.hidden_act, gated=False),
            **_rotary(theirs),
        }
    elif kind == "llama":
        if theirs.head_dim * theirs.num_attention_heads != theirs.hidden_size:
            raise ConfigError(
                f"head_dim={theirs.head_dim} is not hidden_size / num_attention_heads, which ours always is"
            )
        model |= {
            "num_kv_heads": theirs.num_key_value_heads,
            "norm": "rmsnorm",
            "rms_norm_epsilon": theirs.rms_norm_eps,
            "use_bias_in_mlp": theirs.mlp_bias,
            "activation": _activation(theirs.hidden_act, gated=True),
            **_rotary(theirs),
        }
    else:
        model |= _remote_model(theirs)
        recursion = _remote_recursion(theirs)
    return ImportedConfig(kind, ModelConfig(**model), recursion, theirs.vocab_size)


def _shared_keys(theirs: Any) -> dict[str, Any]:
    return {
        "num_layers": theirs.num_hidden_layers,
        "hidden_size": theirs.hidden_size,
        "num_attention_heads": theirs.num_attention_heads,
        "max_position_embeddings": theirs.max_position_embeddings,
        "intermediate_size": theirs.intermediate_size,
        "use_bias_in_attn_linear": theirs.attention_bias,
        "attention_dropout": theirs.attention_dropout,
        "no_weight_tying": not theirs.tie_word_embeddings,
        "init_method_std": theirs.initializer_range,
        "vocab_size": theirs.vocab_size,
        "pos_emb": "rotary",
    }


def _activation(name: str, *, gated: bool) -> str:
    if name not in ("gelu", "relu", "silu") or (gated and name not in GATED_ACTIVATION):
        raise ConfigError(
            f"hidden_act={name!r} cannot be read; supported are gelu and silu, and relu where nothing is gated"
        )
    return GATED_ACTIVATION[name] if gated else name


def _rotary(theirs: Any) -> dict[str, Any]:
    rope = theirs.rope_parameters
    if rope["rope_type"] != "default":
        raise ConfigError(f"rope_type={rope['rope_type']!r} cannot be read; only the default rotary embedding can")
    return {"rotary_emb_base": rope["rope_theta"], "rotary_pct": rope.get("partial_rotary_factor", 1.0)}


def _remote_model(theirs: MegaMeshConfig) -> dict[str, Any]:
    epsilon = "layernorm_epsilon" if theirs.norm == "layernorm" else "rms_norm_epsilon"
    keys = {
        "num_kv_heads": theirs.num_key_value_heads,
        "norm": theirs.norm,
        epsilon: theirs.norm_eps,
        "use_bias_in_norms": theirs.norm_bias,
        "use_qk_layernorm": theirs.qk_norm,
        "gpt_j_residual": theirs.residual != "sequential",
        "gpt_j_tied": theirs.residual == "parallel_tied",
        "pos_emb": theirs.position_embedding,
        "rotary_emb_base": theirs.rope_theta,
        "use_bias_in_mlp": theirs.mlp_bias,
        "scale_embeddings": theirs.scale_embeddings,
        "hidden_dropout": theirs.hidden_dropout,
        "activation": _activation(theirs.hidden_act, gated=theirs.gated_mlp),
    }
    if theirs.position_embedding == "rotary":
        keys["rotary_pct"] = (theirs.rotary_dim + 0.5) / theirs.head_dim if theirs.rotary_dim < theirs.head_dim else 1.0
    return keys


def _remote_recursion(theirs: MegaMeshConfig) -> RecursionConfig:
    if not theirs.num_loops:
        return RecursionConfig()
    layout = RecursionLayout(
        theirs.num_prelude_layers, theirs.num_core_layers, theirs.num_loops, theirs.num_coda_layers, theirs.share_core
    )
    keys: dict[str, Any] = {"recursion": str(layout), "recursion_scheme": theirs.recursion_scheme}
    if theirs.recursion_scheme == "mesh":
        keys |= {
            "mesh_num_slots": theirs.mesh_num_slots,
            "mesh_transition_input": theirs.mesh_transition_input,
            "mesh_router_init": theirs.mesh_router_init,
            "mesh_router_slot_bias": theirs.mesh_router_slot_bias,
        }
    return RecursionConfig(**keys)
