"""Which layers of a plain stack seed a recursive model: rules over layer numbers, without tensors.

    source      0 … p−1      p … L−d−1, the middle, M layers      L−d … L−1
    recursive   prelude 0…   core 0 … c−1, run K times            coda 0 … d−1

Prelude and coda take the first and last layers as they are. The core has fewer blocks than the middle has layers, so a rule chooses:

    stepwise   evenly spaced over the middle, its first and last layer kept    (Bae et al., arXiv 2410.20672)
    average    block j is the mean of the layers j, j+c, j+2c … of the middle  (the same; with M = c·K, those that it will stand for)
    lower      the first c layers of the middle                                (the same)
    upper      the last c layers of the middle                                 (McLeish et al., arXiv 2511.07384)

Where the middle has as many layers as the core has blocks (4+8+8+4 from 24 layers, say), every rule is the same plain copy. Layers are
numbered from 0. A core of one block has no two ends to keep: stepwise takes the first layer.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from megamesh.config.recursion import RecursionLayout
from megamesh.errors import ConfigError

Sources = tuple[int, ...]
"""The layers whose mean one block is; mostly one."""


def stepwise(num_middle: int, num_blocks: int) -> list[Sources]:
    """Evenly spaced layers, rounded half up; the first and the last are among them."""
    steps = max(num_blocks - 1, 1)
    return [((2 * block * (num_middle - 1) + steps) // (2 * steps),) for block in range(num_blocks)]


def average(num_middle: int, num_blocks: int) -> list[Sources]:
    """Every num_blocks-th layer, from the block's own number on. ConfigError where blocks would stand for different numbers of layers."""
    if num_middle % num_blocks:
        raise ConfigError(
            f"--core-from=average: the {num_middle} layers between prelude and coda are not a multiple of the core's {num_blocks} blocks, "
            "so that blocks would be means of different numbers of layers; use stepwise, or another recursion"
        )
    return [tuple(range(block, num_middle, num_blocks)) for block in range(num_blocks)]


def lower(num_middle: int, num_blocks: int) -> list[Sources]:
    """The first layers."""
    return [(block,) for block in range(num_blocks)]


def upper(num_middle: int, num_blocks: int) -> list[Sources]:
    """The last layers."""
    return [(num_middle - num_blocks + block,) for block in range(num_blocks)]


CORE_RULES: dict[str, Callable[[int, int], list[Sources]]] = {
    "stepwise": stepwise,
    "average": average,
    "lower": lower,
    "upper": upper,
}
"""Rule → function of the middle's layers and the core's blocks; its answer counts layers from the middle's first."""


@dataclass(frozen=True)
class Seeds:
    """The source's layers behind every block of a recursive model."""

    layout: RecursionLayout
    num_source_layers: int
    core: tuple[Sources, ...]

    @property
    def first_coda_layer(self) -> int:
        return self.num_source_layers - self.layout.num_coda

    def blocks(self) -> Iterator[tuple[str, Sources]]:
        """Name and sources of each block, in the order of the recursive model's parameters."""
        yield from ((f"prelude.{index}", (index,)) for index in range(self.layout.num_prelude))
        yield from ((f"core.{index}", sources) for index, sources in enumerate(self.core))
        yield from ((f"coda.{index}", (self.first_coda_layer + index,)) for index in range(self.layout.num_coda))

    def source_names(self, name: str) -> list[str]:
        """The source's parameters whose mean the parameter `name` is; none for a router's."""
        stack, *rest = name.split(".")
        if stack == "routers":
            return []
        if stack not in ("prelude", "core", "coda"):
            return [name]
        layers = dict(self.blocks())[f"{stack}.{rest[0]}"]
        return [".".join(["prelude", str(layer), *rest[1:]]) for layer in layers]

    @property
    def same_layers(self) -> bool:
        """Whether plain recursion runs the source's layers, each once and in its order: the same model."""
        loops = 1 if not self.layout.shared else self.layout.num_loops
        middle = range(self.layout.num_prelude, self.first_coda_layer)
        return list(self.core) * loops == [(layer,) for layer in middle]


def choose_seeds(layout: RecursionLayout, num_source_layers: int, core_from: str) -> Seeds:
    """Apply a rule, or layers that are listed themselves (`4,6,9,11`, one for each block). ConfigError for what cannot be."""
    num_middle = num_source_layers - layout.num_prelude - layout.num_coda
    num_blocks = layout.num_core_weights
    kept = f"recursion={layout}: prelude and coda keep {layout.num_prelude + layout.num_coda} of the source's {num_source_layers} layers"
    if num_middle < 0:
        raise ConfigError(f"{kept}, which has not so many; make them smaller")
    if re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", core_from, re.ASCII):
        layers = [int(number) for number in core_from.split(",")]
        _check_listed(core_from, layers, num_blocks, num_source_layers)
        return Seeds(layout, num_source_layers, tuple((layer,) for layer in layers))
    if core_from not in CORE_RULES:
        raise ConfigError(
            f"--core-from={core_from!r} is not a rule; use {', '.join(CORE_RULES)}, or list {num_blocks} layers, counted from 0, "
            "with commas between them"
        )
    if num_middle < num_blocks:
        raise ConfigError(
            f"{kept}, and the {num_middle} between them cannot seed a core of {num_blocks} blocks; make prelude, core or coda "
            "smaller, or list layers (one may stand there twice)"
        )
    chosen = CORE_RULES[core_from](num_middle, num_blocks)
    core = tuple(tuple(layout.num_prelude + layer for layer in sources) for sources in chosen)
    return Seeds(layout, num_source_layers, core)


def _check_listed(core_from: str, layers: list[int], num_blocks: int, num_source_layers: int) -> None:
    if len(layers) != num_blocks:
        raise ConfigError(
            f"--core-from={core_from} lists {len(layers)} layers, the core has {num_blocks} blocks; list one for each"
        )
    if max(layers) >= num_source_layers:
        raise ConfigError(
            f"--core-from={core_from}: the source's layers are 0 to {num_source_layers - 1}, there is no {max(layers)}"
        )
