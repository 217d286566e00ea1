"""Which layers live on which pipeline rank, in which pass.

              rank 0              rank 1 …        rank P−1
    pass 0    embedding, prelude  prelude         prelude │ enter                 ┐ every pass starts at rank 0,
    pass 1    core                core            core    │ advance(0)            │ goes once round the ring,
    …                                                                             │ and ends at rank P−1
    pass K    core                core            core    │ advance(K−1)          │
    pass K+1  coda                coda            coda, final norm, head          ┘
   (pass K+2  final norm, head                            only where the head uses the embedding's weight)

A stage is what a rank does in one pass; its index is pass · P + rank, and states move from a stage to the next one. A rank holds the core's
blocks once, whatever the number of loops. Loop boundaries, and with them routers and state buffer, are all on the last rank. A model
without recursion is cut into P · pipe_num_passes parts. Every layer is on exactly one rank; slices may be empty.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from megamesh.config.pipeline import Counts
from megamesh.config.recursion import RecursionLayout

Stack = Literal["prelude", "core", "coda"]
ENTER = -1
"""The boundary after pass 0; the boundary after loop t is t."""


@dataclass(frozen=True)
class Costs:
    """What things cost in a forward pass, in any one unit: FLOPs per token, seconds."""

    block: float
    head: float
    boundary: float = 0.0
    embedding: float = 0.0


@dataclass(frozen=True)
class Stage:
    """What one rank does in one pass. `first_block` counts in the stack, `first_layer` at compute depth."""

    index: int
    pass_index: int
    rank: int
    stack: Stack
    first_block: int
    num_blocks: int
    first_layer: int
    embeds: bool = False
    boundary: int | None = None
    has_head: bool = False
    after_head: bool = False
    sends_embeddings: bool = False  # h_emb goes on to the next stage, beside h

    def cost(self, costs: Costs) -> float:
        """The stage's forward cost."""
        parts = (self.has_head, costs.head), (self.boundary is not None, costs.boundary), (self.embeds, costs.embedding)
        return self.num_blocks * costs.block + sum(cost for present, cost in parts if present)

    @property
    def num_outputs(self) -> int:
        """States that go on to the next stage: h, and h_emb in pass 0 where the scheme needs it; none after the head."""
        return 0 if self.has_head or self.after_head else 1 + self.sends_embeddings


@dataclass(frozen=True)
class Partition:
    """All stages of a model on P pipeline ranks, in the order in which a micro-batch visits them."""

    num_ranks: int
    stages: tuple[Stage, ...]

    @property
    def num_passes(self) -> int:
        return len(self.stages) // self.num_ranks

    def of_rank(self, rank: int) -> tuple[Stage, ...]:
        """A rank's stages, one per pass."""
        return self.stages[rank :: self.num_ranks]

    def holds(self, rank: int, name: str) -> bool:
        """Whether a module lives on the rank: embedding, position_embedding, routers, final_norm, head, or a block such as core.3."""
        stages = self.of_rank(rank)
        if name in ("embedding", "position_embedding"):
            return any(stage.embeds for stage in stages)
        if name in ("final_norm", "head"):
            return any(stage.has_head for stage in stages)
        if name == "routers":
            return any(stage.boundary is not None for stage in stages)
        stack, _, index = name.partition(".")
        return any(stage.stack == stack and 0 <= int(index) - stage.first_block < stage.num_blocks for stage in stages)


def lay_out(layout: RecursionLayout | None, counts: Counts, num_ranks: int, *, tied: bool, carries: bool) -> Partition:
    """The stages of blocks per part and rank. `tied`: the head uses the embedding's weight; `carries`: the scheme reads h_emb."""
    passes = list(_passes(layout, counts))
    last_pass = len(passes) - 1
    stages: list[Stage] = []
    layer = 0
    for pass_index, (stack, first_of_pass, part, boundary) in enumerate(passes):
        first_block = first_of_pass
        for rank, num_blocks in enumerate(part):
            is_last = rank == num_ranks - 1
            stages.append(
                Stage(
                    index=len(stages),
                    pass_index=pass_index,
                    rank=rank,
                    stack=stack,
                    first_block=first_block,
                    num_blocks=num_blocks,
                    first_layer=layer,
                    embeds=pass_index == rank == 0,
                    boundary=boundary if is_last else None,
                    has_head=not tied and is_last and pass_index == last_pass,
                    sends_embeddings=carries and pass_index == 0 and not is_last,
                )
            )
            first_block += num_blocks
            layer += num_blocks
    if tied:
        for rank in range(num_ranks):
            place = Stage(
                len(stages), last_pass + 1, rank, "coda", first_block, 0, layer, has_head=rank == 0, after_head=rank > 0
            )
            stages.append(place)
    return Partition(num_ranks, tuple(stages))


def _passes(layout: RecursionLayout | None, counts: Counts) -> Iterator[tuple[Stack, int, tuple[int, ...], int | None]]:
    """Of every pass: its stack, the first block in it, blocks per rank, and the loop boundary at its end."""
    if layout is None:
        first = 0
        for part in counts:
            yield "prelude", first, part, None
            first += sum(part)
        return
    prelude, core, coda = counts
    yield "prelude", 0, prelude, ENTER
    for t in range(layout.num_loops):
        yield "core", 0 if layout.shared else t * layout.num_core, core, t
    yield "coda", 0, coda, None
