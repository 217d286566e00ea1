"""One micro-batch, shifted once.

    rows of S+1 tokens           ─▶ tokens = row[:-1], labels = row[1:], loss_mask = 1
    rows of S+1 labels beside it ─▶ labels = row[1:], loss_mask = 0 where one is negative

Shapes: B samples, S tokens. tokens_BS and labels_BS are int64, loss_mask_BS is float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Inputs, next tokens, and which of them count in the loss: 1 or 0, in training a weight."""

    tokens_BS: Tensor
    labels_BS: Tensor
    loss_mask_BS: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device; from pinned memory the copy does not block."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self.inputs()))

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the model's forward takes, in its order."""
        return self.tokens_BS, self.labels_BS, self.loss_mask_BS

    def pin_memory(self) -> "Batch":
        return Batch(*(tensor.pin_memory() for tensor in self.inputs()))


def make_batch(
    tokens: np.ndarray | Sequence[np.ndarray], labels: np.ndarray | Sequence[np.ndarray] | None = None
) -> Batch:
    """Rows of S+1 token ids, and of the labels at the same positions → Batch of S positions.

    Without labels the next token is the label, and every position counts; of labels, the negative ones do not count.
    """
    rows = _rows(tokens)
    labels_BS = (rows if labels is None else _rows(labels))[:, 1:].contiguous()
    if labels is None:
        return Batch(rows[:, :-1].contiguous(), labels_BS, torch.ones(labels_BS.shape, dtype=torch.float32))
    return Batch(rows[:, :-1].contiguous(), labels_BS.clamp(min=0), (labels_BS >= 0).float())


def _rows(rows: np.ndarray | Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.asarray(rows).astype(np.int64, copy=False))
