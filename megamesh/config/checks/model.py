"""Rules of the model: shapes that fit, attention that exists, recursion that adds up."""

import math
from collections.abc import Iterator
from typing import Any

from megamesh.config.keys import ModelConfig, RecursionConfig
from megamesh.config.recursion import parse_recursion
from megamesh.config.rule import Given, Rule, divisors, either, rule
from megamesh.config.schemes import describe, parse_scheme
from megamesh.errors import ConfigError

DENSE_ATTENTION = ("flash", "global")
NEEDS_RECURSION = tuple(key for key in RecursionConfig.model_fields if key != "recursion")


@rule("hidden_size", "num_attention_heads")
def heads_divide_hidden_size(given: Given) -> Iterator[str]:
    model = given.run.model
    if model.hidden_size % model.num_attention_heads:
        fitting = either(divisors(model.hidden_size))
        yield f"{given.show('num_attention_heads')} does not divide {given.show('hidden_size')}; use {fitting}"


@rule("num_attention_heads", "num_kv_heads")
def kv_heads_divide_heads(given: Given) -> Iterator[str]:
    model = given.run.model
    if model.num_attention_heads % model.kv_heads:
        fitting = either(divisors(model.num_attention_heads))
        yield f"{given.show('num_kv_heads')} does not divide {given.show('num_attention_heads')}; use {fitting}"


@rule("pos_emb", "rotary_pct", "hidden_size", "num_attention_heads")
def rotary_turns_something(given: Given) -> Iterator[str]:
    model = given.run.model
    if model.pos_emb == "rotary" and model.rotary_dim < 2:
        least = f"at least {_least_rotary_pct(model):g}, or " if model.head_dim > 1 else ""
        yield (
            f"{given.show('rotary_pct')} of head dimension {model.head_dim} rotates no pair of dimensions; "
            f"use {least}pos_emb: none"
        )


def _least_rotary_pct(model: ModelConfig) -> float:
    """The smallest share that turns a pair of dimensions, in as few digits as it takes; the head has at least two dimensions."""
    exact = 2 / model.head_dim
    rounded = (math.ceil(exact * 10**digits) / 10**digits for digits in range(3, 7))
    return next((share for share in (float(f"{exact:.6g}"), *rounded) if _turns(model, share)), 1.0)


def _turns(model: ModelConfig, rotary_pct: float) -> bool:
    return model.model_copy(update={"rotary_pct": rotary_pct}).rotary_dim >= 2


@rule("seq_length", "max_position_embeddings")
def positions_cover_sequence(given: Given) -> Iterator[str]:
    """With any position embedding, as in GPT-NeoX: what the model takes is not less than what it was trained on."""
    model = given.run.model
    if model.sequence_length > model.max_position_embeddings:
        yield (
            f"{given.show('seq_length')} is longer than the sequences that the model takes, {given.show('max_position_embeddings')}; "
            f"use max_position_embeddings: {model.sequence_length}, or a shorter seq_length"
        )


@rule("attention_config", "num_layers")
def attention_is_dense(given: Given) -> Iterator[str]:
    value, num_layers = given.run.model.attention_config, given.run.model.num_layers
    if value is None:
        return
    mend = f'write [[["flash"], {num_layers}]] or remove it'
    is_expanded = all(isinstance(entry, str) for entry in value)  # NeoX's other form: one name per layer
    entries: list[Any] = [[value, 1]] if is_expanded else value
    if not all(map(_is_attention_group, entries)):
        yield f'{given.show("attention_config")} is not a list of [["flash", …], count]; {mend}'
        return
    unknown = sorted({kind for kinds, _ in entries for kind in kinds} - set(DENSE_ATTENTION))
    if unknown:
        yield f"{given.show('attention_config')}: {', '.join(unknown)} attention is not supported; {mend}"
    covered = sum(num_layers if count == "all" else len(kinds) * count for kinds, count in entries)
    if covered != num_layers:
        yield f"{given.show('attention_config')} covers {covered} layers, not {given.show('num_layers')}; {mend}"


def _is_attention_group(entry: Any) -> bool:
    """Whether an entry is NeoX's [[kind, …], count], with a count of 1 or more, or "all"."""
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], list) or not entry[0]:
        return False
    kinds, count = entry
    return all(isinstance(kind, str) for kind in kinds) and (count == "all" or (type(count) is int and count > 0))


@rule("gpt_j_tied", "gpt_j_residual")
def tied_norm_needs_parallel_residual(given: Given) -> Iterator[str]:
    if given.run.model.gpt_j_tied and not given.run.model.gpt_j_residual:
        yield f"{given.show('gpt_j_tied')} needs a norm that attention and MLP can share; add gpt_j_residual: true or remove it"


@rule("activation", "intermediate_size", "mlp_multiple_of", "hidden_size")
def mlp_width_is_said_once(given: Given) -> Iterator[str]:
    """NeoX's Llama files give both, and mean by the intermediate_size of a gated MLP three times the width that they build."""
    model = given.run.model
    if model.intermediate_size is None or not given.has("mlp_multiple_of"):
        return
    width = model.intermediate_size // 3 if model.gated else model.intermediate_size
    neox = -(-width // model.mlp_multiple_of) * model.mlp_multiple_of
    if neox != model.intermediate_size:
        yield (
            f"{given.show('intermediate_size')} and {given.show('mlp_multiple_of')} both say how wide the MLP is: intermediate_size "
            f"is its true width here, while GPT-NeoX would build {neox} from these two; keep one, such as "
            f"intermediate_size: {neox or model.intermediate_size} without mlp_multiple_of"
        )


@rule("recursion", "num_layers")
def recursion_adds_up(given: Given) -> Iterator[str]:
    notation = given.run.recursion.recursion
    if notation is None:
        return
    try:
        layout = parse_recursion(notation)
    except ConfigError as error:
        yield f"{given.places['recursion']}: {error}"
        return
    if layout.compute_depth != given.run.model.num_layers:
        yield (
            f"{given.show('recursion')} computes {layout.compute_depth} layers, but {given.show('num_layers')}; "
            f"num_layers counts every pass of the core: write num_layers: {layout.compute_depth}"
        )


@rule("recursion_scheme")
def scheme_exists(given: Given) -> Iterator[str]:
    try:
        parse_scheme(given.run.recursion.recursion_scheme)
    except ConfigError as error:
        yield f"{given.places['recursion_scheme']}: {error}"


@rule("recursion", *NEEDS_RECURSION)
def scheme_needs_recursion(given: Given) -> Iterator[str]:
    if given.run.recursion.recursion is not None:
        return
    for key in NEEDS_RECURSION:
        if given.has(key):
            yield f"{given.show(key)} has no effect without recursion; add recursion, such as 4+8R2+4, or remove it"


@rule("recursion", *NEEDS_RECURSION)
def scheme_is_configured(given: Given) -> Iterator[str]:
    """What the scheme itself says of its keys."""
    recursion = given.run.recursion
    if recursion.recursion is None:
        return
    try:
        parse_recursion(recursion.recursion)
        parse_scheme(recursion.recursion_scheme)
    except ConfigError:
        return
    try:
        yield from describe(recursion).problems(given.show)
    except ConfigError as error:
        for problem in error.problems:
            key = problem.partition("=")[0].partition(":")[0]
            yield f"{given.places.get(key, 'default')}: {problem}"


MODEL_RULES: tuple[Rule, ...] = (
    heads_divide_hidden_size,
    kv_heads_divide_heads,
    rotary_turns_something,
    positions_cover_sequence,
    attention_is_dense,
    tied_norm_needs_parallel_residual,
    mlp_width_is_said_once,
    recursion_adds_up,
    scheme_exists,
    scheme_needs_recursion,
    scheme_is_configured,
)
