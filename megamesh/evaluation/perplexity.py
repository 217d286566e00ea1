"""Validation loss and perplexity over a fixed set of samples.

    this rank's micro-batches ──engine.evaluate──▶ Σ loss·tokens, Σ tokens ──sum over data-parallel ranks──▶ mean loss

Every evaluation of a run sees the same samples, so that its numbers can be compared. Tensor-parallel ranks read the same samples and
get the same loss: they are not added up.
"""

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist

from megamesh.data.batch import Batch
from megamesh.engine.engine import TrainingEngine
from megamesh.parallel.mesh import ProcessMesh

LARGEST_EXPONENT = 20.0


def mean_loss(engine: TrainingEngine, mesh: ProcessMesh, batches: Iterable[Batch]) -> float:
    """Mean cross entropy in nats per counted token over all data-parallel ranks' batches; every rank gets it."""
    total = torch.zeros(2, dtype=torch.float64, device=engine.device)
    for on_host in batches:
        batch = on_host.to(engine.device)
        num_tokens = batch.loss_mask_BS.sum().double()
        total += torch.stack((engine.evaluate(batch.inputs()).double() * num_tokens, num_tokens))
    dist.all_reduce(total, group=mesh.group("dp"))
    loss_sum, tokens = total.tolist()
    return loss_sum / tokens


def perplexity(loss: float) -> float:
    """exp(loss), cut at e^20 so that an untrained model prints a number."""
    return math.exp(min(loss, LARGEST_EXPONENT))
