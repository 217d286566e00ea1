"""torch.compile for the blocks: the same function of the same parameters, in fewer kernels.

    block(h, inputs, layer) ──no cache, no mask: as in training──▶ the compiled forward, one for all blocks of a class
                            └──else: generation──────────────────▶ the plain forward

Parameters keep their names and their place. Sums may be ordered otherwise; dropout draws from torch's own streams, so that it drops what it
drops uncompiled. A version of the code is made for each set of shapes, and for evaluation one without gradients: torch allows 8, then
says so and runs the rest plain. Collectives are not compiled: under tensor parallelism graphs end there.
"""

import logging
import time
from collections.abc import Callable
from functools import cache
from types import MethodType

import torch
from torch import Tensor, nn

from megamesh.errors import ConfigError
from megamesh.model.attention import AttentionInputs
from megamesh.model.transformer import Transformer

log = logging.getLogger(__name__)

Forward = Callable[[nn.Module, Tensor, AttentionInputs, int], Tensor]
OPTIONS: dict[str, bool | int | str | Callable[..., object]] = {"fallback_random": True}


def compile_blocks(module: Transformer) -> None:
    """Let all blocks of a model run compiled, in place. Raises ConfigError where that is known to fail, or nothing can be compiled."""
    blocks = [block for stack in (module.prelude, module.core, module.coda) for block in stack if block is not None]
    parameter = next(module.parameters())
    _refuse_what_fails(module, parameter.dtype, parameter.device)
    _try_the_compiler(parameter.device)
    for block in blocks:
        block.forward = MethodType(_compiled_in_training_form(type(block).forward), block)
    log.info(
        "compile: blocks are compiled during the first step, and again during the first evaluation; this takes a while"
    )


@cache
def _compiled_in_training_form(forward: Forward) -> Forward:
    # Sizes do not change in training, and kernels for any size are slower.
    compiled: Forward = torch.compile(forward, dynamic=False, options=OPTIONS)

    def call(block: nn.Module, h_TD: Tensor, inputs: AttentionInputs, layer: int) -> Tensor:
        if inputs.cache is not None or inputs.mask is not None:
            return forward(block, h_TD, inputs, layer)
        # Only a cache asks for the layer. As a number it would be part of what is compiled, and each layer a version of its own.
        return compiled(block, h_TD, inputs, 0)

    return call


def _refuse_what_fails(module: Transformer, dtype: torch.dtype, device: torch.device) -> None:
    """torch 2.13 on CPUs declares one C++ variable twice where a 16-bit sum is two gradients: here, of the biases of both branches."""
    model = module.config
    same_gradient = model.gpt_j_residual and model.use_bias_in_attn_linear and model.use_bias_in_mlp
    if (
        device.type == "cpu"
        and dtype.itemsize == 2
        and same_gradient
        and not model.hidden_dropout
        and module.tp.size == 1
    ):
        raise ConfigError(
            f"compile=true fails on CPUs for gpt_j_residual=true with biases in {str(dtype).removeprefix('torch.')}: torch's C++ for it "
            "is wrong; use compile: false, precision: fp32, or gpt_j_residual: false"
        )


@cache
def _try_the_compiler(device: torch.device) -> None:
    """Compile something small, so that a machine that cannot is found out now. No cache may answer for the compiler: it adds the time."""
    now = time.time_ns()
    probe = torch.compile(lambda x: x.sin() + now, options=OPTIONS)
    try:
        probe(torch.zeros(2, device=device))
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        needs = (
            "a C++ compiler such as g++ (torch looks for $CXX)" if device.type == "cpu" else "Triton and a C compiler"
        )
        raise ConfigError(
            f"compile=true: torch.compile does not work here ({reason}); install {needs}, or use compile: false"
        ) from error
