"""The tensor axis as the model sees it: what a rank holds of heads, columns and vocabulary, and how states pass between ranks.

                    states between blocks             sum over ranks    where every rank needs all tokens
    size 1          [T, D]                            nothing           nothing
    replicated      [T, D], the same on every rank    all-reduce        nothing (backward: all-reduce)
    sequence_parallel   [T/size, D], this rank's      reduce-scatter    all-gather

T = B·S tokens, batch-major. The model asks for what it needs by name and never which of the three it runs in.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megamesh.parallel import collectives
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.random import split_stream


@dataclass(frozen=True)
class TensorParallel:
    """Size of the axis, this process's place on it, and whether states between blocks are split over it."""

    size: int = 1
    rank: int = 0
    group: dist.ProcessGroup | None = None
    sequence_parallel: bool = False

    @classmethod
    def on(cls, mesh: ProcessMesh, *, sequence_parallel: bool = False) -> "TensorParallel":
        """The tensor axis of a process mesh."""
        if mesh.size("tp") == 1:
            return cls()
        return cls(mesh.size("tp"), mesh.rank("tp"), mesh.group("tp"), sequence_parallel)

    def share(self, total: int) -> int:
        """How many of `total` heads, columns or rows each rank holds."""
        assert total % self.size == 0, f"{total} do not divide over {self.size} tensor-parallel ranks"
        return total // self.size

    def reduce(self, shares_TD: Tensor) -> Tensor:
        """States from every rank's share [T, D] of a sum (consumed: it may be summed in place)."""
        if self.group is None:
            return shares_TD
        if self.sequence_parallel:
            return collectives.sum_shares_to_tokens(shares_TD, self.group)
        return collectives.sum_shares(shares_TD, self.group)

    def all_tokens(self, h_TD: Tensor) -> Tensor:
        """States of all tokens [T, D], for a computation that differs from rank to rank; gradients are summed."""
        if self.group is None:
            return h_TD
        if self.sequence_parallel:
            return collectives.gather_tokens(h_TD, self.group)
        return collectives.share_states(h_TD, self.group)

    def own_tokens(self, x_T: Tensor) -> Tensor:
        """Of something per token that needs no gradient ([T, …]), what belongs to this rank's states."""
        return collectives.own_tokens(x_T, self.group) if self.group is not None and self.sequence_parallel else x_T

    def split(self, *states_TD: Tensor, num_views: int = 0) -> tuple[Tensor, ...]:
        """This rank's tokens of states (the first `num_views` as views of them, the others copied); what it has already under sequence
        parallelism, and all of them without gradients."""
        group = self._highway_group
        return states_TD if group is None else collectives.split_tokens(group, *states_TD, num_views=num_views)

    def join(self, h_TD: Tensor) -> tuple[Tensor, Tensor]:
        """States again, from the tokens that `split` left to each rank; and these tokens, in the memory of the states."""
        group = self._highway_group
        return (h_TD, h_TD) if group is None else collectives.join_tokens(h_TD, group)

    def gather_columns(self, x: Tensor) -> Tensor:
        """[…, n] of every rank, joined to […, size·n]; no gradient."""
        return x if self.group is None else collectives.gather_columns(x, self.group)

    def dropout_of_states(self) -> AbstractContextManager[None]:
        """Random stream for dropout on states: the same on all ranks where they hold the same states."""
        return split_stream(self.rank) if self.sequence_parallel else nullcontext()

    def dropout_of_shares(self) -> AbstractContextManager[None]:
        """Random stream for dropout on what is split in any case (attention heads): another one on each rank."""
        return split_stream(self.rank) if self.size > 1 else nullcontext()

    @property
    def _highway_group(self) -> dist.ProcessGroup | None:
        """The ranks that divide replicated states between them; without gradients there is nothing to keep, so nothing to divide."""
        return self.group if torch.is_grad_enabled() and not self.sequence_parallel else None


SINGLE = TensorParallel()
"""No tensor parallelism."""
