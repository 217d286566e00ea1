"""Causal self-attention with rotary embedding and grouped key/value heads, on torch's scaled_dot_product_attention.

    h_TD ──qkv──▶ [B, S, G, q…q k v] ──▶ q_BHSd, k_BGSd, v_BGSd ──rotary──▶ attention ──out──▶ share of [T, D]

The qkv weight's rows are grouped by key/value head: the query heads that share it, then its key, then its value. With as
many key/value heads as query heads that is GPT-NeoX's layout, and a slice of whole groups is a tensor-parallel shard.

Letters: B batch, S sequence, T = B·S tokens, D hidden size, H query heads and G key/value heads of this rank, d head dimension, R rotated
dimensions.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from megamesh.config.keys import ModelConfig
from megamesh.model.norms import build_norm
from megamesh.model.rotary import apply_rotary, rotary_angles
from megamesh.parallel.layers import ColumnParallelLinear, RowParallelLinear
from megamesh.parallel.tensor import TensorParallel


class KeyValueCache(Protocol):
    """Keys and values of earlier tokens. A looped core calls its blocks several times, so the key is the *compute* layer."""

    def update(self, layer: int, k_BGSd: Tensor, v_BGSd: Tensor) -> tuple[Tensor, Tensor]:
        """Append this call's keys and values to compute layer `layer`; return all of them."""
        ...


@dataclass(frozen=True)
class AttentionInputs:
    """What the attention of every layer shares in one forward pass."""

    batch_size: int
    rotary: tuple[Tensor, Tensor] | None
    mask: Tensor | None = None
    cache: KeyValueCache | None = None


def attention_inputs(
    model: ModelConfig,
    batch_size: int,
    positions: Tensor,
    mask: Tensor | None = None,
    cache: KeyValueCache | None = None,
) -> AttentionInputs:
    """Positions [S], or [B, S] where rows differ; mask: None is causal, else bool [B, 1, S, S_keys], True attends."""
    if not model.rotary_dim:
        return AttentionInputs(batch_size, None, mask, cache)
    cos, sin = rotary_angles(positions, model.rotary_dim, model.rotary_emb_base)
    if positions.dim() == 2:
        cos, sin = cos[:, None], sin[:, None]
    return AttentionInputs(batch_size, (cos, sin), mask, cache)


class Attention(nn.Module):
    """Multi-head (or grouped-query) causal self-attention."""

    def __init__(self, model: ModelConfig, tp: TensorParallel):
        super().__init__()
        self.tp, self.head_dim = tp, model.head_dim
        self.num_heads, self.num_kv_heads = tp.share(model.num_attention_heads), tp.share(model.kv_heads)
        self.dropout = model.attention_dropout
        bias = model.use_bias_in_attn_linear
        heads_width, kv_width = model.num_attention_heads * self.head_dim, model.kv_heads * self.head_dim
        self.qkv = ColumnParallelLinear(model.hidden_size, heads_width + 2 * kv_width, bias=bias, tp=tp)
        self.out = RowParallelLinear(heads_width, model.hidden_size, bias=bias, tp=tp)
        self.q_norm = build_norm(model, self.head_dim) if model.use_qk_layernorm else nn.Identity()
        self.k_norm = build_norm(model, self.head_dim) if model.use_qk_layernorm else nn.Identity()

    def forward(self, h_TD: Tensor, inputs: AttentionInputs, layer: int) -> Tensor:
        """States [T, D] → this rank's share of [T, D], to be summed by `TensorParallel.reduce`."""
        q_BHSd, k_BGSd, v_BGSd = self._heads(self.qkv(h_TD), inputs.batch_size)
        q_BHSd, k_BGSd = self.q_norm(q_BHSd), self.k_norm(k_BGSd)
        if inputs.rotary is not None:
            q_BHSd, k_BGSd = apply_rotary(q_BHSd, *inputs.rotary), apply_rotary(k_BGSd, *inputs.rotary)
        if inputs.cache is not None:
            k_BGSd, v_BGSd = inputs.cache.update(layer, k_BGSd, v_BGSd)
        num_queries, num_keys = q_BHSd.shape[2], k_BGSd.shape[2]
        assert inputs.mask is not None or num_queries in (1, num_keys), "several tokens after cached ones need a mask"
        dropout = self.dropout if self.training else 0.0
        with self.tp.dropout_of_shares() if dropout else nullcontext():
            a_BHSd = F.scaled_dot_product_attention(
                q_BHSd,
                k_BGSd,
                v_BGSd,
                attn_mask=inputs.mask,
                dropout_p=dropout,
                is_causal=inputs.mask is None and num_queries == num_keys,
                enable_gqa=self.num_heads != self.num_kv_heads,
            )
        share_TD: Tensor = self.out(a_BHSd.transpose(1, 2).flatten(2).flatten(0, 1))
        return share_TD

    def _heads(self, qkv: Tensor, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """[T, (H + 2G)·d] → q [B, H, S, d], k and v [B, G, S, d]."""
        grouped = qkv.view(batch_size, qkv.shape[0] // batch_size, self.num_kv_heads, -1, self.head_dim)
        # split, not slices: backward then joins the three gradients once, where slices would add up three padded with zeros
        parts = grouped.split((self.num_heads // self.num_kv_heads, 1, 1), dim=-2)
        q_BHSd, k_BGSd, v_BGSd = (part.flatten(2, 3).transpose(1, 2) for part in parts)
        return q_BHSd, k_BGSd, v_BGSd
