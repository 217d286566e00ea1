"""Activation checkpointing: which stretches of blocks keep their activations, and which compute them again in backward.

The non-reentrant form of torch is used: it replays the random state, so dropout is the same in both computations.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from megamesh.config.keys import TrainingConfig
from megamesh.model.attention import AttentionInputs


@dataclass(frozen=True)
class Recompute:
    """Keep everything (`blocks` 0), or keep only the input of each stretch of `blocks` blocks; None: of each whole stack."""

    blocks: int | None = 0

    @staticmethod
    def from_config(training: TrainingConfig) -> "Recompute":
        if not training.checkpoint_activations:
            return Recompute(0)
        return Recompute(training.checkpoint_num_layers if training.checkpoint_activations_per == "block" else None)

    def run(self, blocks: nn.ModuleList, h_TD: Tensor, inputs: AttentionInputs, first_layer: int) -> Tensor:
        """Run consecutive blocks, the first of which is compute layer `first_layer`: [T, D] → [T, D]."""
        if self.blocks == 0 or not is_grad_enabled():
            return _run(blocks, h_TD, inputs, first_layer)
        length = self.blocks or max(len(blocks), 1)
        for start in range(0, len(blocks), length):
            stretch: Callable[..., Tensor] = _run
            # ZeRO 3 stores parameters in pieces between uses, which the default check would take for a changed tensor.
            h_TD = checkpoint(
                stretch,
                blocks[start : start + length],
                h_TD,
                inputs,
                first_layer + start,
                use_reentrant=False,
                determinism_check="none",
            )
        return h_TD


def _run(blocks: nn.ModuleList, h_TD: Tensor, inputs: AttentionInputs, first_layer: int) -> Tensor:
    for offset, block in enumerate(blocks):
        h_TD = block(h_TD, inputs, first_layer + offset)
    return h_TD
