"""transformers' config.json as our configuration.

    config.json ──transformers' own class──▶ old and new spellings alike ──from_hf_config──▶ ImportedConfig: model, recursion, rows

What our model would compute differently is refused with the key and its value, never dropped.
"""

from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from pydantic import ValidationError
from transformers import GPTNeoXConfig, LlamaConfig, PreTrainedConfig

from megamesh.config.keys import ModelConfig, RecursionConfig
from megamesh.config.recursion import RecursionLayout
from megamesh.config.schemes import is_own, scheme_class
from megamesh.errors import ConfigError
from megamesh.hf.exporting.configs import CLASSES, PLAIN_ACTIVATION
from megamesh.hf.names import Architecture
from megamesh.hf.remote.configuration_megamesh import MegaMeshConfig

_CONFIGS: dict[Architecture, type[PreTrainedConfig]] = {
    "gpt_neox": GPTNeoXConfig,
    "llama": LlamaConfig,
    "megamesh": MegaMeshConfig,
}
GATED_ACTIVATION = {plain: gated for gated, plain in PLAIN_ACTIVATION.items()}
OTHER_SPELLINGS = {"swish": "silu"}


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
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ConfigError(f"model_type={kind!r} cannot be read; supported are {', '.join(CLASSES)}")
    _refuse_other_models(config, CLASSES[kind])
    try:
        theirs: Any = _CONFIGS[kind](**config)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        reason = str(error.__cause__ or error).strip()
        raise ConfigError(f"transformers refuses this configuration of {CLASSES[kind]}: {reason}") from error
    read = {"gpt_neox": _gpt_neox_model, "llama": _llama_model, "megamesh": _remote_model}[kind]
    try:
        model = ModelConfig(**(_shared_keys(theirs) | read(theirs)))
        recursion = _remote_recursion(theirs) if kind == "megamesh" else RecursionConfig()
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['loc'][0]}={first['input']!r} cannot be read: {first['msg']}") from error
    return ImportedConfig(kind, model, recursion, theirs.vocab_size)


def _refuse_other_models(config: dict[str, Any], expected: str) -> None:
    named = config.get("architectures")
    if named and (not isinstance(named, list) or expected not in named):
        raise ConfigError(
            f"architectures={named} cannot be read; only {expected} is a language model with all its weights"
        )
    if config.get("quantization_config"):
        raise ConfigError(
            "quantization_config: weights that are quantised cannot be read; name the folder of the original ones"
        )
    if config.get("num_attention_heads") == 0:  # transformers divides by it
        raise ConfigError("num_attention_heads=0 cannot be read; a model has at least 1")
    if not config.get("is_causal", True):
        raise ConfigError(
            f"is_causal={config['is_causal']} cannot be read: tokens would see those after them, which they never do in ours"
        )


def _shared_keys(theirs: Any) -> dict[str, Any]:
    return {
        "num_layers": theirs.num_hidden_layers,
        "hidden_size": theirs.hidden_size,
        "num_attention_heads": theirs.num_attention_heads,
        "max_position_embeddings": theirs.max_position_embeddings,
        "seq_length": _trained_length(theirs),
        "intermediate_size": theirs.intermediate_size,
        "use_bias_in_attn_linear": theirs.attention_bias,
        "attention_dropout": theirs.attention_dropout or 0.0,
        "no_weight_tying": not theirs.tie_word_embeddings,
        "init_method_std": theirs.initializer_range,
        "vocab_size": theirs.vocab_size,
        "pos_emb": "rotary",
    }


def _trained_length(theirs: Any) -> int | None:
    """What an export of ours says of its training; None where it is as long as the model takes, as of every other folder."""
    trained, limit = getattr(theirs, "trained_sequence_length", None), theirs.max_position_embeddings
    if trained is not None and (type(trained) is not int or not 1 <= trained <= limit):
        raise ConfigError(
            f"trained_sequence_length={trained!r} is not a length from 1 to max_position_embeddings={limit}"
        )
    return None if trained == limit else trained


def _gpt_neox_model(theirs: Any) -> dict[str, Any]:
    head_dim = _usual_head_dim(theirs)
    rotary = _rotary(theirs)
    rotated = int(head_dim * rotary["rotary_pct"])
    if rotated % 2 or not rotated:
        raise ConfigError(
            f"partial_rotary_factor={rotary['rotary_pct']} turns {rotated} of {head_dim} dimensions of a head; ours turns pairs"
        )
    return rotary | {
        "norm": "layernorm",
        "layernorm_epsilon": theirs.layer_norm_eps,
        "gpt_j_residual": theirs.use_parallel_residual,
        "hidden_dropout": theirs.hidden_dropout,
        "activation": _activation(theirs.hidden_act, gated=False),
    }


def _llama_model(theirs: Any) -> dict[str, Any]:
    _usual_head_dim(theirs)
    rotary = _rotary(theirs)
    if rotary.pop("rotary_pct") != 1.0:
        raise ConfigError(
            f"partial_rotary_factor={theirs.rope_parameters['partial_rotary_factor']}: LlamaForCausalLM turns all dimensions of a head "
            "whatever this key says; remove it from config.json if that is the model"
        )
    return rotary | {
        "num_kv_heads": theirs.num_key_value_heads,
        "norm": "rmsnorm",
        "rms_norm_epsilon": theirs.rms_norm_eps,
        "use_bias_in_mlp": theirs.mlp_bias,
        "activation": _activation(theirs.hidden_act, gated=True),
    }


def _usual_head_dim(theirs: Any) -> int:
    """Ours is always hidden_size / num_attention_heads."""
    usual: int = theirs.hidden_size // theirs.num_attention_heads
    given = getattr(theirs, "head_dim", None)
    if given not in (None, usual):
        raise ConfigError(f"head_dim={given} is not hidden_size / num_attention_heads = {usual}, which ours always is")
    return usual


def _activation(name: str, *, gated: bool) -> str:
    name = OTHER_SPELLINGS.get(name, name)
    if name not in ("gelu", "relu", "silu") or (gated and name not in GATED_ACTIVATION):
        raise ConfigError(
            f"hidden_act={name!r} cannot be read; supported are gelu (the exact one) and silu, and relu where nothing is gated"
        )
    return GATED_ACTIVATION[name] if gated else name


def _rotary(theirs: Any) -> dict[str, Any]:
    rope = theirs.rope_parameters
    if rope["rope_type"] != "default":
        raise ConfigError(
            f"rope_type={rope['rope_type']!r} (rope_parameters or rope_scaling) cannot be read; only the default rotary embedding can, "
            "without any scaling"
        )
    share = rope.get("partial_rotary_factor", 1.0)
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ConfigError(f"partial_rotary_factor={share!r} (or rotary_pct) is not a share from 0 to 1")
    return {"rotary_emb_base": rope["rope_theta"], "rotary_pct": share}


def _remote_model(theirs: MegaMeshConfig) -> dict[str, Any]:
    head_dim = _usual_head_dim(theirs)
    if theirs.position_embedding == "rotary" and (theirs.rotary_dim % 2 or not 0 <= theirs.rotary_dim <= head_dim):
        raise ConfigError(
            f"rotary_dim={theirs.rotary_dim} of {head_dim} dimensions of a head; ours turns pairs, at most all of them"
        )
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
    if theirs.position_embedding == "rotary" and theirs.rotary_dim < head_dim:
        keys["rotary_pct"] = (theirs.rotary_dim + 0.5) / head_dim
    return keys


def _remote_recursion(theirs: MegaMeshConfig) -> RecursionConfig:
    if not theirs.num_loops:
        return RecursionConfig()
    layout = RecursionLayout(
        theirs.num_prelude_layers, theirs.num_core_layers, theirs.num_loops, theirs.num_coda_layers, theirs.share_core
    )
    if is_own(theirs.recursion_scheme):
        raise ConfigError(
            f"recursion_scheme={theirs.recursion_scheme!r} is a class of its own, and code of an export is not run here; "
            "train on from the checkpoint that was exported"
        )
    keys: dict[str, Any] = {"recursion": str(layout), "recursion_scheme": theirs.recursion_scheme}
    keys |= {key: getattr(theirs, key) for key in scheme_class(theirs.recursion_scheme).keys}
    return RecursionConfig(**keys)
