"""The remote code of own_scheme.py: an export's recursion_megamesh.py.

Letters: B batch, S sequence, D hidden size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gain(nn.Linear):
    """One number per token, in fp32; `start_values` are those of a model that is not loaded."""

    def __init__(self, width: int, momentum: float):
        super().__init__(width, 1)
        self.momentum = momentum

    def start_values(self) -> dict[str, Tensor]:
        return {"bias": torch.tensor([self.momentum], dtype=self.bias.dtype)}

    def forward(self, v_BSD: Tensor) -> Tensor:
        wide = torch.promote_types(v_BSD.dtype, torch.float32)
        return F.linear(v_BSD.to(wide), self.weight.to(wide), self.bias.to(wide))


class MomentumRecursion:
    """h(t+1) = h_m(t) + g_t · v(t)."""

    def __init__(self, gains: nn.ModuleList, h_emb_BSD: Tensor, h_pre_BSD: Tensor):
        self.gains, self.h_BSD, self.v_BSD = gains, h_pre_BSD, h_pre_BSD - h_emb_BSD

    def enter(self) -> Tensor:
        return self.h_BSD

    def advance(self, t: int, h_m_BSD: Tensor) -> Tensor:
        h_BSD = h_m_BSD + (self.gains[t](self.v_BSD) * self.v_BSD).to(h_m_BSD.dtype)
        self.h_BSD, self.v_BSD = h_BSD, h_BSD - self.h_BSD
        return h_BSD


def build_recursion(config: Any, routers: nn.ModuleList, h_emb_BSD: Tensor, h_pre_BSD: Tensor) -> MomentumRecursion:
    return MomentumRecursion(routers, h_emb_BSD, h_pre_BSD)


def build_routers(config: Any) -> nn.ModuleList:
    momentum = config.recursion_scheme_params["momentum"]
    return nn.ModuleList(Gain(config.hidden_size, momentum) for _ in range(config.num_loops))
