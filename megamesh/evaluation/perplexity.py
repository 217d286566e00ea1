"""Validation loss and perplexity over a fixed set of samples.

    this rank's micro-batches ──engine.evaluate──▶ Σ loss·tokens, Σ counted tokens ──sum over data-parallel ranks──▶ mean loss

Every evaluation of a run sees the same samples, so that its numbers can be compared. Tensor- and pipeline-parallel ranks read the same
samples and get the same loss: they are not added up.
"""

import math
from collections.abc import Iterable
from itertools import islice

import torch
import torch.distributed as dist

from megamesh.data.samples.batch import Batch
from megamesh.engine.engine import TrainingEngine
from megamesh.parallel.mesh import ProcessMesh

LARGEST_EXPONENT = 20.0


def mean_loss(engine: TrainingEngine, mesh: ProcessMesh, batches: Iterable[Batch]) -> float:
    """Mean cross entropy in nats per counted token over all data-parallel ranks' batches; every rank gets it. NaN where none is counted."""
    total = torch.zeros(2, dtype=torch.float64, device=engine.device)
    remaining = iter(batches)
    while on_host := list(islice(remaining, engine.accumulation_steps)):  # as many at a time as in a training step
        group = [batch.to(engine.device) for batch in on_host]
        num_counted = torch.stack([batch.loss_mask_BS.sum() for batch in group]).double()
        losses = engine.evaluate([batch.inputs() for batch in group]).double()
        num_tokens = torch.tensor([batch.loss_mask_BS.numel() for batch in group], device=engine.device)
        total += torch.stack(((losses * num_tokens).sum(), num_counted.sum()))
    dist.all_reduce(total, group=mesh.group("dp"))
    loss_sum, tokens = total.tolist()
    return loss_sum / tokens if tokens else math.nan


def perplexity(loss: float) -> float:
    """exp(loss), cut at e^20 so that an untrained model prints a number."""
    return math.exp(min(loss, LARGEST_EXPONENT))
