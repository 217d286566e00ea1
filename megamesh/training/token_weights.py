"""How much each token counts in a step: all counted ones alike, wherever they stand.

    masks (0 or 1) of this rank's micro-batches ──Σ over micro-batches and data-parallel ranks──▶ weights = mask · positions / counted

The engine takes the mean over micro-batches and data-parallel ranks, and the head over a micro-batch's positions. With these weights that
is the mean over the counted tokens of the global batch: labels and padding have the same effect at any micro-batch size and layout.
GPT-NeoX takes the mean of the micro-batches' own means, where a token counts the more, the fewer are counted beside it.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from megamesh.data.samples.batch import Batch
from megamesh.parallel.mesh import ProcessMesh

log = logging.getLogger(__name__)


def weigh_tokens(batches: Sequence[Batch], mesh: ProcessMesh, device: torch.device) -> list[Batch]:
    """The micro-batches of a step on this data-parallel rank, their masks made weights with the mean 1 over the global batch.

    All weights are 0, with a warning, where no token is counted. A collective of the data-parallel axis.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        sums += torch.tensor([batch.loss_mask_BS.numel(), float(batch.loss_mask_BS.sum())], dtype=torch.float64)
    sums = sums.to(device)
    dist.all_reduce(sums, group=mesh.group("dp"))
    num_positions, num_counted = sums.tolist()
    if not num_counted and dist.get_rank() == 0:
        log.warning("no token of this step's samples counts in the loss: its loss and gradients are 0")
    factor = num_positions / num_counted if num_counted else 0.0
    return [replace(batch, loss_mask_BS=batch.loss_mask_BS * factor) for batch in batches]
