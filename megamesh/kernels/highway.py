"""Reading the MeSH state buffer without ever building it (MeSH eq. 6-7).

    sources s_0 … s_{I-1}  [T, D]   s_0 = h_emb, s_1 = the prelude's output, then one core output per loop
    writes  u_1 … u_{I-1}  [T, N]   how s_i was written over the slots; u_0 is one-hot on slot 0
    read    w              [T, N]   how the slots are read now

    h = Σ_i ⟨w, u_i⟩ · s_i             one scalar per token and source

A write only ever adds a per-token multiple of one tensor to each slot, so the sum above equals reading the buffer in real
arithmetic. Scalars and the sum are kept in fp32 (or the sources' own type where that is wider); the result has the
sources' type. Backward keeps no tensor of its own: sources are block outputs, and writes and reads are [T, N].

Letters: T tokens, D hidden size, N slots, I sources so far.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def highway_read(read_TN: Tensor, writes_TN: Sequence[Tensor], sources_TD: Sequence[Tensor]) -> Tensor:
    """State [T, D] that a router reads from the buffer, by the unrolled form (MeSH eq. 7).

    `writes_TN[i]` belongs to `sources_TD[i + 1]`; the first source sits alone in slot 0 (eq. 2).
    """
    assert len(writes_TN) == len(sources_TD) - 1, "every source but the first is written by a router"
    result: Tensor = _HighwayRead.apply(len(sources_TD), read_TN, *sources_TD, *writes_TN)
    return result


class _HighwayRead(torch.autograd.Function):
    """Forward: Σ_i c_i s_i with c_i = ⟨w, u_i⟩. Backward: c_i g to s_i; ⟨g, s_i⟩ u_i to w; ⟨g, s_i⟩ w to u_i."""

    @staticmethod
    def forward(ctx: Any, num_sources: int, read_TN: Tensor, *tensors: Tensor) -> Tensor:
        sources, writes = tensors[:num_sources], tensors[num_sources:]
        ctx.num_sources = num_sources
        ctx.save_for_backward(read_TN, *tensors)
        h_TD = _coefficient(read_TN, None) * sources[0]
        for source_TD, write_TN in zip(sources[1:], writes, strict=True):
            h_TD += _coefficient(read_TN, write_TN) * source_TD
        return h_TD.to(sources[0].dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        read_TN, *tensors = ctx.saved_tensors
        sources, writes = tensors[: ctx.num_sources], tensors[ctx.num_sources :]
        grad_TD = grad_TD.to(read_TN.dtype)
        grad_read_TN = torch.zeros_like(read_TN)
        grad_read_TN[..., :1] = (grad_TD * sources[0]).sum(-1, keepdim=True)
        grad_sources = [(_coefficient(read_TN, None) * grad_TD).to(sources[0].dtype)]
        grad_writes = []
        for source_TD, write_TN in zip(sources[1:], writes, strict=True):
            grad_coefficient_T1 = (grad_TD * source_TD).sum(-1, keepdim=True)
            grad_read_TN += grad_coefficient_T1 * write_TN
            grad_writes.append(grad_coefficient_T1 * read_TN)
            grad_sources.append((_coefficient(read_TN, write_TN) * grad_TD).to(source_TD.dtype))
        return None, grad_read_TN, *grad_sources, *grad_writes


def _coefficient(read_TN: Tensor, write_TN: Tensor | None) -> Tensor:
    """⟨w, u⟩ per token, [T, 1]; no write means one-hot on slot 0."""
    return read_TN[..., :1] if write_TN is None else (read_TN * write_TN).sum(-1, keepdim=True)
