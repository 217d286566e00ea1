"""Our parameters and those of a transformers model, side by side, with what happens to a tensor on the way.

    ours                              gpt_neox                           llama                    megamesh (our remote code)
    embedding.weight                  gpt_neox.embed_in.weight           model.embed_tokens.…     model.embed_in.weight
    prelude.{i}.attention.qkv.…       ….attention.query_key_value.…      q_proj, k_proj, v_proj   q_proj, k_proj, v_proj
    prelude.{i}.mlp.up.… (gated)                                         gate_proj, up_proj       gate_proj, up_proj
    head.weight                       embed_out.weight                   lm_head.weight           lm_head.weight

One parameter of ours is one or several tensors of theirs, never the other way round, so that either side is read and written
tensor by tensor. `join` undoes `split` bit for bit, except where √D is folded into the embedding (see `names_table`).

Letters: D hidden size, H query heads, G key/value heads, d head dimension.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megamesh.config.keys import ModelConfig, RecursionConfig
from megamesh.config.recursion import RecursionLayout
from megamesh.errors import CheckpointError
from megamesh.model.recursion.scheme import describe

Architecture = Literal["gpt_neox", "llama", "megamesh"]
QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = ("gate_proj", "up_proj")
IN_MEMORY_NAMES = {"embed_out.weight": "lm_head.weight"}
"""gpt_neox's head has one name on disk and another in transformers' modules."""


@dataclass(frozen=True)
class Transform:
    """A parameter of ours → their tensors, and back."""

    split: Callable[[Tensor], tuple[Tensor, ...]]
    join: Callable[[Sequence[Tensor]], Tensor]
    factor: float = 1.0  # by which every value is multiplied; beside it, values only move


@dataclass(frozen=True)
class Entry:
    """One parameter of ours and the tensors of theirs that hold it."""

    name: str
    theirs: tuple[str, ...]
    transform: Transform


def _split_qkv(grouped: Tensor, kv_heads: int, head_dim: int) -> tuple[Tensor, ...]:
    """Rows grouped by key/value head [G · (q…q k v) · d, …] → q [H·d, …], k [G·d, …], v [G·d, …]."""
    rest = grouped.shape[1:]
    parts = grouped.view(kv_heads, -1, head_dim, *rest)
    return tuple(p.reshape(-1, *rest).contiguous() for p in (parts[:, :-2], parts[:, -2], parts[:, -1]))


def _join_qkv(parts: Sequence[Tensor], kv_heads: int, head_dim: int) -> Tensor:
    rest = parts[0].shape[1:]
    return torch.cat([p.reshape(kv_heads, -1, head_dim, *rest) for p in parts], dim=1).reshape(-1, *rest)


SAME = Transform(lambda tensor: (tensor,), lambda parts: parts[0])
GATED = Transform(lambda tensor: tuple(t.contiguous() for t in tensor.chunk(2)), lambda parts: torch.cat(list(parts)))


def _qkv(model: ModelConfig) -> Transform:
    heads = model.kv_heads, model.head_dim
    return Transform(lambda tensor: _split_qkv(tensor, *heads), lambda parts: _join_qkv(parts, *heads))


def _scaled(factor: float) -> Transform:
    return Transform(lambda tensor: (tensor * factor,), lambda parts: parts[0] / factor, factor)


def exact_architecture(model: ModelConfig, recursion: RecursionConfig) -> Architecture:
    """The stock architecture that computes exactly this model; our remote code where there is none.

    √D on the embeddings is no obstacle with a head of its own: it is folded into the embedding's weight.
    """
    foldable = not model.scale_embeddings or model.no_weight_tying
    if recursion.layout is not None or not foldable or model.pos_emb != "rotary" or model.use_qk_layernorm:
        return "megamesh"
    # As transformers computes it; an odd number means another rotation there.
    rotated = int(model.head_dim * model.rotary_pct)
    is_gpt_neox = (
        model.norm == "layernorm"
        and model.use_bias_in_norms
        and model.use_bias_in_mlp
        and not model.gated
        and not model.gpt_j_tied
        and model.kv_heads == model.num_attention_heads
        and rotated == model.rotary_dim
    )
    is_llama = (
        model.norm == "rmsnorm"
        and model.gated
        and not model.gpt_j_residual
        and not model.hidden_dropout
        and model.rotary_dim == model.head_dim
    )
    return "gpt_neox" if is_gpt_neox else "llama" if is_llama else "megamesh"


_NAMES: dict[Architecture, dict[str, str]] = {
    "gpt_neox": {
        "embedding": "gpt_neox.embed_in",
        "prelude": "gpt_neox.layers",
        "final_norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "attention": "attention",
        "qkv": "query_key_value",
        "out": "dense",
        "up": "dense_h_to_4h",
        "down": "dense_4h_to_h",
    },
    "llama": {
        "embedding": "model.embed_tokens",
        "prelude": "model.layers",
        "final_norm": "model.norm",
        "head": "lm_head",
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "attention": "self_attn",
        "out": "o_proj",
        "up": "up_proj",
        "down": "down_proj",
    },
    "megamesh": {
        "embedding": "model.embed_in",
        "position_embedding": "model.embed_positions",
        "prelude": "model.prelude",
        "core": "model.core",
        "coda": "model.coda",
        "routers": "model.routers",
        "final_norm": "model.final_norm",
        "head": "lm_head",
        "attention_norm": "attention_norm",
        "mlp_norm": "mlp_norm",
        "attention": "self_attn",
        "out": "o_proj",
        "up": "up_proj",
        "down": "down_proj",
    },
}


def names_table(architecture: Architecture, model: ModelConfig, recursion: RecursionConfig) -> dict[str, Entry]:
    """Every parameter of the model in forward order, keyed by our name.

    gpt_neox and llama know no √D on embeddings, so it is multiplied into the exported embedding; back, it is divided out again,
    which is exact only where √D is a power of two.
    """
    layout = recursion.layout or RecursionLayout(model.num_layers, 0, 0, 0, shared=True)
    names, found = _NAMES[architecture], {}

    def add(ours: str, theirs: Sequence[str], kinds: Sequence[str], transform: Transform = SAME) -> None:
        for kind in kinds:
            found[f"{ours}.{kind}"] = Entry(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs), transform)

    fold = model.scale_embeddings and architecture != "megamesh"
    add("embedding", [names["embedding"]], ["weight"], _scaled(math.sqrt(model.hidden_size)) if fold else SAME)
    if model.pos_emb == "learned":
        add("position_embedding", [names["position_embedding"]], ["weight"])
    stacks = {"prelude": layout.num_prelude, "core": layout.num_core_weights, "coda": layout.num_coda}
    for stack, length in stacks.items():
        for i in range(length):
            _add_block(add, f"{stack}.{i}", f"{names[stack]}.{i}", names, model)
    for ours, exported in _router_parameters(model, recursion):
        found[ours] = Entry(ours, (f"{names['routers']}.{exported}",), SAME)
    add("final_norm", [names["final_norm"]], _norm_kinds(model))
    if model.no_weight_tying:
        add("head", [names["head"]], ["weight"])
    return found


def _add_block(add: Callable[..., None], ours: str, theirs: str, names: Mapping[str, str], model: ModelConfig) -> None:
    attention_kinds = ["weight", "bias"] if model.use_bias_in_attn_linear else ["weight"]
    mlp_kinds = ["weight", "bias"] if model.use_bias_in_mlp else ["weight"]
    attention = f"{theirs}.{names['attention']}"
    add(f"{ours}.attention_norm", [f"{theirs}.{names['attention_norm']}"], _norm_kinds(model))
    if "qkv" in names:
        add(f"{ours}.attention.qkv", [f"{attention}.{names['qkv']}"], attention_kinds)
    else:
        add(f"{ours}.attention.qkv", [f"{attention}.{part}" for part in QKV], attention_kinds, _qkv(model))
    for norm in ("q_norm", "k_norm") if model.use_qk_layernorm else ():
        add(f"{ours}.attention.{norm}", [f"{attention}.{norm}"], _norm_kinds(model))
    add(f"{ours}.attention.out", [f"{attention}.{names['out']}"], attention_kinds)
    if not (model.gpt_j_residual and model.gpt_j_tied):
        add(f"{ours}.mlp_norm", [f"{theirs}.{names['mlp_norm']}"], _norm_kinds(model))
    if model.gated:
        add(f"{ours}.mlp.up", [f"{theirs}.mlp.{part}" for part in GATE_UP], mlp_kinds, GATED)
    else:
        add(f"{ours}.mlp.up", [f"{theirs}.mlp.{names['up']}"], mlp_kinds)
    add(f"{ours}.mlp.down", [f"{theirs}.mlp.{names['down']}"], mlp_kinds)


def _norm_kinds(model: ModelConfig) -> list[str]:
    return ["weight", "bias"] if model.norm == "layernorm" and model.use_bias_in_norms else ["weight"]


def _router_parameters(model: ModelConfig, recursion: RecursionConfig) -> Iterator[tuple[str, str]]:
    """What the scheme learns: our name, and the name in the modules of its remote code."""
    if recursion.layout is None:
        return
    scheme = describe(recursion)
    for learned in scheme.learned(model.hidden_size):
        yield f"routers.{learned.name}", scheme.exported_name(learned.name)


def export_tensors(
    table: Mapping[str, Entry], weights: Iterator[tuple[str, Tensor]], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Our (name, tensor) stream as theirs, in `dtype`, no more than one parameter at a time.

    CheckpointError for a name that the model lacks, twice has, or never gets, and for a value that is not finite in `dtype`.
    """
    missing = dict.fromkeys(table)
    for name, tensor in weights:
        if name not in missing:
            problem = "twice" if name in table else "but its configuration describes no such parameter"
            raise CheckpointError(f"the checkpoint holds {name} {problem}; it is damaged or of another architecture")
        del missing[name]
        yield from _converted(table[name], tensor, dtype)
        del tensor  # before the source makes the next one
    if missing:
        raise CheckpointError(
            f"the checkpoint lacks {len(missing)} of {len(table)} parameters, the first of them {next(iter(missing))}; "
            "it is damaged or of another architecture"
        )


def _converted(entry: Entry, tensor: Tensor, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    _check_range(entry.name, tensor, entry.transform.factor, dtype)
    for theirs, part in zip(entry.theirs, entry.transform.split(tensor), strict=True):
        yield theirs, part.to(dtype)


def _check_range(name: str, tensor: Tensor, factor: float, dtype: torch.dtype) -> None:
    """Raise CheckpointError for a value that is not finite, or would not be in `dtype`."""
    for extreme in torch.aminmax(tensor):
        if not extreme.isfinite():
            raise CheckpointError(f"{name} is not finite: it holds {extreme.item()}; export an earlier checkpoint")
        if not (extreme * factor).to(dtype).isfinite():
            raise CheckpointError(
                f"{name} holds {extreme.item() * factor:g}, beyond the {torch.finfo(dtype).max:g} of "
                f"{str(dtype).removeprefix('torch.')}; export as float32, or as bfloat16"
            )


def their_shapes(table: Mapping[str, Entry], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of their tensors by name, in the table's order, from those of our parameters."""
    found: dict[str, tuple[int, ...]] = {}
    for name, entry in table.items():
        parts = entry.transform.split(torch.empty(shapes[name], device="meta"))
        found |= {theirs: tuple(part.shape) for theirs, part in zip(entry.theirs, parts, strict=True)}
    return found


def import_tensors(table: Mapping[str, Entry], read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our parameters one by one, in fp32, from their tensors. `read` gives one of their tensors, or raises KeyError."""
    for name, entry in table.items():
        try:
            parts = [read(theirs) for theirs in entry.theirs]
        except KeyError as error:
            raise CheckpointError(
                f"{name} needs {error.args[0]}, which is not there; the files are of another architecture"
            ) from error
        yield name, entry.transform.join([part.float() for part in parts])


def reader_of(state: Mapping[str, Tensor]) -> Callable[[str], Tensor]:
    """`read` for `import_tensors` over a state dict, whose names may be those on disk or those in transformers' modules."""

    def read(name: str) -> Tensor:
        return state[name] if name in state else state[IN_MEMORY_NAMES.get(name, name)]

    return read


def as_exported(entry: Entry, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Our tensor in fp32 with the rounding that its export in `dtype` undergoes.

    It does not go through `split`, so that a model with these weights shows what `split` does wrong.
    """
    factor = entry.transform.factor
    if factor == 1:
        return tensor.to(dtype).float()
    return (tensor * factor).to(dtype).float() / factor
