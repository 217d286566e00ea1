"""Rotary position embedding (Su et al. 2021), rotated by halves as GPT-NeoX and Llama do.

Letters: B batch, S sequence, H heads, d head dimension, R rotated dimensions (R ≤ d, the first ones).
"""

import torch
from torch import Tensor


def rotary_angles(positions: Tensor, rotary_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of the R/2 pairs, each [..., R/2] in fp32, for integer positions [...]."""
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions.device) / rotary_dim
    angles = positions[..., None].float() * (1.0 / base**exponent)
    return angles.cos(), angles.sin()


def apply_rotary(x_BHSd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first R dimensions of every head; cos and sin are [S, R/2], or [B, 1, S, R/2] where rows differ in position."""
    half = cos.shape[-1]
    first, second, rest = x_BHSd.split((half, half, x_BHSd.shape[-1] - 2 * half), dim=-1)  # one gradient to assemble
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*(part.to(x_BHSd.dtype) for part in turned), rest), dim=-1)
