"""What the core's next input is made of: the recursion schemes of an exported MegaMesh model. This file travels with the export.

    h_emb, prelude output ──enter──▶ h(0) ──core──▶ h_m(0) ──advance(0)──▶ h(1) … ──advance(K−1)──▶ h(K)

The rest of the model uses `build_routers` and `build_recursion`. The export of a scheme that is a class of its own has another file here.

Equations are those of "MeSH: Memory-as-State-Highways for Recursive Transformers" (arXiv 2510.07739).

Letters: B batch, S sequence, D hidden size, N slots, K loops.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_megamesh import MegaMeshConfig

PLAIN_MIX = [1.0, 0.0, 0.0]  # a1, a2, a3 at which static and dynamic are plain recursion


class MegaMeshRouterLinear(nn.Linear):
    """A linear whose result is fp32 whatever the model's precision, also under autocast.

    `start_weight` and `start_bias` are the values of a model that is not loaded; None draws the weight, and sets the bias to 0.
    """

    def __init__(
        self, width: int, num_outputs: int, start_weight: float | None = None, start_bias: list[float] | None = None
    ):
        super().__init__(width, num_outputs)
        self.start_weight, self.start_bias = start_weight, start_bias

    def forward(self, h_BSD: Tensor) -> Tensor:
        wide = torch.promote_types(h_BSD.dtype, torch.float32)
        with torch.autocast(device_type=h_BSD.device.type, enabled=False):
            return F.linear(h_BSD.to(wide), self.weight.to(wide), self.bias.to(wide))

    def start_values(self) -> dict[str, Tensor]:
        """Values of a model that is not loaded, by parameter; without one, those of an ordinary linear."""
        values = {} if self.start_weight is None else {"weight": torch.full_like(self.weight, self.start_weight)}
        if self.start_bias is not None:
            values["bias"] = torch.tensor(self.start_bias, dtype=self.bias.dtype)
        return values


class MegaMeshRouter(nn.Module):
    """One router set: where a state is written to, and what is read next (MeSH eq. 3)."""

    def __init__(self, config: MegaMeshConfig, step: int):
        super().__init__()
        slots = config.mesh_num_slots or 0
        bias = [0.0] * slots
        if config.mesh_router_init == "slot":
            bias[step + 1] = config.mesh_router_slot_bias
        weight = None if config.mesh_router_init == "normal" else 0.0
        self.write = MegaMeshRouterLinear(config.hidden_size, slots, weight, bias)
        self.read = MegaMeshRouterLinear(config.hidden_size, slots, weight, bias)

    def forward(self, h_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return self.write(h_BSD).softmax(-1), self.read(h_BSD).softmax(-1)


class MegaMeshStaticMixer(nn.Module):
    """Learned scalars a1, a2, a3, the same for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3))

    def start_values(self) -> dict[str, Tensor]:
        return {"weight": torch.tensor(PLAIN_MIX, dtype=self.weight.dtype)}

    def forward(self, h_BSD: Tensor) -> Tensor:
        return self.weight.to(torch.promote_types(h_BSD.dtype, torch.float32))


class SumRecursion:
    """h(t+1) = f_core(h(t)) + the sum of any of h(t) (residual), h(0) (anchor), h_emb (anchor*); base adds none (eq. 1)."""

    def __init__(self, config: MegaMeshConfig, routers: nn.ModuleList, h_emb_BSD: Tensor, h_pre_BSD: Tensor):
        self.terms = {term: h_emb_BSD if term == "anchor*" else h_pre_BSD for term in config.scheme_terms}
        self.h_0_BSD = h_pre_BSD

    def enter(self) -> Tensor:
        return self.h_0_BSD

    def advance(self, t: int, h_m_BSD: Tensor) -> Tensor:
        for state_BSD in self.terms.values():
            h_m_BSD = h_m_BSD + state_BSD
        if "residual" in self.terms:
            self.terms["residual"] = h_m_BSD
        return h_m_BSD


class MixRecursion:
    """h(t+1) = a1·f_core(h(t)) + a2·h(0) + a3·h_emb, the scalars from mixer t (`static`, `dynamic`)."""

    def __init__(self, config: MegaMeshConfig, routers: nn.ModuleList, h_emb_BSD: Tensor, h_pre_BSD: Tensor):
        self.mixers, self.h_emb_BSD, self.h_0_BSD, self.h_BSD = routers, h_emb_BSD, h_pre_BSD, h_pre_BSD

    def enter(self) -> Tensor:
        return self.h_0_BSD

    def advance(self, t: int, h_m_BSD: Tensor) -> Tensor:
        a = self.mixers[t](self.h_BSD)
        mixed_BSD = a[..., 0:1] * h_m_BSD + a[..., 1:2] * self.h_0_BSD + a[..., 2:3] * self.h_emb_BSD
        self.h_BSD = mixed_BSD.to(h_m_BSD.dtype)
        return self.h_BSD


class MeshRecursion:
    """Memory-as-State-Highways in the unrolled form: h = Σ_i ⟨w_read, u_i⟩ · s_i, summed in fp32 (eq. 6-7).

    Sources s_i: h_emb (alone in slot 0), the prelude's output, then one core output per loop; u_i: how s_i was written over the slots.
    """

    def __init__(self, config: MegaMeshConfig, routers: nn.ModuleList, h_emb_BSD: Tensor, h_pre_BSD: Tensor):
        self.routers, self.sources = routers, [h_emb_BSD, h_pre_BSD]
        self.writes: list[Tensor] = []
        self.h_BSD = h_emb_BSD if config.mesh_transition_input == "h_emb" else h_pre_BSD

    def enter(self) -> Tensor:
        return self._route(0)

    def advance(self, t: int, h_m_BSD: Tensor) -> Tensor:
        self.sources.append(h_m_BSD)
        return self._route(t + 1)

    def _route(self, step: int) -> Tensor:
        write_BSN, read_BSN = self.routers[step](self.h_BSD)
        self.writes.append(write_BSN)
        total_BSD = read_BSN[..., :1] * self.sources[0]
        for source_BSD, written_BSN in zip(self.sources[1:], self.writes, strict=True):
            total_BSD = total_BSD + (read_BSN * written_BSN).sum(-1, keepdim=True) * source_BSD
        self.h_BSD = total_BSD.to(self.sources[0].dtype)
        return self.h_BSD


def build_recursion(config: MegaMeshConfig, routers: nn.ModuleList, h_emb_BSD: Tensor, h_pre_BSD: Tensor) -> Any:
    """The configured scheme over the states of one forward pass."""
    kinds: dict[str, Any] = {"mesh": MeshRecursion, "static": MixRecursion, "dynamic": MixRecursion}
    return kinds.get(config.recursion_scheme, SumRecursion)(config, routers, h_emb_BSD, h_pre_BSD)


def build_routers(config: MegaMeshConfig) -> nn.ModuleList:
    """The learned modules of the scheme: for mesh one set per loop and one for the transition, for mixers one per loop."""
    if config.has_own_scheme:
        raise ValueError(f"recursion_scheme={config.recursion_scheme!r} needs the recursion_megamesh.py of its export")
    if not config.num_loops:
        return nn.ModuleList()
    if config.recursion_scheme == "mesh":
        return nn.ModuleList(MegaMeshRouter(config, step) for step in range(config.num_loops + 1))
    if config.recursion_scheme == "static":
        return nn.ModuleList(MegaMeshStaticMixer() for _ in range(config.num_loops))
    if config.recursion_scheme == "dynamic":
        return nn.ModuleList(
            MegaMeshRouterLinear(config.hidden_size, 3, start_bias=PLAIN_MIX) for _ in range(config.num_loops)
        )
    return nn.ModuleList()
