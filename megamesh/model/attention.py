"""Causal self-attention with rotary embedding and grouped key/value heads, on torch's scaled_dot_product_attention.

    h_BSD ──qkv──▶ [B, S, G, q…q k v] ──▶ q_BHSd, k_BGSd, v_BGSd ──rotary──▶ attention ──out──▶ [B, S, D]

The qkv weight's rows are grouped by key/value head: the query heads that share it, then its key, then its value. With as
many key/value heads as query heads that is GPT-NeoX's layout, and a slice of whole groups is a tensor-parallel shard.

Letters: B batch, S sequence, D hidden size, H query heads, G key/value heads, d head dimension, R rotated dimensions.
"""

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from megamesh.config.sections import ModelConfig
from megamesh.model.norms import build_norm
from megamesh.model.rotary import apply_rotary, rotary_angles


class KeyValueCache(Protocol):
    """Keys and values of earlier tokens. A looped core calls its blocks several times, so the key is the *compute* layer."""

    def update(self, layer: int, k_BGSd: Tensor, v_BGSd: Tensor) -> tuple[Tensor, Tensor]:
        """Append this call's keys and values to compute layer `layer`; return all of them."""
        ...


@dataclass(frozen=True)
class AttentionInputs:
    """What the attention of every layer shares in one forward pass."""

    rotary: tuple[Tensor, Tensor] | None
    mask: Tensor | None = None
    cache: KeyValueCache | None = None


def attention_inputs(
    model: ModelConfig, positions: Tensor, mask: Tensor | None = None, cache: KeyValueCache | None = None
) -> AttentionInputs:
    """Positions [S], or [B, S] where rows differ; mask: None is causal, else bool [B, 1, S, S_keys], True attends."""
    if not model.rotary_dim:
        return AttentionInputs(None, mask, cache)
    cos, sin = rotary_angles(positions, model.rotary_dim, model.rotary_emb_base)
    if positions.dim() == 2:
        cos, sin = cos[:, None], sin[:, None]
    return AttentionInputs((cos, sin), mask, cache)


class Attention(nn.Module):
    """Multi-head (or grouped-query) causal self-attention."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = model.num_attention_heads, model.kv_heads, model.head_dim
        self.dropout = model.attention_dropout
        bias = model.use_bias_in_attn_linear
        self.qkv = nn.Linear(model.hidden_size, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim, bias=bias)
        self.out = nn.Linear(self.num_heads * self.head_dim, model.hidden_size, bias=bias)
        self.q_norm = build_norm(model, self.head_dim) if model.use_qk_layernorm else nn.Identity()
        self.k_norm = build_norm(model, self.head_dim) if model.use_qk_layernorm else nn.Identity()

    def forward(self, h_BSD: Tensor, inputs: AttentionInputs, layer: int) -> Tensor:
        q_BHSd, k_BGSd, v_BGSd = self._heads(self.qkv(h_BSD))
        q_BHSd, k_BGSd = self.q_norm(q_BHSd), self.k_norm(k_BGSd)
        if inputs.rotary is not None:
            q_BHSd, k_BGSd = apply_rotary(q_BHSd, *inputs.rotary), apply_rotary(k_BGSd, *inputs.rotary)
        if inputs.cache is not None:
            k_BGSd, v_BGSd = inputs.cache.update(layer, k_BGSd, v_BGSd)
        num_queries, num_keys = q_BHSd.shape[2], k_BGSd.shape[2]
        assert inputs.mask is not None or num_queries in (1, num_keys), "several tokens after cached ones need a mask"
        a_BHSd = F.scaled_dot_product_attention(
            q_BHSd,
            k_BGSd,
            v_BGSd,
            attn_mask=inputs.mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=inputs.mask is None and num_queries == num_keys,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        out: Tensor = self.out(a_BHSd.transpose(1, 2).flatten(2))
        return out

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S, (H + 2G)·d] → q [B, H, S, d], k and v [B, G, S, d]."""
        batch, sequence, _ = qkv.shape
        grouped = qkv.view(batch, sequence, self.num_kv_heads, -1, self.head_dim)
        # split, not slices: backward then joins the three gradients once, where slices would add up three padded with zeros
        parts = grouped.split((self.num_heads // self.num_kv_heads, 1, 1), dim=-2)
        q_BHSd, k_BGSd, v_BGSd = (part.flatten(2, 3).transpose(1, 2) for part in parts)
        return q_BHSd, k_BGSd, v_BGSd
