"""Parameters of a model, counted from its configuration alone.

    ModelConfig + RecursionConfig + padded vocabulary ──▶ {name: shape} ──▶ ParameterCounts per part

The names and shapes are those of `Transformer.named_parameters()`; a weight that two places share (a tied head, the core of a
recursive model) exists once. Counts are exact.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megamesh.config.keys import ModelConfig, RecursionConfig
from megamesh.config.recursion import RecursionLayout
from megamesh.model.recursion.scheme import describe

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ParameterCounts:
    """Number of parameters of each part."""

    embedding: int
    position_embedding: int
    prelude: int
    core: int
    coda: int
    routers: int
    final_norm: int
    head: int

    @property
    def total(self) -> int:
        return self.embedding + self.position_embedding + self.head + self.non_embedding

    @property
    def non_embedding(self) -> int:
        """All but the embedding, the position embedding and the head."""
        return self.prelude + self.core + self.coda + self.routers + self.final_norm


def count_parameters(model: ModelConfig, recursion: RecursionConfig, vocab_size: int) -> ParameterCounts:
    """Parameters per part; `vocab_size` is the padded one."""
    parts = dict.fromkeys(ParameterCounts.__dataclass_fields__, 0)
    for name, shape in parameter_shapes(model, recursion, vocab_size).items():
        parts[name.split(".", 1)[0]] += math.prod(shape)
    return ParameterCounts(**parts)


def parameter_shapes(model: ModelConfig, recursion: RecursionConfig, vocab_size: int) -> dict[str, Shape]:
    """Global name → shape of every parameter, in the model's order; `vocab_size` is the padded one."""
    layout = recursion.layout or RecursionLayout(model.num_layers, 0, 0, 0, shared=True)
    shapes: dict[str, Shape] = {"embedding.weight": (vocab_size, model.hidden_size)}
    if model.pos_emb == "learned":
        shapes["position_embedding.weight"] = (model.max_position_embeddings, model.hidden_size)
    stacks = {"prelude": layout.num_prelude, "core": layout.num_core_weights, "coda": layout.num_coda}
    for stack, num_blocks in stacks.items():
        for index in range(num_blocks):
            shapes |= {f"{stack}.{index}.{name}": shape for name, shape in _block(model)}
    if layout.num_loops:
        learned = describe(recursion).learned(model.hidden_size)
        shapes |= {f"routers.{parameter.name}": parameter.shape for parameter in learned}
    shapes |= dict(_norm("final_norm", model, model.hidden_size))
    if model.no_weight_tying:
        shapes["head.weight"] = (vocab_size, model.hidden_size)
    return shapes


def module_of(name: str) -> str:
    """The module that a parameter belongs to, as `Transformer.keep_only` names it: core.3 of core.3.mlp.up.weight, else the first part."""
    first, second, *_ = name.split(".")
    return f"{first}.{second}" if first in ("prelude", "core", "coda") else first


def _block(model: ModelConfig) -> Iterator[tuple[str, Shape]]:
    hidden, head_dim, width = model.hidden_size, model.head_dim, model.mlp_width
    heads = model.num_attention_heads
    yield from _norm("attention_norm", model, hidden)
    if not (model.gpt_j_residual and model.gpt_j_tied):
        yield from _norm("mlp_norm", model, hidden)
    yield from _linear("attention.qkv", hidden, (heads + 2 * model.kv_heads) * head_dim, model.use_bias_in_attn_linear)
    yield from _linear("attention.out", heads * head_dim, hidden, model.use_bias_in_attn_linear)
    if model.use_qk_layernorm:
        yield from _norm("attention.q_norm", model, head_dim)
        yield from _norm("attention.k_norm", model, head_dim)
    yield from _linear("mlp.up", hidden, 2 * width if model.gated else width, model.use_bias_in_mlp)
    yield from _linear("mlp.down", width, hidden, model.use_bias_in_mlp)


def _linear(name: str, inputs: int, outputs: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(name: str, model: ModelConfig, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    if model.norm == "layernorm" and model.use_bias_in_norms:
        yield f"{name}.bias", (width,)
