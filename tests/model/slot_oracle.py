"""MeSH with a buffer that really exists: eq. 2-5 step by step, the oracle for the unrolled form."""

import torch
from torch import Tensor, nn


class SlotBuffer:
    """Slots m_0 … m_{N−1} as one tensor [N, T, D]."""

    def __init__(self, h_emb_TD: Tensor, num_slots: int) -> None:
        first_NTD = torch.zeros(num_slots, *h_emb_TD.shape, dtype=h_emb_TD.dtype)
        first_NTD[0] = 1.0
        self.slots_NTD = first_NTD * h_emb_TD  # eq. 2

    def write(self, state_TD: Tensor, write_TN: Tensor) -> None:
        self.slots_NTD = self.slots_NTD + write_TN.movedim(-1, 0)[..., None] * state_TD  # eq. 5

    def read(self, read_TN: Tensor) -> Tensor:
        return (read_TN.movedim(-1, 0)[..., None] * self.slots_NTD).sum(0)


def route(linear: nn.Linear, h_TD: Tensor) -> Tensor:
    return torch.softmax(h_TD @ linear.weight.T + linear.bias, dim=-1)  # eq. 3


def run_mesh(h_emb_TD, h_pre_TD, core, routers, num_slots: int, transition_input: str) -> list[Tensor]:
    """[h(0) … h(K)] for a core called as core(h) and routers with .write and .read linears."""
    buffer = SlotBuffer(h_emb_TD, num_slots)
    control_TD = h_emb_TD if transition_input == "h_emb" else h_pre_TD
    buffer.write(h_pre_TD, route(routers[0].write, control_TD))
    reads = [buffer.read(route(routers[0].read, control_TD))]
    for router in list(routers)[1:]:
        h_TD = reads[-1]
        h_m_TD = core(h_TD)  # eq. 4
        buffer.write(h_m_TD, route(router.write, h_TD))
        reads.append(buffer.read(route(router.read, h_TD)))
    return reads
