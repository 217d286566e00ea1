"""How the layers of a model are named pass by pass, and the notation of a partition that a user writes down.

    recursion   passes of the ring                                pipe_partition_method, on two ranks
    4+8R2+4     prelude, core, core again, coda                   1,3+4,4+3,1      prelude+core+coda
    4+8+8+4     the same, with core layers of each loop's own     1,3+4,4+3,1
    none        pipe_num_passes parts of one stack                3,3+2,4          one part per pass

Every part lists the layers of each rank.
"""

import re

from megamesh.config.keys import ParallelConfig
from megamesh.config.recursion import RecursionLayout
from megamesh.errors import ConfigError

METHODS = ("cost", "uniform", "parameters")
NEOX_UNIFORM = "type:transformer|mlp"
"""GPT-NeoX's default: every rank the same number of layers."""

_COUNTS = re.compile(r"\d+(,\d+)*(\+\d+(,\d+)*)*")

Counts = tuple[tuple[int, ...], ...]
"""Layers per part of the model and rank."""
PartSizes = tuple[int | None, ...]
"""Layers of each part that is cut over the ranks; None where the passes of a plain stack share them freely."""


def part_sizes(layout: RecursionLayout | None, num_passes: int | None) -> PartSizes:
    """The parts of a model: prelude, core and coda, or one per pass of a plain stack."""
    if layout is None:
        return (None,) * (num_passes or 1)
    return (layout.num_prelude, layout.num_core, layout.num_coda)


def parse_partition(
    parallel: ParallelConfig, sizes: PartSizes, num_layers: int, shown: str | None = None
) -> Counts | str:
    """The method's name, or layers per part and rank; ConfigError, which calls the key `shown`, where it is neither or does not add up."""
    num_ranks, method = max(parallel.pipe_parallel_size, 1), parallel.pipe_partition_method.replace(" ", "")
    shown = shown or f"pipe_partition_method={parallel.pipe_partition_method}"
    if method in METHODS:
        return method
    if method == NEOX_UNIFORM:
        return "uniform"
    example = example_partition(sizes, num_layers, num_ranks)
    if not _COUNTS.fullmatch(method):
        raise ConfigError(f"{shown} is not known; use {', '.join(METHODS)}, or layers per rank such as {example}")
    counts = tuple(tuple(map(int, part.split(","))) for part in method.split("+"))
    fits = len(counts) == len(sizes) and all(len(part) == num_ranks for part in counts)
    fits = fits and all(size is None or sum(part) == size for part, size in zip(counts, sizes, strict=True))
    if not fits or (None in sizes and sum(map(sum, counts)) != num_layers):
        raise ConfigError(f"{shown} does not place every layer once on {num_ranks} ranks; write it like {example}")
    return counts


def even_counts(num_layers: int, num_parts: int) -> tuple[int, ...]:
    """Layers per part as equal as they can be, the larger parts first."""
    return tuple(num_layers // num_parts + (index < num_layers % num_parts) for index in range(num_parts))


def example_partition(sizes: PartSizes, num_layers: int, num_ranks: int) -> str:
    """A cut that places every layer, in the notation above; what cannot be even is so in turns, so that few layers reach every rank."""
    if None in sizes:
        flat = even_counts(num_layers, len(sizes) * num_ranks)
        parts = [flat[first : first + num_ranks] for first in range(0, len(flat), num_ranks)]
    else:
        parts = [even_counts(size or 0, num_ranks)[:: -1 if turn % 2 else 1] for turn, size in enumerate(sizes)]
    return "+".join(",".join(map(str, part)) for part in parts)
