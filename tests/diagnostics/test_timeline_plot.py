"""The timeline's picture: a bar for everything that is computed, as long as it takes, and grey where nothing is."""

from pathlib import Path

import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb

from megamesh.config.recursion import parse_recursion
from megamesh.diagnostics.timeline_plot import IDLE, PALETTE, pass_names, plot_timeline, timeline_figure
from megamesh.pipeline.simulator import simulate_step
from megamesh.pipeline.stages import Costs, Partition, lay_out

MICRO_BATCHES = 6


def ring(*, tied: bool = False) -> Partition:
    return lay_out(parse_recursion("2+4R2+2"), ((1, 1), (2, 2), (2, 0)), 2, tied=tied, carries=True)


def test_every_action_is_a_bar_of_its_length_in_its_pass_s_colour() -> None:
    partition = ring()
    timeline = simulate_step(partition, Costs(block=1e-3, head=1e-3), MICRO_BATCHES)
    figure = timeline_figure(timeline, partition, "a ring")
    (axes,) = figure.axes
    rows = [collection for collection in axes.collections if isinstance(collection, PolyCollection)]
    assert len(rows) == 2
    computed = [stretch for stretch in timeline.busy if stretch.end > stretch.start]
    assert sum(len(row.get_paths()) for row in rows) == len(computed) == (4 + 4) * 2 * MICRO_BATCHES - MICRO_BATCHES
    assert len({tuple(colour) for row in rows for colour in row.get_facecolors()}) == 2 * 4  # passes, light and dark
    for rank, row in enumerate(rows):
        widths = [path.vertices[:, 0].max() - path.vertices[:, 0].min() for path in row.get_paths()]
        assert sum(widths) == pytest.approx(1e3 * timeline.seconds * (1 - timeline.idle_shares[rank]))
        assert f"{timeline.idle_shares[rank]:.1%} idle" in {text.get_text() for text in axes.texts}
    assert [to_rgb(bar.get_facecolor()) for bar in axes.patches] == [to_rgb(IDLE)] * 2
    plt.close(figure)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture_is_written(suffix: str, tmp_path: Path) -> None:
    partition = ring(tied=True)
    timeline = simulate_step(partition, Costs(block=1e-3, head=1e-3), 64)
    path = tmp_path / f"timeline{suffix}"
    plot_timeline(timeline, partition, path, "tied")
    start = path.read_bytes()[:8]
    assert start == b"\x89PNG\r\n\x1a\n" if suffix == ".png" else start.startswith(b"<?xml")
    assert not plt.get_fignums()


def test_passes_have_names_and_colours() -> None:
    assert pass_names(ring()) == ["prelude", "core 1", "core 2", "coda"]
    assert pass_names(ring(tied=True)) == ["prelude", "core 1", "core 2", "coda", "head"]
    plain = lay_out(None, ((1, 1), (1, 1)), 2, tied=False, carries=False)
    assert pass_names(plain) == ["pass 1", "pass 2"]
    assert len(set(PALETTE)) == len(PALETTE)
