"""Head and cross entropy in one operation, over chunks of tokens and slices of the vocabulary.

    h [T, D] ──chunk──▶ this rank's logits [C, V/size] ──▶ log-sum-exp, label's logit ──all-gather of [2, C]──▶ loss
                                                       └──▶ grad_logits ──▶ share of grad_h [C, D], grad_W += …

[T, V] logits never exist and the vocabulary is never gathered. Gradients are computed in forward, chunk by chunk, and only scaled in
backward (that of h where it lies, so that backward can run only once): the head's matrix product runs as often as in the plain form (once
forward, twice for gradients) and nothing is recomputed.
Logits are taken to fp32 before the softmax; the weight's gradient is summed over chunks in fp32. What is kept is not divided by the
number of tokens: fp16 could not hold it.

Letters: T tokens, C tokens of one chunk, D hidden size, V (padded) vocabulary.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from megamesh.parallel.collectives import start_all_gather


def vocab_parallel_cross_entropy(
    h_TD: Tensor,
    weight_VD: Tensor,
    labels_T: Tensor,
    weights_T: Tensor,
    *,
    chunk_tokens: int,
    num_real_rows: int,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Mean over all T tokens of cross entropy × `weights_T`, a scalar in fp32 or wider, the same on every rank.

    h [T, D] of all tokens and this rank's rows of the head's weight, of one floating type; labels [T] int64 among the global ids; at
    most `chunk_tokens` rows of logits exist at once. Rows of the weight from `num_real_rows` on are padding: no token, no gradient. The
    gradient of h is this rank's share of a sum over ranks. A token of weight 0 has no part in loss or gradients.
    """
    loss: Tensor = _VocabParallelCrossEntropy.apply(
        h_TD, weight_VD, labels_T, weights_T, chunk_tokens, num_real_rows, group, torch.is_grad_enabled()
    )
    return loss


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """Forward: mean weighted cross entropy, and its gradients. Backward: those gradients, times the incoming scalar."""

    @staticmethod
    def forward(
        ctx: Any,
        h_TD: Tensor,
        weight_VD: Tensor,
        labels_T: Tensor,
        weights_T: Tensor,
        chunk_tokens: int,
        num_real_rows: int,
        group: dist.ProcessGroup | None,
        with_gradients: bool,
    ) -> Tensor:
        wide = torch.promote_types(h_TD.dtype, torch.float32)
        weights_T = weights_T.to(wide)
        first_row = 0 if group is None else group.rank() * weight_VD.shape[0]
        loss = torch.zeros((), dtype=wide, device=h_TD.device)
        grad_h_TD = torch.empty_like(h_TD) if with_gradients else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if with_gradients else None
        for start in range(0, h_TD.shape[0], chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            logits_CV = F.linear(h_TD[chunk], weight_VD).to(wide)
            logits_CV[:, num_real_rows:] = -math.inf
            row_C1 = labels_T[chunk, None] - first_row
            here_C1 = (row_C1 >= 0) & (row_C1 < weight_VD.shape[0])
            row_C1, weights_C1 = row_C1.masked_fill(~here_C1, 0), weights_T[chunk, None]
            log_probs_CV, label_log_prob_C1 = _log_softmax(logits_CV, row_C1, here_C1, group)
            loss -= (label_log_prob_C1 * weights_C1).sum()
            if grad_h_TD is None or grad_weight_VD is None:
                continue
            grad_logits_CV = log_probs_CV.exp_().scatter_add_(1, row_C1, -here_C1.to(wide))
            grad_logits_CV = grad_logits_CV.mul_(weights_C1).to(h_TD.dtype)
            torch.mm(grad_logits_CV, weight_VD, out=grad_h_TD[chunk])
            grad_weight_VD += grad_logits_CV.T @ h_TD[chunk]
        if grad_h_TD is not None and grad_weight_VD is not None:
            ctx.save_for_backward(grad_h_TD, grad_weight_VD)
            ctx.weight_dtype = weight_VD.dtype
        return loss / len(h_TD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_h_TD, grad_weight_VD = ctx.saved_tensors
        factor = (grad / len(grad_h_TD)).view(1)  # one dimension: a scalar would take the other's type, and be rounded
        empty_VD = torch.empty_like(grad_weight_VD, dtype=ctx.weight_dtype)
        return grad_h_TD.mul_(factor), torch.mul(grad_weight_VD, factor, out=empty_VD), *(None,) * 6


def _log_softmax(
    logits_CV: Tensor, row_C1: Tensor, here_C1: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of this rank's columns over the whole vocabulary, and the label's, [C, 1], whoever holds it."""
    log_probs_CV = logits_CV.log_softmax(-1)
    if group is None:
        return log_probs_CV, log_probs_CV.gather(1, row_C1)
    # The log-sum-exp of this rank's columns, from the first of them, which is never padding.
    own_C1 = logits_CV[:, :1] - log_probs_CV[:, :1]
    label_C1 = logits_CV.gather(1, row_C1).where(here_C1, 0)
    told_1C2 = torch.cat((own_C1, label_C1), dim=1)[None]
    own_RC, label_RC = start_all_gather(told_1C2, group, "cross_entropy", "forward").wait().unbind(2)
    total_C1 = own_RC.logsumexp(0)[:, None]
    return log_probs_CV.add_(own_C1 - total_C1), label_RC.sum(0)[:, None] - total_C1
