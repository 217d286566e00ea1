"""Forward and backward of all micro-batches of a step: through a whole model one after the other, or round the ring all at once.

    micro-batches ──▶ gradients in DeepSpeed's hands, reduced over data-parallel ranks once ──▶ TrainingEngine looks at them and steps

Both are the same mean over micro-batches; DeepSpeed's step() is left to the engine.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from megamesh.pipeline.ring import Ring

MicroBatches = Iterable[tuple[Tensor, ...]]


class Passes(Protocol):
    """How a model is run."""

    def accumulate(self, micro_batches: MicroBatches, num_micro_batches: int, scale: float) -> Tensor:
        """Forward, and backward from mean loss × scale; the sum of the losses, 0 on ranks that see none."""
        ...

    def evaluate(self, micro_batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """Losses [n], in fp32 and on every rank, without gradients or dropout."""
        ...


class WholePasses:
    """A module (tokens, labels, mask) → loss that this process holds whole, or its tensor rank's part of."""

    def __init__(self, engine: Any):
        self._engine = engine

    def accumulate(self, micro_batches: MicroBatches, num_micro_batches: int, scale: float) -> Tensor:
        self._engine.train()
        losses = []
        for index, inputs in enumerate(micro_batches):
            if index:
                self._engine.step()  # not at the boundary of the accumulation: DeepSpeed only counts
            loss = self._engine(*inputs)
            losses.append(loss.detach().double())
            self._engine.backward(loss * scale)
        assert len(losses) == num_micro_batches, f"{len(losses)} micro-batches for {num_micro_batches}"
        return torch.stack(losses).sum()

    def evaluate(self, micro_batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
        self._engine.eval()
        return torch.stack([self._engine(*inputs).float() for inputs in micro_batches])


class RingPasses:
    """A pipeline rank's part of a model. DeepSpeed sees its gradients only, which its hooks take up in fp32 after every backward."""

    def __init__(self, engine: Any, ring: Ring):
        self._engine, self._ring = engine, ring

    def accumulate(self, micro_batches: MicroBatches, num_micro_batches: int, scale: float) -> Tensor:
        self._engine.train()
        self._engine.set_gradient_accumulation_boundary(False)
        loss = self._ring.train(micro_batches, num_micro_batches, scale)
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.allreduce_gradients()
        return loss

    def evaluate(self, micro_batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
        self._engine.eval()
        return self._ring.evaluate(micro_batches)
