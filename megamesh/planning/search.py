"""All layouts of a configuration on a cluster, fastest first, and what rules the others out.

layouts.py ──▶ memory too large? ──▶ ruled out, with the least that any variant of the layout needs
            └▶ estimate of the step's time ──▶ the fastest variant per (tp, pp, dp) ──best `top`, every micro-batch simulated──▶ Plan
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from megamesh.config.sections import RunConfig
from megamesh.config.tensor_parallel import padded_vocabulary
from megamesh.errors import ConfigError
from megamesh.pipeline.simulator import Timeline
from megamesh.planning.hardware import Cluster
from megamesh.planning.layouts import Layout, RuledOut, layouts
from megamesh.planning.speed import Speed
from megamesh.planning.step import Estimate, Placement, Step

Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Ranked:
    """A possible layout with its step, every micro-batch of it simulated."""

    step: Step
    estimate: Estimate
    timeline: Timeline


@dataclass(frozen=True)
class Plan:
    """The best layouts, fastest first; how many were possible; the others' reasons."""

    best: list[Ranked]
    num_possible: int
    ruled_out: list[RuledOut]


def plan(
    run: RunConfig, vocab_size: int, cluster: Cluster, speed: Speed, *, top: int, only: Sizes | None = None
) -> Plan:
    """Search all layouts; of each (tp, pp, dp) the fastest variant is kept, with `only` all variants of that one.

    Raises ConfigError where there is nothing to divide, or nothing fits.
    """
    steps, ruled_out = [], []
    placements: dict[tuple[int, int, int | None], Placement | None] = {}
    for found in layouts(run, cluster.num_gpus, vocab_size):
        if only is not None and not _concerns(found, only):
            continue
        if isinstance(found, RuledOut):
            ruled_out.append(found)
            continue
        laid_out = found.apply_to(run)
        padded = padded_vocabulary(laid_out, vocab_size)
        key = found.tp, found.pp, found.num_passes
        if key not in placements:
            try:
                placements[key] = Placement.of(laid_out, padded)
            except ConfigError as error:
                ruled_out.append(RuledOut("divisibility", f"tp {found.tp} pp {found.pp} dp {found.dp}", str(error)))
                placements[key] = None
        if (placement := placements[key]) is None:
            continue
        steps.append(Step(laid_out, found, placement, padded, cluster, speed))
    possible, too_large = _by_memory(steps, cluster)
    ruled_out += too_large
    if not possible:
        raise ConfigError([f"no layout on {cluster.num_gpus} GPUs is possible", *_in_words(ruled_out)])
    fastest = sorted(possible, key=lambda step: (step.estimate.seconds, step.fullest.total))
    chosen = fastest if only is not None else _first_of_each(fastest)
    ranked = [Ranked(step, *step.exact()) for step in chosen[:top]]
    ranked.sort(key=lambda entry: entry.estimate.seconds)
    return Plan(ranked, len(possible), ruled_out)


def _by_memory(steps: Iterable[Step], cluster: Cluster) -> tuple[list[Step], list[RuledOut]]:
    """Steps that fit, and for sizes of which no variant fits the least that one needs."""
    possible: list[Step] = []
    least: dict[Sizes, Step] = {}
    for step in steps:
        if step.fullest.total <= cluster.usable_bytes:
            possible.append(step)
        known = least.setdefault(step.layout.sizes, step)
        if step.fullest.total < known.fullest.total:
            least[step.layout.sizes] = step
    too_large = [step for step in least.values() if step.fullest.total > cluster.usable_bytes]
    return possible, [_memory_reason(step, cluster) for step in too_large]


def _memory_reason(step: Step, cluster: Cluster) -> RuledOut:
    layout = step.layout
    again = "no recomputation" if layout.recompute == "none" else f"recomputation per {layout.recompute}"
    return RuledOut(
        "memory",
        f"tp {layout.tp} pp {layout.pp} dp {layout.dp}",
        f"{step.fullest.total / 2**30:.1f} GiB at the least (micro-batch {layout.micro_batch_size}, ZeRO {layout.zero_stage}, {again}) "
        f"of {cluster.usable_bytes / 2**30:.1f}",
    )


def _first_of_each(steps: Sequence[Step]) -> list[Step]:
    first: dict[Sizes, Step] = {}
    for step in steps:
        first.setdefault(step.layout.sizes, step)
    return list(first.values())


def grouped(ruled_out: Sequence[RuledOut]) -> dict[str, dict[str, list[str]]]:
    """Kind → reason → what it concerns, each once."""
    groups: dict[str, dict[str, list[str]]] = {}
    for entry in ruled_out:
        concerned = groups.setdefault(entry.kind, {}).setdefault(entry.reason, [])
        if entry.what not in concerned:
            concerned.append(entry.what)
    return groups


def _concerns(found: Layout | RuledOut, sizes: Sizes) -> bool:
    """Whether a layout, or the reason against it, is about these sizes."""
    if isinstance(found, Layout):
        return found.sizes == sizes
    return found.what in ("tp {} pp {} dp {}".format(*sizes), f"tp {sizes[0]}")


def _in_words(ruled_out: Sequence[RuledOut]) -> list[str]:
    return [
        f"{kind}: {', '.join(concerned)}: {reason}"
        for kind, reasons in grouped(ruled_out).items()
        for reason, concerned in reasons.items()
    ]
