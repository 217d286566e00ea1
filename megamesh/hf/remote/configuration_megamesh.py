"""Configuration of an exported MegaMesh model. This file travels with the export and needs only transformers."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

SCHEMES = ("base", "static", "dynamic", "mesh")
SUM_TERMS = ("residual", "anchor", "anchor*")


def _tensor_parallel_plan() -> dict[str, str]:
    """Which linears may be cut over columns and which over rows, for every stack of blocks."""
    columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    leaves = dict.fromkeys(columns, "colwise") | {"self_attn.o_proj": "rowwise", "mlp.down_proj": "rowwise"}
    return {f"{stack}.*.{leaf}": plan for stack in ("prelude", "core", "coda") for leaf, plan in leaves.items()}


@strict
class MegaMeshConfig(PreTrainedConfig):
    """A decoder-only transformer whose middle layers may recur, with MeSH state highways (arXiv 2510.07739).

    `num_hidden_layers` is the compute depth, which is also the number of entries of a KV cache:
    num_prelude_layers + num_core_layers · num_loops + num_coda_layers. A plain stack has only prelude layers.
    `trained_sequence_length` is the length of the training samples, at most max_position_embeddings.
    `vocab_size` counts the rows of embedding and head, none of them padding; the tokenizer may know fewer ids.
    """

    model_type = "megamesh"
    keys_to_ignore_at_inference = ("past_key_values",)
    base_model_tp_plan = _tensor_parallel_plan()

    vocab_size: int = 50304
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int = 12
    head_dim: int = 64
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    gated_mlp: bool = False
    max_position_embeddings: int = 2048
    trained_sequence_length: int | None = None
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    qk_norm: bool = False
    residual: str = "sequential"
    position_embedding: str = "rotary"
    rotary_dim: int = 64
    rope_theta: float = 10000.0
    attention_bias: bool = True
    mlp_bias: bool = True
    scale_embeddings: bool = False
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    num_prelude_layers: int = 12
    num_core_layers: int = 0
    num_loops: int = 0
    num_coda_layers: int = 0
    share_core: bool = True
    recursion_scheme: str = "base"
    mesh_num_slots: int | None = None
    mesh_transition_input: str = "h_emb"
    mesh_router_init: str = "normal"
    mesh_router_slot_bias: float = 4.0

    def validate_architecture(self) -> None:
        """Refuse values that describe no model, or one that this code would compute differently."""
        depth = self.num_prelude_layers + self.num_core_layers * self.num_loops + self.num_coda_layers
        if depth != self.num_hidden_layers:
            raise ValueError(
                f"num_hidden_layers={self.num_hidden_layers}, but prelude + core × loops + coda is {depth}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not divisible by num_key_value_heads={self.num_key_value_heads}"
            )
        choices = {
            "hidden_act": ("gelu", "relu", "silu"),
            "norm": ("layernorm", "rmsnorm"),
            "residual": ("sequential", "parallel", "parallel_tied"),
            "position_embedding": ("rotary", "learned", "none"),
            "mesh_transition_input": ("h_emb", "prelude"),
            "mesh_router_init": ("normal", "zero", "slot"),
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key}={getattr(self, key)!r} is not one of {', '.join(allowed)}")
        if not self.has_own_scheme and self.recursion_scheme not in SCHEMES and set(self.scheme_terms) - set(SUM_TERMS):
            raise ValueError(f"recursion_scheme={self.recursion_scheme!r} is not a scheme of this model")
        if self.recursion_scheme == "mesh" and self.num_loops and not self.mesh_num_slots:
            raise ValueError("recursion_scheme='mesh' needs mesh_num_slots")
        if self.mesh_router_init == "slot" and (self.mesh_num_slots or self.num_loops + 2) < self.num_loops + 2:
            raise ValueError(
                f"mesh_router_init='slot' needs {self.num_loops + 2} slots, mesh_num_slots={self.mesh_num_slots}"
            )

    @property
    def has_own_scheme(self) -> bool:
        """Whether the scheme is a class of its own (module:Class), which the recursion_megamesh.py of this export computes.

        Its settings are a further key, recursion_scheme_params.
        """
        return ":" in self.recursion_scheme

    @property
    def scheme_terms(self) -> list[str]:
        """What a sum scheme adds to the core's output; `base` adds nothing."""
        return [term for term in self.recursion_scheme.split("+") if term != "base"]


__all__ = ["MegaMeshConfig"]
