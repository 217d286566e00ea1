"""For comparison: a straight pipeline of the unrolled model, the way it would be done without a ring.

    layers at compute depth ──cut into contiguous parts, balanced by cost──▶ P ranks (P · v parts, interleaved: every P-th on the same rank)

A rank holds the core layers that its parts run, so that several ranks hold copies of one layer; their gradients have to be summed in every
step (in fp32, over the ranks that hold it), and the states that a later loop boundary reads have to travel with h over every wire between.
Simulated by the same code from the same kind of lists as the ring: one pass is 1F1B, v passes interleaved 1F1B. Nothing here can be
trained. A head that shares the embedding's weight counts as one more copy, on the last rank; the routers, which are small, as being on
the rank of the first loop boundary.
"""

from dataclasses import dataclass, replace

from megamesh.config.keys import RecursionConfig
from megamesh.config.recursion import RecursionLayout
from megamesh.config.sections import RunConfig
from megamesh.errors import ConfigError
from megamesh.model.recursion.scheme import describe
from megamesh.pipeline.stages import Partition
from megamesh.planning.memory import BYTES_FP32, highway_tokens, parameters_per_rank
from megamesh.planning.step import Placement, Step

MAX_PASSES = 4


@dataclass(frozen=True)
class StraightPipeline:
    """A straight pipeline on the same ranks: what each holds, what copies and highways would send per step, and its time.

    `tie_bytes`: what the rank with most copies sends to sum their gradients; `highway_bytes`: what all ranks send beside h.
    """

    num_passes: int
    num_parameters: list[int]
    num_copied_parameters: int
    tie_bytes: float
    highway_bytes: int
    pipeline_seconds: float
    idle_share: float
    tie_seconds: float

    @property
    def seconds(self) -> float:
        """Of the micro-batches and the sums over copies."""
        return self.pipeline_seconds + self.tie_seconds


def straight_pipelines(step: Step) -> list[StraightPipeline]:
    """Straight pipelines on the same ranks as a ring's, with 1 … 4 passes; none for a model without recursion or a pipeline."""
    layout = step.run.recursion.layout
    if layout is None or step.layout.pp < 2:
        return []
    passes = [count for count in range(1, MAX_PASSES + 1) if count * step.layout.pp <= layout.compute_depth]
    return [found for found in (_straight(step, layout, count) for count in passes) if found is not None]


def _straight(step: Step, layout: RecursionLayout, num_passes: int) -> StraightPipeline | None:
    unrolled = step.run.model_copy(
        update={
            "recursion": RecursionConfig(recursion=None),
            "model": step.run.model.model_copy(update={"no_weight_tying": True}),
            "parallel": step.run.parallel.model_copy(update={"pipe_num_passes": num_passes}),
        }
    )
    try:
        placement = Placement.of(unrolled, step.padded_vocab_size)
    except ConfigError:
        return None
    timeline = replace(step, run=unrolled, placement=placement).timeline(step.layout.num_micro_batches)
    held = [_modules(placement.partition, layout, rank) for rank in range(step.layout.pp)]
    tied = not step.run.model.no_weight_tying
    if tied:
        held[-1] = held[-1] | {"embedding"}
    sizes = {module: _num_parameters(step, module) for module in set().union(*held)}
    copies = {module: sum(module in modules for modules in held) for module in sizes}
    sent = [
        sum(2 * BYTES_FP32 * sizes[module] * (copies[module] - 1) / copies[module] for module in modules)
        for modules in held
    ]
    within_node = step.cluster.group_within_node(step.layout.pp, step.layout.tp * step.layout.dp)
    return StraightPipeline(
        num_passes,
        [sum(sizes[module] for module in modules) for modules in held],
        sum((copies[module] - 1) * size for module, size in sizes.items()),
        max(sent),
        _highway_bytes(step, layout, placement.partition),
        timeline.seconds,
        timeline.idle_share,
        step.cluster.seconds(max(sent), within_node=within_node),
    )


def _num_parameters(step: Step, module: str) -> int:
    return parameters_per_rank(step.run, step.padded_vocab_size, lambda name: name == module)


def _modules(partition: Partition, layout: RecursionLayout, rank: int) -> set[str]:
    """Names of the modules that a rank runs at compute depth, each once."""
    found = set()
    for stage in partition.of_rank(rank):
        found |= {
            _block_name(layout, layer) for layer in range(stage.first_layer, stage.first_layer + stage.num_blocks)
        }
        found |= {"embedding", "position_embedding"} if stage.embeds else set()
        found |= {"final_norm", "head"} if stage.has_head else set()
        found |= (
            {"routers"} if stage.first_layer < layout.num_prelude <= stage.first_layer + stage.num_blocks else set()
        )
    return found


def _block_name(layout: RecursionLayout, layer: int) -> str:
    core = layer - layout.num_prelude
    coda = core - layout.num_loops * layout.num_core
    if core < 0:
        return f"prelude.{layer}"
    if coda >= 0:
        return f"coda.{coda}"
    return f"core.{core % layout.num_core if layout.shared else core}"


def _highway_bytes(step: Step, layout: RecursionLayout, partition: Partition) -> int:
    """States and routing weights that travel beside h, forward and back, over all wires of a step."""
    run = step.run
    tokens = highway_tokens(run, step.batch)
    total = 0
    for stage in partition.stages[:-1]:
        num_states, num_weights = _beside(run, layout, stage.first_layer + stage.num_blocks)
        width = run.precision.bytes_per_value
        total += tokens * (num_states * run.model.hidden_size * width + num_weights * BYTES_FP32)
    return 2 * total * step.layout.num_micro_batches


def _beside(run: RunConfig, layout: RecursionLayout, depth: int) -> tuple[int, int]:
    """What must be known after `depth` layers beside h: whole states, and routing weights per token."""
    scheme, (loop, into) = describe(run.recursion), divmod(depth - layout.num_prelude, layout.num_core)
    if depth < layout.num_prelude:
        return int(scheme.reads_embeddings), 0
    # Inside pass loop + 1. At its start h(loop) is the state that travels anyway.
    needed = [kept for kept in scheme.kept() if kept.kept_in <= loop < kept.last_read]
    travelling = sum(kept.num_current for kept in needed if kept.kept_in == loop) if into == 0 else 0
    return sum(kept.num_states for kept in needed) - travelling, sum(kept.num_weights for kept in needed)
