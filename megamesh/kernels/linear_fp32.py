"""A linear layer whose output is fp32 whatever the model's precision, without keeping an fp32 copy of its input.

    x [..., D] (bf16) ──cast──▶ x·Wᵀ + b [..., N] (fp32)

Router logits must not be rounded to bf16 before the softmax (MeSH eq. 3). A plain `linear(x.float(), …)` would keep x.float() for
backward: four bytes per element of a state. Here backward keeps x itself, which the block after it keeps anyway.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_fp32(x: Tensor, weight_ND: Tensor, bias_N: Tensor) -> Tensor:
    """x [..., D], weight [N, D], bias [N] → [..., N] in fp32 (float64 stays float64)."""
    result: Tensor = _LinearFp32.apply(x, weight_ND, bias_N)
    return result


class _LinearFp32(torch.autograd.Function):
    """Forward: x·Wᵀ + b in fp32. Backward: g·W to x; gᵀ·x to W; Σ g to b, each in its own type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_ND: Tensor, bias_N: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_ND)
        ctx.bias_dtype = bias_N.dtype
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.nn.functional.linear(x.to(wide), weight_ND.to(wide), bias_N.to(wide))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight_ND = ctx.saved_tensors
        grad_TN = grad.flatten(0, -2)
        grad_x = (grad @ weight_ND.to(grad.dtype)).to(x.dtype)
        grad_weight_ND = (grad_TN.T @ x.flatten(0, -2).to(grad.dtype)).to(weight_ND.dtype)
        return grad_x, grad_weight_ND, grad_TN.sum(0).to(ctx.bias_dtype)
