"""Modules that recursion schemes learn with: linears and scalars in fp32, and MeSH's routers.

Letters: T tokens of this rank, D hidden size, N slots.
"""

import torch
from torch import Tensor, nn

from megamesh.kernels.linear_fp32 import linear_fp32


class RouterLinear(nn.Linear):
    """A linear with bias whose result is fp32 whatever the model's precision."""

    def forward(self, h_TD: Tensor) -> Tensor:
        return linear_fp32(h_TD, self.weight, self.bias)


class Router(nn.Module):
    """One MeSH router set: where a state is written to, and what is read next (MeSH eq. 3)."""

    def __init__(self, hidden_size: int, num_slots: int):
        super().__init__()
        self.write = RouterLinear(hidden_size, num_slots)
        self.read = RouterLinear(hidden_size, num_slots)

    def forward(self, h_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Write and read weights, each [T, N] in fp32, summing to 1 over the slots."""
        return self.write(h_TD).softmax(-1), self.read(h_TD).softmax(-1)


class Scalars(nn.Module):
    """Learned scalars, the same for every token."""

    def __init__(self, num_scalars: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_scalars))

    def forward(self, h_TD: Tensor) -> Tensor:
        """The scalars in fp32 or wider; of the state only the type is read."""
        return self.weight.to(torch.promote_types(h_TD.dtype, torch.float32))
