"""The learned parts of the recursion schemes: MeSH's routers, and the mixing weights of `static` and `dynamic`.

Parameters are named `routers.{t}.…`: for MeSH t = 0 is the transitional cycle and t + 1 belongs to loop t; for static and
dynamic t is the loop. They are never shared between steps.

Letters: T tokens of this rank, D hidden size, N slots, 3 mixed states (core output, h(0), h_emb).
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


class StaticMixer(nn.Module):
    """Learned scalars a1, a2, a3, the same for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3))

    def forward(self, h_TD: Tensor) -> Tensor:
        """Coefficients [3] in fp32; the state is not read."""
        return self.weight.to(torch.promote_types(h_TD.dtype, torch.float32))


class DynamicMixer(RouterLinear):
    """Scalars a1, a2, a3 of each token, [T, 3] in fp32, computed from h(t)."""

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 3)
