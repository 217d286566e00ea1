"""Pictures of a run: loss over tokens, and who writes to and reads from which slot. Needs matplotlib (the `plot` extra)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from megamesh.diagnostics.router_maps import RouterMaps


@dataclass(frozen=True)
class LossCurve:
    """Loss in nats per token at numbers of consumed tokens: training (means between points) and validation."""

    train: Sequence[tuple[float, float]]
    valid: Sequence[tuple[float, float]]


def plot_losses(curves: Mapping[str, LossCurve], path: Path, baselines: Mapping[str, float] | None = None) -> None:
    """Training (thin) and validation (points) loss of each named run; `baselines` are horizontal lines."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for index, (name, curve) in enumerate(curves.items()):
        colour = f"C{index}"
        if curve.train:
            axes.plot(*zip(*curve.train, strict=True), color=colour, alpha=0.45, linewidth=1, label=f"{name}, training")
        if curve.valid:
            axes.plot(
                *zip(*curve.valid, strict=True), color=colour, marker="o", markersize=4, label=f"{name}, validation"
            )
    for name, loss in (baselines or {}).items():
        axes.axhline(loss, color="grey", linestyle="--", linewidth=1, label=name)
    axes.set(xlabel="tokens seen", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_router_maps(maps: RouterMaps, path: Path, title: str) -> None:
    """Two heat maps, write and read: a row per router set, a column per slot, the mean weight in each cell."""
    num_steps, num_slots = maps.write_TN.shape
    size = (1.5 + 1.5 * num_slots, 1.8 + 0.55 * num_steps)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained", sharey=True)
    _heat_map(left, maps.write_TN, "writes to")
    image = _heat_map(right, maps.read_TN, "reads from")
    left.set_yticks(range(num_steps), ["transition", *(f"loop {t + 1}" for t in range(num_steps - 1))])
    figure.colorbar(image, ax=[left, right], label="mean weight", shrink=0.8)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _heat_map(axes: Axes, weights_TN: Tensor, verb: str):  # type: ignore[no-untyped-def]
    image = axes.imshow(weights_TN.numpy(), vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set(xlabel=f"{verb} slot", xticks=range(weights_TN.shape[1]))
    for (step, slot), weight in zip(
        ((t, n) for t in range(weights_TN.shape[0]) for n in range(weights_TN.shape[1])),
        weights_TN.flatten().tolist(),
        strict=True,
    ):
        axes.text(
            slot,
            step,
            f"{weight:.2f}",
            ha="center",
            va="center",
            fontsize=8,
            color="black" if weight > 0.6 else "white",
        )
    return image
