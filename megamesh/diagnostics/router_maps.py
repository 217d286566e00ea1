"""Who writes to and reads from which slot: the mean routing of a MeSH model, per step.

    batches ──model──▶ every router's (write, read) [X, N] ──mean over tokens──▶ write_TN, read_TN

Letters: X tokens, N slots, T router sets (K + 1: the transitional cycle, then one per loop).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from megamesh.errors import CheckpointError
from megamesh.model.recursion.routers import Router
from megamesh.model.transformer import Transformer


@dataclass(frozen=True)
class RouterMaps:
    """Mean weights, each [T, N] with rows that sum to 1: row 0 is the transitional cycle, row t + 1 loop t."""

    write_TN: Tensor
    read_TN: Tensor


@torch.no_grad()
def router_maps(model: Transformer, token_batches: Iterable[Tensor]) -> RouterMaps:
    """Run the model on token ids [B, S] and average what its routers chose. CheckpointError where it has none."""
    routers = [router for router in model.routers if isinstance(router, Router)]
    if not routers:
        raise CheckpointError("the model has no MeSH routers to look at; recursion_scheme must be mesh")
    sums = torch.zeros(2, len(routers), routers[0].write.out_features, dtype=torch.float64)
    num_tokens = 0

    def observe(step: int, _router: nn.Module, _inputs: object, weights: tuple[Tensor, Tensor]) -> None:
        for kind, weights_XN in enumerate(weights):
            sums[kind, step] += weights_XN.double().sum(0).cpu()

    handles = [router.register_forward_hook(partial(observe, step)) for step, router in enumerate(routers)]
    try:
        for tokens_BS in token_batches:
            model.states(tokens_BS)
            num_tokens += tokens_BS.numel()
    finally:
        for handle in handles:
            handle.remove()
    return RouterMaps(*(sums / num_tokens))
