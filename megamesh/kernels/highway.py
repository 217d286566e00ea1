"""Reading the MeSH state buffer without ever building it (MeSH eq. 6-7).

    sources s_0 … s_{I-1}  [B, S, D]   s_0 = h_emb, s_1 = the prelude's output, then one core output per loop
    writes  u_1 … u_{I-1}  [B, S, N]   how s_i was written over the slots; u_0 is one-hot on slot 0
    read    w              [B, S, N]   how the slots are read now

    h = Σ_i ⟨w, u_i⟩ · s_i             one scalar per token and source

A write only ever adds a per-token multiple of one tensor to each slot, so the sum above equals reading the buffer in real
arithmetic. Scalars and the sum are kept in fp32 (or the sources' own type where that is wider); the result has the
sources' type. Backward keeps no tensor of its own: sources are block outputs, and writes and reads are [B, S, N].

Letters: B batch, S sequence, D hidden size, N slots, I sources so far.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def highway_read(read_BSN: Tensor, writes_BSN: Sequence[Tensor], sources_BSD: Sequence[Tensor]) -> Tensor:
    """State [B, S, D] that a router reads from the buffer, by the unrolled form (MeSH eq. 7).

    `writes_BSN[i]` belongs to `sources_BSD[i + 1]`; the first source sits alone in slot 0 (eq. 2).
    """
    assert len(writes_BSN) == len(sources_BSD) - 1, "every source but the first is written by a router"
    result: Tensor = _HighwayRead.apply(len(sources_BSD), read_BSN, *sources_BSD, *writes_BSN)
    return result


class _HighwayRead(torch.autograd.Function):
    """Forward: Σ_i c_i s_i with c_i = ⟨w, u_i⟩. Backward: c_i g to s_i; ⟨g, s_i⟩ u_i to w; ⟨g, s_i⟩ w to u_i."""

    @staticmethod
    def forward(ctx: Any, num_sources: int, read_BSN: Tensor, *tensors: Tensor) -> Tensor:
        sources, writes = tensors[:num_sources], tensors[num_sources:]
        ctx.num_sources = num_sources
        ctx.save_for_backward(read_BSN, *tensors)
        h_BSD = _coefficient(read_BSN, None) * sources[0]
        for source_BSD, write_BSN in zip(sources[1:], writes, strict=True):
            h_BSD += _coefficient(read_BSN, write_BSN) * source_BSD
        return h_BSD.to(sources[0].dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BSD: Tensor) -> tuple[Tensor | None, ...]:
        read_BSN, *tensors = ctx.saved_tensors
        sources, writes = tensors[: ctx.num_sources], tensors[ctx.num_sources :]
        grad_BSD = grad_BSD.to(read_BSN.dtype)
        grad_read_BSN = torch.zeros_like(read_BSN)
        grad_read_BSN[..., :1] = (grad_BSD * sources[0]).sum(-1, keepdim=True)
        grad_sources = [(_coefficient(read_BSN, None) * grad_BSD).to(sources[0].dtype)]
        grad_writes = []
        for source_BSD, write_BSN in zip(sources[1:], writes, strict=True):
            grad_coefficient_BS1 = (grad_BSD * source_BSD).sum(-1, keepdim=True)
            grad_read_BSN += grad_coefficient_BS1 * write_BSN
            grad_writes.append(grad_coefficient_BS1 * read_BSN)
            grad_sources.append((_coefficient(read_BSN, write_BSN) * grad_BSD).to(source_BSD.dtype))
        return None, grad_read_BSN, *grad_sources, *grad_writes


def _coefficient(read_BSN: Tensor, write_BSN: Tensor | None) -> Tensor:
    """⟨w, u⟩ per token, [B, S, 1]; no write means one-hot on slot 0."""
    return read_BSN[..., :1] if write_BSN is None else (read_BSN * write_BSN).sum(-1, keepdim=True)
