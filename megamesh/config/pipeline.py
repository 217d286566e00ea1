"""How the layers of a model are named pass by pass, and the notation of a partition that a user writes down.

    recursion   passes of the ring                                pipe_partition_method, on two ranks
    4+8R2+4     prelude, core, core again, coda                   1,3+4,4+3,1      prelude+core+coda
    4+8+8+4     the same, with core layers of each loop's own     1,3+4,4+3,1
    none        pipe_num_passes parts of one stack                3,3+2,4          one part per pass

Every part lists the layers of each rank. A rank must hold a parameter: the first has the embedding, the last may have a head or routers,
and every other needs a layer in some part. There is such a placement exactly where there are as many layers as ranks that need one, and
every method and every suggestion finds one (`reach_every_rank`).
"""

import re
from collections.abc import Callable, Collection

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


def ranks_in_need(num_ranks: int, *, last_has_own: bool) -> range:
    """The ranks that hold a parameter only if they hold a layer. `last_has_own`: the last one has a head or routers."""
    return range(1, num_ranks - last_has_own)


def most_ranks(num_layers: int, *, last_has_own: bool) -> int:
    """The largest pipeline on which every rank can hold a parameter, of so many layers to place."""
    return num_layers + 1 + last_has_own


def layers_to_place(sizes: PartSizes, num_layers: int) -> int:
    """Layers over all parts; those of a core count once."""
    return num_layers if None in sizes else sum(size or 0 for size in sizes)


def parse_partition(
    parallel: ParallelConfig, sizes: PartSizes, num_layers: int, *, last_has_own: bool, shown: str | None = None
) -> Counts | str:
    """The method's name, or layers per part and rank; ConfigError, which calls the key `shown`, where it is neither or does not add up."""
    num_ranks, method = max(parallel.pipe_parallel_size, 1), parallel.pipe_partition_method.replace(" ", "")
    shown = shown or f"pipe_partition_method={parallel.pipe_partition_method}"
    if method in METHODS:
        return method
    if method == NEOX_UNIFORM:
        return "uniform"
    example = example_partition(sizes, num_layers, num_ranks, last_has_own=last_has_own)
    if not _COUNTS.fullmatch(method):
        known = f"{', '.join(METHODS)}, or layers per rank such as {example}"
        raise ConfigError(f"{shown} is not known; use {known if example else _fewer(sizes, num_layers, last_has_own)}")
    counts = tuple(tuple(map(int, part.split(","))) for part in method.split("+"))
    fits = len(counts) == len(sizes) and all(len(part) == num_ranks for part in counts)
    fits = fits and all(size is None or sum(part) == size for part, size in zip(counts, sizes, strict=True))
    if not fits or (None in sizes and sum(map(sum, counts)) != num_layers):
        mend = f"write it like {example}" if example else f"use {_fewer(sizes, num_layers, last_has_own)}"
        raise ConfigError(f"{shown} does not place every layer once on {num_ranks} ranks; {mend}")
    return counts


def even_counts(num_layers: int, num_parts: int) -> tuple[int, ...]:
    """Layers per part as equal as they can be, the larger parts first."""
    return tuple(num_layers // num_parts + (index < num_layers % num_parts) for index in range(num_parts))


def _fewer(sizes: PartSizes, num_layers: int, last_has_own: bool) -> str:
    """The mend where no placement gives every rank a parameter."""
    most = most_ranks(layers_to_place(sizes, num_layers), last_has_own=last_has_own)
    return f"pipe_parallel_size: {most} or less with pipe_partition_method: cost"


def example_partition(sizes: PartSizes, num_layers: int, num_ranks: int, *, last_has_own: bool) -> str | None:
    """A cut that places every layer and leaves no rank without a parameter, in the notation above; None where there is none.

    What cannot be even is so in turns, so that few layers reach many ranks.
    """
    in_need = ranks_in_need(num_ranks, last_has_own=last_has_own)
    if len(in_need) > layers_to_place(sizes, num_layers):
        return None
    if None in sizes:
        flat = even_counts(num_layers, len(sizes) * num_ranks)
        counts: Counts = tuple(flat[first : first + num_ranks] for first in range(0, len(flat), num_ranks))
    else:
        counts = tuple(even_counts(size or 0, num_ranks)[:: -1 if turn % 2 else 1] for turn, size in enumerate(sizes))
    counts = reach_every_rank(counts, in_need, lambda moved: max(map(sum, zip(*moved, strict=True))))
    return "+".join(",".join(map(str, part)) for part in counts)


def reach_every_rank(counts: Counts, in_need: Collection[int], cost: Callable[[Counts], float]) -> Counts:
    """Give every rank that needs a layer one, by moving single layers within their part, each time the one that leaves `cost` least.

    There must be as many layers as ranks in need: then while one has none, another rank can spare one.
    """
    for rank in in_need:
        held = [sum(part[place] for part in counts) for place in range(len(counts[0]))]
        if held[rank]:
            continue
        moves = [
            _moved(counts, part, donor, rank)
            for part in range(len(counts))
            for donor in range(len(held))
            if counts[part][donor] and held[donor] > (donor in in_need)
        ]
        counts = min(moves, key=cost)
    return counts


def _moved(counts: Counts, part: int, donor: int, rank: int) -> Counts:
    changed = list(counts[part])
    changed[donor] -= 1
    changed[rank] += 1
    return (*counts[:part], tuple(changed), *counts[part + 1 :])
