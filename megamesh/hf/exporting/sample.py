"""A shallow model inside a deep one: some of its layers, all of its routers, some rows of its vocabulary.

    prelude 0 … 11                    ──▶ 0, 6, 11                      a plain stack: first, middle, last
    prelude 0 … 3, core 0 … 7, coda … ──▶ prelude 0, core 0 and 7, last of the coda; all loops, each with its routers

Names of the deep model's parameters become names in the shallow one; a core that is not shared keeps its sampled layers in every loop.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megamesh.config.keys import ModelConfig, RecursionConfig
from megamesh.config.recursion import RecursionLayout
from megamesh.model.counts import Shape, parameter_shapes

SAMPLED_ROWS = 256
VOCABULARY = ("embedding.weight", "head.weight")


@dataclass(frozen=True)
class Sample:
    """What to build, and from what. `names` leads from parameters of the deep model to those of the shallow one."""

    model: ModelConfig
    recursion: RecursionConfig
    rows: Tensor  # of embedding and head, in ascending order
    names: Mapping[str, str]
    layers: Mapping[str, list[int]]  # of the deep model, by stack
    shapes: Mapping[str, Shape]  # of the shallow model

    def __str__(self) -> str:
        return " ".join(f"{stack}.{index}" for stack, indices in self.layers.items() for index in indices)

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """What the sample has of a parameter of ours."""
        return tensor[self.rows] if name in VOCABULARY else tensor


def sample_layers(model: ModelConfig, recursion: RecursionConfig, vocab_size: int) -> Sample:
    """Choose layers and rows: the same ones for the same configuration."""
    layout = recursion.layout
    chosen = _plain(model.num_layers) if layout is None else _recursive(layout)
    shallow_recursion, depth = recursion, len(chosen["prelude"])
    if layout is not None:
        shallow = replace(layout, num_prelude=depth, num_core=len(_core(layout)), num_coda=len(chosen["coda"]))
        shallow_recursion = recursion.model_copy(update={"recursion": str(shallow)})
        depth = shallow.compute_depth
    shallow_model = model.model_copy(update={"num_layers": depth})
    rows = _rows(vocab_size)
    shapes = parameter_shapes(shallow_model, shallow_recursion, len(rows))
    names = {_deep_name(name, chosen): name for name in shapes}
    return Sample(shallow_model, shallow_recursion, rows, names, chosen, shapes)


def _plain(num_layers: int) -> dict[str, list[int]]:
    return {"prelude": sorted({0, num_layers // 2, num_layers - 1})}


def _recursive(layout: RecursionLayout) -> dict[str, list[int]]:
    loops = 1 if layout.shared else layout.num_loops
    return {
        "prelude": [0][: layout.num_prelude],
        "core": [t * layout.num_core + index for t in range(loops) for index in _core(layout)],
        "coda": [layout.num_coda - 1][: layout.num_coda],
    }


def _core(layout: RecursionLayout) -> list[int]:
    """Layers of one loop."""
    return sorted({0, layout.num_core - 1})


def _rows(vocab_size: int) -> Tensor:
    """The first and the last rows."""
    if vocab_size <= SAMPLED_ROWS:
        return torch.arange(vocab_size)
    half = SAMPLED_ROWS // 2
    return torch.cat([torch.arange(half), torch.arange(vocab_size - half, vocab_size)])


def _deep_name(name: str, chosen: Mapping[str, list[int]]) -> str:
    stack, index, *rest = name.split(".")
    if stack not in chosen:
        return name
    return ".".join([stack, str(chosen[stack][int(index)]), *rest])
