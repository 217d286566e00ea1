"""Initial weights, drawn for each parameter from a stream of its own, so that no layout or device changes them.

    (seed, name) ──▶ CPU generator ──▶ the global parameter in fp32 ──▶ this rank's part, on the model's device, in its type

Distributions follow GPT-NeoX, with D the hidden size and L the compute depth: `normal` N(0, std²), `scaled_normal`
N(0, std²/(2L)), `small_init` N(0, 2/(5D)) (Nguyen and Salazar 2019), `wang_init` N(0, 4/(L²·D)) (Wang and Komatsuzaki 2021).
Norms start at 1, biases at 0.
"""

import math

import torch
from torch import Tensor

from megamesh.config.keys import ModelConfig, RecursionConfig
from megamesh.config.keys.model import InitMethod
from megamesh.model.recursion.scheme import filled, find_learned
from megamesh.model.transformer import Transformer
from megamesh.parallel.random import keyed_generator
from megamesh.parallel.shards import fill_from_global

_WRITES_TO_STATE = ("attention.out.weight", "mlp.down.weight")


def standard_deviation(method: InitMethod, model: ModelConfig) -> float:
    """Standard deviation of a weight under `method`; depth is the compute depth (MeSH, appendix B: N_compute)."""
    if method == "normal":
        return model.init_method_std
    if method == "scaled_normal":
        return model.init_method_std / math.sqrt(2 * model.num_layers)
    if method == "small_init":
        return math.sqrt(2 / (5 * model.hidden_size))
    return 2 / (model.num_layers * math.sqrt(model.hidden_size))


@torch.no_grad()
def initialise(module: Transformer, model: ModelConfig, recursion: RecursionConfig, seed: int) -> None:
    """Draw every parameter in place: its global tensor first, one at a time, of which this rank keeps its part."""
    for name, spec in module.shards().items():
        # Without a name for the global tensor, it is gone before the next one is drawn.
        fill_from_global(
            module.get_parameter(name), initial_value(name, spec.global_shape, model, recursion, seed), spec
        )


def initial_value(
    name: str, shape: tuple[int, ...], model: ModelConfig, recursion: RecursionConfig, seed: int
) -> Tensor:
    """The fp32 start of the parameter with the global name `name` and the global shape `shape`, on the CPU."""
    if name.startswith("routers."):
        special = filled(find_learned(name, recursion, model.hidden_size).start, shape)
        if special is not None:
            return special
    elif "norm." in name:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    elif name.endswith("bias"):
        return torch.zeros(shape)
    method = model.output_layer_init_method if name.endswith(_WRITES_TO_STATE) else model.init_method
    generator = keyed_generator("parameter", seed, name)
    return torch.empty(shape).normal_(0.0, standard_deviation(method, model), generator=generator)


def plain_value(name: str, shape: tuple[int, ...], model: ModelConfig, recursion: RecursionConfig, seed: int) -> Tensor:
    """The fp32 start of a scheme's parameter with which the first forward pass is plain recursion, or as near to it as can be."""
    value = filled(find_learned(name, recursion, model.hidden_size).plain, shape)
    return initial_value(name, shape, model, recursion, seed) if value is None else value
