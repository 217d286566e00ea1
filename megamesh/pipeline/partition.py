"""How many layers each pipeline rank holds.

    cost         every pass balanced by itself, the head counted as one and a half times the layers that its FLOPs make
    uniform      numbers of layers, every pass by itself
    parameters   every rank's weights, embedding and head included
    1,3+4,4+3,1  as written

Where that would leave a rank without a parameter, the first three move layers to it as long as there are any to spare.

`cost` evens out passes, not each rank's total over all passes: ranks wait for each other within a pass, and what a rank saves in one pass
does not make up for what it is late in another. Costs are FLOPs per token: an estimate of time, which small matrices and real devices do
not follow to the letter.
"""

from collections.abc import Sequence
from dataclasses import replace

from megamesh.config.keys import ModelConfig, ParallelConfig, RecursionConfig
from megamesh.config.pipeline import (
    METHODS,
    NEOX_UNIFORM,
    Counts,
    PartSizes,
    even_counts,
    example_partition,
    layers_to_place,
    most_ranks,
    parse_partition,
    part_sizes,
    ranks_in_need,
    reach_every_rank,
)
from megamesh.config.recursion import RecursionLayout
from megamesh.errors import ConfigError
from megamesh.model.counts import count_parameters, module_of, parameter_shapes
from megamesh.model.flops import flops_per_token
from megamesh.model.recursion.scheme import describe
from megamesh.pipeline.stages import Costs, Partition, lay_out

HEAD_WEIGHT = 1.5
"""The head counts for more than its FLOPs: it finds its gradients in forward already, and is three times as long as it looks there."""


def build_partition(
    model: ModelConfig, recursion: RecursionConfig, parallel: ParallelConfig, vocab_size: int
) -> Partition:
    """Cut the model over the pipeline ranks as `pipe_partition_method` says; padded `vocab_size`.

    Raises ConfigError where numbers of layers are given that do not fit the model, or a rank would hold no parameter.
    """
    layout, num_ranks = recursion.layout, max(parallel.pipe_parallel_size, 1)
    sizes, tied = part_sizes(layout, parallel.pipe_num_passes), not model.no_weight_tying
    modules = set(map(module_of, parameter_shapes(model, recursion, vocab_size)))
    last_has_own = not tied or "routers" in modules
    method = parse_partition(parallel, sizes, model.num_layers, last_has_own=last_has_own)
    carries = layout is not None and describe(recursion).reads_embeddings

    def stages(counts: Counts) -> Partition:
        return lay_out(layout, counts, num_ranks, tied=tied, carries=carries)

    in_need = ranks_in_need(num_ranks, last_has_own=last_has_own)
    fits = len(in_need) <= layers_to_place(sizes, model.num_layers)
    if isinstance(method, str):
        slots = _Slots(layout, sizes, model.num_layers, num_ranks, tied=tied)
        counts, costs = _balanced(method, slots, model, recursion, vocab_size)
        partition = stages(
            reach_every_rank(counts, in_need, lambda moved: _slowest(stages(moved), costs)) if fits else counts
        )
    else:
        partition = stages(method)
    empty = _empty_ranks(partition, modules)
    if empty:
        mend = _mend(parallel, sizes, model.num_layers, last_has_own=last_has_own)
        raise ConfigError(
            f"pipe_parallel_size={parallel.pipe_parallel_size} with pipe_partition_method={parallel.pipe_partition_method} leaves "
            f"pipeline rank {empty[0]} without a parameter; {mend}"
        )
    return partition


def _balanced(
    method: str, slots: "_Slots", model: ModelConfig, recursion: RecursionConfig, vocab_size: int
) -> tuple[Counts, Costs]:
    """Layers per part and rank as a method evens them out, and the costs that it goes by."""
    if method == "parameters":
        costs = _parameters(model, recursion, vocab_size)
        return slots.balanced_ranks(costs), costs
    costs = Costs(1.0, 0.0) if method == "uniform" else forward_costs(model, recursion, vocab_size)
    return slots.balanced_passes(costs), replace(costs, head=HEAD_WEIGHT * costs.head)


def _slowest(partition: Partition, costs: Costs) -> float:
    """The cost of a micro-batch's way round: of every pass, its dearest stage."""
    costs_of = [stage.cost(costs) for stage in partition.stages]
    firsts = range(0, len(costs_of), partition.num_ranks)
    return sum(max(costs_of[first : first + partition.num_ranks]) for first in firsts)


def _empty_ranks(partition: Partition, modules: set[str]) -> list[int]:
    """Ranks that hold none of a model's modules."""
    ranks = range(partition.num_ranks)
    return [rank for rank in ranks if not any(partition.holds(rank, module) for module in modules)]


def _mend(parallel: ParallelConfig, sizes: PartSizes, num_layers: int, *, last_has_own: bool) -> str:
    """A placement that this module accepts, or that there is none."""
    num_ranks, num_placed = parallel.pipe_parallel_size, layers_to_place(sizes, num_layers)
    example = example_partition(sizes, num_layers, num_ranks, last_has_own=last_has_own)
    if example is not None:
        return f"use pipe_partition_method: {', '.join(METHODS)}, or place the layers like {example}"
    written = parallel.pipe_partition_method not in (*METHODS, NEOX_UNIFORM)
    return (
        f"{num_placed} {'layer' if num_placed == 1 else 'layers'} cannot give every rank one; "
        f"use pipe_parallel_size: {most_ranks(num_placed, last_has_own=last_has_own)} or less"
        + (" with pipe_partition_method: cost" if written else "")
    )


def forward_costs(model: ModelConfig, recursion: RecursionConfig, vocab_size: int) -> Costs:
    """Forward FLOPs per token of a block, the head and a loop boundary; padded `vocab_size`."""
    flops, layout = flops_per_token(model, recursion, vocab_size), recursion.layout
    depth = layout.compute_depth if layout else model.num_layers
    boundary = flops.recursion / (layout.num_loops + 1) if layout else 0.0
    return Costs((flops.blocks + flops.attention) / depth, flops.head, boundary)


def _parameters(model: ModelConfig, recursion: RecursionConfig, vocab_size: int) -> Costs:
    counts, layout = count_parameters(model, recursion, vocab_size), recursion.layout
    num_blocks = layout.num_prelude + layout.num_core_weights + layout.num_coda if layout else model.num_layers
    embedding = counts.embedding + counts.position_embedding
    block = (counts.prelude + counts.core + counts.coda) / num_blocks
    boundary = counts.routers / (layout.num_loops + 1) if layout else 0.0
    return Costs(block, counts.head + counts.final_norm, boundary, embedding)


class _Slots:
    """The places that layers can be put in: one per part of the model and rank."""

    def __init__(
        self, layout: RecursionLayout | None, sizes: PartSizes, num_layers: int, num_ranks: int, *, tied: bool
    ):
        self.layout, self.sizes, self.num_layers, self.num_ranks = layout, sizes, num_layers, num_ranks
        self.head_rank = 0 if tied else num_ranks - 1
        self.head_part = None if tied else len(sizes) - 1  # a tied head has a pass of its own

    def balanced_passes(self, costs: Costs) -> Counts:
        """Each part balanced by itself; where that leaves a choice, the rank that has less in all."""
        totals = [0.0] * self.num_ranks
        if self.layout is None:
            loads = [0.0] * (len(self.sizes) * self.num_ranks)
            loads[-1] += 0.0 if self.head_part is None else HEAD_WEIGHT * costs.head
            return self._cut(_fill(loads, costs.block, self.num_layers))
        parts = []
        for part, size in enumerate(self.sizes):
            loads = [0.0] * self.num_ranks
            loads[self.head_rank] += HEAD_WEIGHT * costs.head if part == self.head_part else 0.0
            loads[-1] += costs.boundary if part < len(self.sizes) - 1 else 0.0
            parts.append(_fill(loads, costs.block, size or 0, totals))
            totals = [total + load for total, load in zip(totals, loads, strict=True)]
        return tuple(parts)

    def balanced_ranks(self, costs: Costs) -> Counts:
        """Each rank's total balanced; a layer counts as often as it has weights."""
        loads = [0.0] * self.num_ranks
        loads[0] += costs.embedding
        loads[self.head_rank] += costs.head
        if self.layout is None:
            per_rank = _fill(loads, costs.block, self.num_layers)
            return tuple(zip(*(even_counts(count, len(self.sizes)) for count in per_rank), strict=True))
        loads[-1] += costs.boundary * (self.layout.num_loops + 1)
        prelude, core, coda = (size or 0 for size in self.sizes)
        weights = 1 if self.layout.shared else self.layout.num_loops
        in_core = _fill(loads, costs.block * weights, core)
        return _fill(loads, costs.block, prelude), in_core, _fill(loads, costs.block, coda)

    def _cut(self, flat: Sequence[int]) -> Counts:
        return tuple(tuple(flat[first : first + self.num_ranks]) for first in range(0, len(flat), self.num_ranks))


def _fill(loads: list[float], weight: float, num_layers: int, others: Sequence[float] | None = None) -> tuple[int, ...]:
    """Give layers of equal weight, one by one, to whoever has the least load, then the least of `others`; `loads` goes on counting."""
    counts = [0] * len(loads)
    for _ in range(num_layers):
        least = min(range(len(loads)), key=lambda place: (loads[place], others[place] if others else 0.0))
        loads[least] += weight
        counts[least] += 1
    return tuple(counts)
