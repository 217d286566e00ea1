"""Head and cross entropy in one operation, over chunks of tokens, so that [B·S, V] logits never exist at once.

    h [T, D] ──chunk──▶ logits [C, V] ──▶ loss ──▶ grad_logits [C, V] ──▶ grad_h [C, D], grad_W += …

Gradients are computed in forward, chunk by chunk, and only scaled in backward: the head's matrix product runs as often as in
the plain form (once forward, twice for gradients) and nothing is recomputed. Logits are taken to fp32 before the softmax; the weight's
gradient is summed over chunks in fp32.

Letters: T tokens, C tokens of one chunk, D hidden size, V (padded) vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_cross_entropy(
    h_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, mask_T: Tensor, chunk_tokens: int
) -> Tensor:
    """Mean cross entropy over the tokens that `mask_T` (0 or 1) counts, a scalar in fp32 or wider.

    h [T, D] and weight [V, D] of one floating type, labels [T] int64 in [0, V), at most `chunk_tokens` rows of logits at once.
    A mask that counts nothing gives 0 and zero gradients.
    """
    loss: Tensor = _LinearCrossEntropy.apply(h_TD, weight_VD, labels_T, mask_T, chunk_tokens, torch.is_grad_enabled())
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Forward: mean masked cross entropy, and its gradients. Backward: those gradients, times the incoming scalar."""

    @staticmethod
    def forward(
        ctx: Any,
        h_TD: Tensor,
        weight_VD: Tensor,
        labels_T: Tensor,
        mask_T: Tensor,
        chunk_tokens: int,
        with_gradients: bool,
    ) -> Tensor:
        wide = torch.promote_types(h_TD.dtype, torch.float32)
        mask_T = mask_T.to(wide)
        scale_T = mask_T / mask_T.sum().clamp(min=1)
        loss = torch.zeros((), dtype=wide, device=h_TD.device)
        grad_h_TD = torch.empty_like(h_TD) if with_gradients else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if with_gradients else None
        for start in range(0, h_TD.shape[0], chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            log_probs_CV = torch.nn.functional.linear(h_TD[chunk], weight_VD).to(wide).log_softmax(-1)
            labels_C1, scale_C1 = labels_T[chunk, None], scale_T[chunk, None]
            loss -= (log_probs_CV.gather(1, labels_C1) * scale_C1).sum()
            if grad_h_TD is None or grad_weight_VD is None:
                continue
            grad_logits_CV = log_probs_CV.exp_().scatter_add_(
                1, labels_C1, log_probs_CV.new_full((1, 1), -1.0).expand_as(labels_C1)
            )
            grad_logits_CV = grad_logits_CV.mul_(scale_C1).to(h_TD.dtype)
            torch.mm(grad_logits_CV, weight_VD, out=grad_h_TD[chunk])
            grad_weight_VD += grad_logits_CV.T @ h_TD[chunk]
        if grad_h_TD is not None and grad_weight_VD is not None:
            ctx.save_for_backward(grad_h_TD, grad_weight_VD.to(weight_VD.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_h_TD, grad_weight_VD = ctx.saved_tensors
        return (
            grad_h_TD * grad.to(grad_h_TD.dtype),
            grad_weight_VD * grad.to(grad_weight_VD.dtype),
            None,
            None,
            None,
            None,
        )
