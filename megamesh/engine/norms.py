"""Norms of what is cut and copied over ranks: every element counts once.

    this rank's pieces ──‖·‖² ÷ copies──▶ one number per parameter of the whole model ──one all-reduce over all ranks──▶ √

The copies of a piece: tensor ranks hold the parameters alike that are not cut over them, and data-parallel ranks hold whole tensors alike,
while the fragments of ZeRO are each on one of them. A pipeline rank reports its own parameters only.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.shards import ShardSpec


class ShardedNorms:
    """Norms over all ranks by the names of the whole model's parameters, in model order; `shards` are this rank's."""

    def __init__(
        self, names: Sequence[str], shards: Mapping[str, ShardSpec], mesh: ProcessMesh, device: torch.device
    ) -> None:
        self._names, self._shards, self._mesh, self._device = list(names), shards, mesh, device
        self._indices = {name: index for index, name in enumerate(names)}

    @torch.no_grad()
    def total(
        self, pieces: Mapping[str, Tensor], *, alike_over_data_parallel: bool, share: Tensor | float = 0.0
    ) -> tuple[dict[str, float], float]:
        """The norms, and the sum of all ranks' `share`, in one all-reduce; in fp64. A collective.

        `alike_over_data_parallel`: whether the pieces are the same on all data-parallel ranks.
        """
        report = torch.zeros(1 + len(self._names), dtype=torch.float64, device=self._device)
        report[0] = share
        if pieces:
            squares = torch.stack(torch._foreach_norm(list(pieces.values()))).double().square()
            indices = torch.tensor([1 + self._indices[name] for name in pieces], device=self._device)
            copies = torch.tensor([self._copies(name, alike_over_data_parallel) for name in pieces])
            report[indices] = squares / copies.to(self._device)
        dist.all_reduce(report)
        total, *squares_all = report.tolist()
        return {name: _root(square) for name, square in zip(self._names, squares_all, strict=True)}, total

    def _copies(self, name: str, alike_over_data_parallel: bool) -> int:
        data_parallel = self._mesh.size("dp") if alike_over_data_parallel else 1
        return data_parallel * (self._mesh.size("tp") if self._shards[name].dim is None else 1)


def _root(square: float) -> float:
    return math.sqrt(square) if square >= 0 else math.nan
