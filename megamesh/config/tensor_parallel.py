"""Which tensor-parallel sizes a model can be divided by, and the vocabulary over the ranks of one.

    heads, kv heads, MLP width                         whole ones on every rank: divisible by the size
    sequence length                                    divisible where the states, or the sources of a highway, are split by tokens
    vocabulary, padded to a multiple of m · size       at least one true token id on every rank

A rank without a token id would hold nothing but padding. The vocabulary is known at load only where vocab_size is given; otherwise
`padded_vocabulary` tells when the tokenizer has been asked.
"""

import math
from collections.abc import Callable, Iterable

from megamesh.config.keys import ModelConfig, RecursionConfig
from megamesh.config.rule import divisors, either
from megamesh.config.schemes import describe
from megamesh.config.sections import RunConfig
from megamesh.errors import ConfigError


def padded_vocabulary(run: RunConfig, vocab_size: int) -> int:
    """Rows of the embedding over all tensor ranks for `vocab_size` token ids; ConfigError where a rank would hold only padding."""
    if problem := vocabulary_problem(run, vocab_size, lambda key: f"{key}={_value(run, key)}"):
        raise ConfigError(problem)
    return run.model.padded_vocab_size(vocab_size, run.parallel.model_parallel_size)


def vocabulary_problem(run: RunConfig, vocab_size: int, show: Callable[[str], str]) -> str | None:
    """What is wrong with dividing the vocabulary, with its mend; `show` writes a key with its value."""
    model, size = run.model, run.parallel.model_parallel_size
    multiple = model.make_vocab_size_divisible_by
    if vocabulary_divides(vocab_size, multiple, size):
        return None
    whose = show("vocab_size") if model.vocab_size is not None else f"the tokenizer's vocabulary of {vocab_size}"
    smaller = [2**power for power in range(multiple.bit_length()) if vocabulary_divides(vocab_size, 2**power, size)]
    padding = f"make_vocab_size_divisible_by: {smaller[-1]} or " if smaller else ""
    return (
        f"{whose} is too small for {show('model_parallel_size')}: padded to {model.padded_vocab_size(vocab_size, size)}, a multiple of "
        f"{size} × {show('make_vocab_size_divisible_by')}, it leaves the last rank nothing but padding; "
        f"use {padding}{sizes_that_fit(run, vocab_size)}"
    )


def vocabulary_divides(vocab_size: int, multiple: int, size: int) -> bool:
    """Whether each of `size` ranks holds a token id, where the vocabulary is padded to a multiple of `multiple` on each."""
    rows_per_rank = -(-vocab_size // (multiple * size)) * multiple
    return vocab_size > (size - 1) * rows_per_rank


def splits_tokens(run: RunConfig) -> bool:
    """Whether tensor ranks divide the tokens of a micro-batch, so that the sequence length must be divisible."""
    return run.parallel.sequence_parallel or has_highway(run.recursion)


def has_highway(recursion: RecursionConfig) -> bool:
    """Whether the scheme keeps states of earlier loops for backward: once over the tensor ranks, each its part of the tokens."""
    try:
        return recursion.recursion is not None and describe(recursion).divides_tokens
    except ConfigError:
        return False


def sizes_that_fit(run: RunConfig, vocab_size: int | None) -> str:
    """`model_parallel_size: 1, 2 or 4`: the sizes with which nothing in this module is wrong."""
    sizes = fitting_sizes(run, vocab_size)
    return f"model_parallel_size: {either(sizes)}" if sizes else "model_parallel_size: 1 with sequence_parallel: false"


def fitting_sizes(run: RunConfig, vocab_size: int | None) -> list[int]:
    """Sizes that divide everything; without 1 where sequence_parallel asks for more than one rank."""
    counts = list(divided_parts(run.model).values())
    if splits_tokens(run):
        counts.append(run.model.sequence_length)
    smallest = 2 if run.parallel.sequence_parallel else 1
    sizes = dividing_sizes(counts, vocab_size, run.model.make_vocab_size_divisible_by)
    return [size for size in sizes if size >= smallest]


def divided_parts(model: ModelConfig) -> dict[str, int]:
    """Counts of what every rank holds whole ones of, by name."""
    return {
        "num_attention_heads": model.num_attention_heads,
        "num_kv_heads": model.kv_heads,
        "the MLP's width": model.mlp_width,
    }


def dividing_sizes(counts: Iterable[int], vocab_size: int | None, multiple: int) -> list[int]:
    """Numbers of ranks that divide every count, and the vocabulary, padded to `multiple` on each, where it is known."""
    sizes = divisors(math.gcd(*counts))
    return [size for size in sizes if vocab_size is None or vocabulary_divides(vocab_size, multiple, size)]


def _value(run: RunConfig, key: str) -> int | None:
    return getattr(run.parallel if key in type(run.parallel).model_fields else run.model, key)
