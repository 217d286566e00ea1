"""MeSH with a buffer that really exists: eq. 2-5 step by step, the oracle for the unrolled form."""

import torch
from torch import Tensor, nn


class SlotBuffer:
    """Slots m_0 … m_{N−1} as one tensor [N, B, S, D]."""

    def __init__(self, h_emb_BSD: Tensor, num_slots: int):
        first_NBSD = torch.zeros(num_slots, *h_emb_BSD.shape, dtype=h_emb_BSD.dtype)
        first_NBSD[0] = 1.0
        self.slots_NBSD = first_NBSD * h_emb_BSD  # eq. 2

    def write(self, state_BSD: Tensor, write_BSN: Tensor) -> None:
        self.slots_NBSD = self.slots_NBSD + write_BSN.movedim(-1, 0)[..., None] * state_BSD  # eq. 5

    def read(self, read_BSN: Tensor) -> Tensor:
        return (read_BSN.movedim(-1, 0)[..., None] * self.slots_NBSD).sum(0)


def route(linear: nn.Linear, h_BSD: Tensor) -> Tensor:
    return torch.softmax(h_BSD @ linear.weight.T + linear.bias, dim=-1)  # eq. 3


def run_mesh(h_emb_BSD, h_pre_BSD, core, routers, num_slots: int, transition_input: str) -> list[Tensor]:
    """[h(0) … h(K)] for a core called as core(h) and routers with .write and .read linears."""
    buffer = SlotBuffer(h_emb_BSD, num_slots)
    control_BSD = h_emb_BSD if transition_input == "h_emb" else h_pre_BSD
    buffer.write(h_pre_BSD, route(routers[0].write, control_BSD))
    reads = [buffer.read(route(routers[0].read, control_BSD))]
    for router in list(routers)[1:]:
        h_BSD = reads[-1]
        h_m_BSD = core(h_BSD)  # eq. 4
        buffer.write(h_m_BSD, route(router.write, h_BSD))
        reads.append(buffer.read(route(router.read, h_BSD)))
    return reads
