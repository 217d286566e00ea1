"""A picture of how long documents are. Needs matplotlib (the `plot` extra)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from megamesh.data.store.statistics import Statistics


def plot_lengths(found: Sequence[Statistics], path: Path) -> None:
    """For each dataset the share of documents, and of tokens, in documents of each length; lengths double from bin to bin."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharex=True)
    for one in found:
        edges = [max(entry.first, 0.5) for entry in one.histogram] + [
            one.histogram[-1].last + 1 if one.histogram else 1
        ]
        for panel, values in zip(
            axes, ([b.documents for b in one.histogram], [b.tokens for b in one.histogram]), strict=True
        ):
            total = max(sum(values), 1)
            panel.stairs([100 * value / total for value in values], edges, label=one.prefix, linewidth=1.5)
    for panel, what in zip(axes, ("documents", "tokens"), strict=True):
        panel.set_xscale("log", base=2)
        panel.set(xlabel="tokens in the document", ylabel=f"{what} (%)")
        panel.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
