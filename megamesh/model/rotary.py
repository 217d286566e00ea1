"""Rotary position embedding (Su et al. 2021), rotated by halves as GPT-NeoX and Llama do.

Letters: B batch, S sequence, H heads, d head dimension, R rotated dimensions (R ≤ d, the first ones).
"""

import torch
from torch import Tensor


def rotary_angles(positions: Tensor, rotary_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each [..., R] in fp32, for integer positions [...]."""
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions.device) / rotary_dim
    angles = positions[..., None].float() * (1.0 / base**exponent)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def apply_rotary(x_BHSd: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    """Turn the first R dimensions of every head; cos and sin are [S, R], or [B, 1, S, R] where rows differ in position."""
    rotary_dim = cos_SR.shape[-1]
    turned, rest = x_BHSd[..., :rotary_dim], x_BHSd[..., rotary_dim:]
    first, second = turned.chunk(2, dim=-1)
    turned = (turned * cos_SR + torch.cat((-second, first), dim=-1) * sin_SR).to(x_BHSd.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
