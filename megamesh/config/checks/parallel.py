"""Rules of tensor, sequence and pipeline parallelism: what is divided over the ranks must divide.

Every mend lists the tensor-parallel sizes with which all of these rules hold at once, so that following one does not lead to the next.
"""

import math
from collections.abc import Iterator

from megamesh.config.pipeline import parse_partition, part_sizes
from megamesh.config.rule import Given, Rule, rule
from megamesh.config.tensor_parallel import fitting_sizes, has_highway, sizes_that_fit, vocabulary_problem
from megamesh.errors import ConfigError

PARALLEL = ("model_parallel_size", "sequence_parallel")
HEADS = ("num_attention_heads", "num_kv_heads")
WIDTH = ("hidden_size", "activation", "intermediate_size", "mlp_multiple_of")
LENGTH = ("seq_length", "max_position_embeddings", "recursion", "recursion_scheme")
VOCABULARY = ("vocab_size", "make_vocab_size_divisible_by")
DIVIDED = (*PARALLEL, *HEADS, *WIDTH, *LENGTH, *VOCABULARY)


@rule("pipe_parallel_size", "zero_optimization")
def pipeline_divides_no_gradients(given: Given) -> Iterator[str]:
    """A rank's gradients are added up over all its passes and micro-batches; ZeRO 2 and 3 would send them off after each."""
    if given.run.parallel.pipe_parallel_size > 1 and given.run.optimizer.zero_stage > 1:
        yield (
            f"{given.show('zero_optimization')} cannot be combined with {given.show('pipe_parallel_size')}: gradients are reduced once per "
            "step there; use stage: 0 or 1, or pipe_parallel_size: 1"
        )


@rule("pipe_num_passes", "recursion")
def passes_follow_from_recursion(given: Given) -> Iterator[str]:
    if given.has("pipe_num_passes") and given.has("recursion"):
        yield (
            f"{given.show('pipe_num_passes')}: with {given.show('recursion')} a micro-batch goes round once for the prelude, each loop "
            "and the coda; remove pipe_num_passes"
        )


@rule(
    "pipe_parallel_size",
    "pipe_partition_method",
    "pipe_num_passes",
    "num_layers",
    "recursion",
    "recursion_scheme",
    "no_weight_tying",
)
def partition_places_every_layer(given: Given) -> Iterator[str]:
    parallel, model = given.run.parallel, given.run.model
    try:
        layout = given.run.recursion.layout
    except ConfigError:  # told by the rules of the recursion
        return
    sizes = part_sizes(layout, parallel.pipe_num_passes)
    try:
        last_has_own = model.no_weight_tying or has_highway(given.run.recursion)
        shown = given.show("pipe_partition_method")
        parse_partition(parallel, sizes, model.num_layers, last_has_own=last_has_own, shown=shown)
    except ConfigError as error:
        yield str(error)


@rule(*DIVIDED)
def heads_divide_over_ranks(given: Given) -> Iterator[str]:
    model, size = given.run.model, given.run.parallel.model_parallel_size
    indivisible = f"is not divisible by {given.show('model_parallel_size')}"
    if model.num_attention_heads % size:
        yield f"{given.show('num_attention_heads')} {indivisible}; use {_sizes(given)}"
    elif model.kv_heads % size:
        yield (
            f"{given.show('num_kv_heads')} {indivisible}, and no two ranks can share a key/value head; use {_sizes(given)}"
        )


@rule(*DIVIDED)
def mlp_divides_over_ranks(given: Given) -> Iterator[str]:
    model, size = given.run.model, given.run.parallel.model_parallel_size
    if model.mlp_width % size == 0:
        return
    multiple = math.lcm(model.mlp_multiple_of, size)
    if model.intermediate_size is not None:
        whose = given.show("intermediate_size")
        mend = f"intermediate_size: {-(-model.intermediate_size // multiple) * multiple}"
    else:
        whose = f"the MLP's default width {model.mlp_width} for {given.show('hidden_size')}"
        mend = f"mlp_multiple_of: {multiple}"
    yield f"{whose} is not divisible by {given.show('model_parallel_size')}; use {mend} or {_sizes(given)}"


@rule(*DIVIDED)
def sequence_divides_over_ranks(given: Given) -> Iterator[str]:
    run, size = given.run, given.run.parallel.model_parallel_size
    length = run.model.sequence_length
    if length % size == 0:
        return
    if run.parallel.sequence_parallel:
        reason = f"{given.show('sequence_parallel')} splits the tokens over the ranks"
    elif has_highway(run.recursion):
        reason = f"{given.show('recursion_scheme')} splits its highway over the ranks, by tokens"
    else:
        return
    key = "seq_length" if given.has("seq_length") else "max_position_embeddings"
    shorter = f"seq_length: {length // size * size} or " if length > size else ""
    yield (
        f"{given.show(key)} is not divisible by {given.show('model_parallel_size')}, while {reason}; use {shorter}{_sizes(given)}"
    )


@rule(*DIVIDED)
def sequence_parallel_has_ranks(given: Given) -> Iterator[str]:
    run = given.run
    if run.parallel.model_parallel_size > 1 or not run.parallel.sequence_parallel:
        return
    sizes = f" or {sizes_that_fit(run, run.model.vocab_size)}" if fitting_sizes(run, run.model.vocab_size) else ""
    yield (
        f"{given.show('sequence_parallel')} needs more than one tensor-parallel rank, and {given.show('model_parallel_size')}; "
        f"use sequence_parallel: false{sizes}"
    )


@rule(*DIVIDED)
def vocabulary_divides_over_ranks(given: Given) -> Iterator[str]:
    """Where vocab_size is not given, training and the dry run find out when they ask the tokenizer."""
    vocab_size = given.run.model.vocab_size
    if vocab_size is not None and (problem := vocabulary_problem(given.run, vocab_size, given.show)):
        yield problem


def _sizes(given: Given) -> str:
    return sizes_that_fit(given.run, given.run.model.vocab_size)


PARALLEL_RULES: tuple[Rule, ...] = (
    pipeline_divides_no_gradients,
    passes_follow_from_recursion,
    partition_places_every_layer,
    heads_divide_over_ranks,
    mlp_divides_over_ranks,
    sequence_divides_over_ranks,
    sequence_parallel_has_ranks,
    vocabulary_divides_over_ranks,
)
