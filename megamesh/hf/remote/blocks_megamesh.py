"""The transformer blocks of an exported MegaMesh model. This file travels with the export.

A block of a shared core runs once per loop, so before each call its attention's `layer_idx` is set to the *compute layer*, 0 …
num_hidden_layers − 1, that the call stands for: keys and values are cached under it.

Letters: B batch, S sequence, D hidden size, H query heads, G key/value heads, d head dimension, R rotated dimensions.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_megamesh import MegaMeshConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


def build_norm(config: MegaMeshConfig, width: int) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(width, eps=config.norm_eps, bias=config.norm_bias)
    return nn.RMSNorm(width, eps=config.norm_eps)


def rotary_angles(positions_BS: Tensor, rotary_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each [B, 1, S, R] in fp32."""
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions_BS.device) / rotary_dim
    angles = positions_BS[:, None, :, None].float() * (1.0 / theta**exponent)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def apply_rotary(x_BHSd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first R dimensions of every head, by halves."""
    turned, rest = x_BHSd[..., : cos.shape[-1]], x_BHSd[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = (turned * cos + torch.cat((-second, first), dim=-1) * sin).to(x_BHSd.dtype)
    return torch.cat((turned, rest), dim=-1)


def eager_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention spelled out; also gives the attention weights [B, H, S, S_keys]."""
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class MegaMeshAttention(nn.Module):
    """Causal self-attention with grouped key/value heads."""

    def __init__(self, config: MegaMeshConfig):
        super().__init__()
        self.config = config
        self.head_dim, self.scaling, self.is_causal = config.head_dim, config.head_dim**-0.5, True
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.layer_idx = 0  # set before every call
        query_width, key_width = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=config.attention_bias)
        self.q_norm = build_norm(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = build_norm(config, self.head_dim) if config.qk_norm else nn.Identity()

    def forward(
        self,
        h_BSD: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        shape = (*h_BSD.shape[:-1], -1, self.head_dim)
        q_BHSd = self.q_norm(self.q_proj(h_BSD).view(shape).transpose(1, 2))
        k_BGSd = self.k_norm(self.k_proj(h_BSD).view(shape).transpose(1, 2))
        v_BGSd = self.v_proj(h_BSD).view(shape).transpose(1, 2)
        if position_embeddings is not None:
            q_BHSd, k_BGSd = apply_rotary(q_BHSd, *position_embeddings), apply_rotary(k_BGSd, *position_embeddings)
        if past_key_values is not None:
            k_BGSd, v_BGSd = past_key_values.update(k_BGSd, v_BGSd, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        a_BSHd, weights = attend(
            self, q_BHSd, k_BGSd, v_BGSd, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(a_BSHd.reshape(*h_BSD.shape[:-1], -1).contiguous()), weights


class MegaMeshMLP(nn.Module):
    """down(act(up(h))), or gated: down(act(gate(h)) · up(h))."""

    def __init__(self, config: MegaMeshConfig):
        super().__init__()
        self.activation, self.gated = ACTIVATIONS[config.hidden_act], config.gated_mlp
        if self.gated:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, h_BSD: Tensor) -> Tensor:
        up = self.up_proj(h_BSD)
        inner = self.activation(self.gate_proj(h_BSD)) * up if self.gated else self.activation(up)
        out: Tensor = self.down_proj(inner)
        return out


class MegaMeshBlock(GradientCheckpointingLayer):
    """One transformer block; `layer_idx` is the compute layer that this call stands for."""

    def __init__(self, config: MegaMeshConfig):
        super().__init__()
        self.residual, self.dropout = config.residual, config.hidden_dropout
        self.attention_norm = build_norm(config, config.hidden_size)
        if config.residual != "parallel_tied":
            self.mlp_norm = build_norm(config, config.hidden_size)
        self.self_attn, self.mlp = MegaMeshAttention(config), MegaMeshMLP(config)

    def forward(self, h_BSD: Tensor, layer_idx: int, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        self.self_attn.layer_idx = layer_idx
        normed_BSD = self.attention_norm(h_BSD)
        attended_BSD, weights = self.self_attn(normed_BSD, **kwargs)
        if self.residual == "sequential":
            h_BSD = h_BSD + self._drop(attended_BSD)
            return h_BSD + self._drop(self.mlp(self.mlp_norm(h_BSD))), weights
        mlp_input_BSD = normed_BSD if self.residual == "parallel_tied" else self.mlp_norm(h_BSD)
        return h_BSD + (self._drop(attended_BSD) + self._drop(self.mlp(mlp_input_BSD))), weights

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)
