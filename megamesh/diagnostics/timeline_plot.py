"""A picture of a pipeline's step: ranks over time, passes in colours, idle time grey. Needs matplotlib (the `plot` extra)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from megamesh.pipeline.simulator import Busy, Timeline
from megamesh.pipeline.stages import Partition

PALETTE = ("#4C78A8", "#F58518", "#54A24B", "#E45756", "#B279A2", "#9D755D", "#72B7B2", "#EECA3B")
IDLE = "#E9E9E9"
FORWARD_LIGHTER = 0.55
BAR_HEIGHT = 0.86
MILLISECONDS = 1e3
NUMBERED_BARS = 70
"""Bars of one rank up to which each is given its micro-batch's number."""


def plot_timeline(timeline: Timeline, partition: Partition, path: Path, title: str) -> None:
    """Draw every forward (light) and backward (dark) of a step whose timeline is in seconds; .png, .pdf or .svg."""
    figure = timeline_figure(timeline, partition, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def timeline_figure(timeline: Timeline, partition: Partition, title: str) -> Figure:
    """The picture: per rank a grey background as long as the step, and a bar for every action on it."""
    num_ranks = timeline.num_ranks
    figure, axes = plt.subplots(figsize=(14, 1.9 + 0.62 * num_ranks), layout="constrained")
    for rank in range(num_ranks):
        axes.barh(rank, MILLISECONDS * timeline.seconds, height=BAR_HEIGHT, color=IDLE, linewidth=0)
        own = [stretch for stretch in timeline.busy if stretch.rank == rank and stretch.end > stretch.start]
        _bars(axes, own, timeline.start, partition, numbered=len(own) <= NUMBERED_BARS)
    for rank, idle_share in enumerate(timeline.idle_shares):
        axes.text(1.008 * MILLISECONDS * timeline.seconds, rank, f"{idle_share:.1%} idle", va="center", fontsize=9)
    axes.set(xlim=(0, MILLISECONDS * timeline.seconds), ylim=(num_ranks - 0.5, -0.5), xlabel="milliseconds")
    axes.set_yticks(range(num_ranks), [f"rank {rank}" for rank in range(num_ranks)])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    patches = [Patch(color=_pass_colour(index), label=name) for index, name in enumerate(pass_names(partition))]
    patches += [
        Patch(color=_lighter("#666666"), label="forward: light"),
        Patch(color="#666666", label="backward: dark"),
    ]
    patches.append(Patch(color=IDLE, label="idle"))
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=9)
    axes.set_title(title, loc="left", fontsize=11)
    return figure


def _bars(axes: Axes, own: Sequence[Busy], origin: float, partition: Partition, *, numbered: bool) -> None:
    """One rank's actions."""
    if not own:
        return
    axes.broken_barh(
        [(MILLISECONDS * (s.start - origin), MILLISECONDS * (s.end - s.start)) for s in own],
        (own[0].rank - BAR_HEIGHT / 2, BAR_HEIGHT),
        facecolors=[_colour(stretch, partition) for stretch in own],
        edgecolors="white",
        linewidth=0.5 if numbered else 0.1,
    )
    for stretch in own if numbered else ():
        axes.text(
            MILLISECONDS * ((stretch.start + stretch.end) / 2 - origin),
            stretch.rank,
            str(stretch.action.micro_batch),
            ha="center",
            va="center",
            fontsize=6,
            color="black" if stretch.action.kind == "forward" else "white",
            clip_on=True,
        )


def pass_names(partition: Partition) -> list[str]:
    """prelude, core 1, core 2, coda, head; pass 1 … of a plain stack."""
    firsts = partition.of_rank(0)
    stacks = [stage.stack for stage in firsts]
    if partition.stages[-1].after_head:
        stacks = stacks[:-1]
    has_core = "core" in stacks
    loops = iter(range(1, len(stacks) + 1))
    names = [f"core {next(loops)}" if stack == "core" else stack for stack in stacks]
    if not has_core:
        names = [f"pass {index + 1}" for index in range(len(stacks))]
    return names + ["head"] * (len(firsts) - len(stacks))


def _colour(stretch: Busy, partition: Partition) -> tuple[float, float, float]:
    colour = _pass_colour(partition.stages[stretch.action.stage].pass_index)
    return _lighter(colour) if stretch.action.kind == "forward" else to_rgb(colour)


def _pass_colour(pass_index: int) -> str:
    return PALETTE[pass_index % len(PALETTE)]


def _lighter(colour: str) -> tuple[float, float, float]:
    red, green, blue = (channel + (1 - channel) * FORWARD_LIGHTER for channel in to_rgb(colour))
    return red, green, blue
