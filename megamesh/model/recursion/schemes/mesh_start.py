"""How near MeSH starts to plain recursion, h(0) = f_pre(h_emb), h(t+1) = f_core(h(t)).

The start: zero weights; in router set t the bias β on slot t+1 of both routers, 0 on the others (`mesh_router_init: slot`).

A softmax is never one-hot. With q = 1/(e^β + N − 1) on every slot but the chosen one, whose share is p = 1 − (N−1)·q, the unrolled read
(MeSH eq. 7) of step t has the coefficients

    the state just written   p² + (N−1)·q² = 1 − (N−1)·b        each earlier one   b = 2pq + (N−2)·q²        h_emb   q

so that it is within `deviation` = (N−1+K)·b + q < (2N+2K−1)·e^−β of plain recursion, as a share of the largest state there is. Gradients of
the routers are multiplied by q, about e^−β, until they have moved. Adam divides such a factor out again, as long as the gradients stay
above its eps.

Exactness, as β grows, needs a slot for each of the K+1 written states beside slot 0, which holds h_emb: to read one state alone, write
and read must be one-hot on the same slot, and whatever else stands there is read too. With fewer slots states go round: set t uses slot
(t+1) mod N. The first N−1 reads are then near plain recursion; each later one adds what stands in its slot already, h_emb first (as
anchor* would), then the oldest states: those that are smallest in a residual stream that grows. `deviation` counts them in full.
"""

import math
from operator import mul


def written_slot(step: int, num_slots: int) -> int:
    """The slot that router set `step` writes to and reads from."""
    return (step + 1) % num_slots


def read_coefficients(num_loops: int, num_slots: int, bias: float) -> list[list[float]]:
    """For each router set, what its first read takes of h_emb and of every state written so far, the newest last."""
    rest = unchosen_weight(num_slots, bias)
    chosen = 1 - (num_slots - 1) * rest
    shares = [
        [chosen if slot == written_slot(step, num_slots) else rest for slot in range(num_slots)]
        for step in range(num_loops + 1)
    ]
    return [
        [read[0], *(sum(map(mul, read, written)) for written in shares[: step + 1])] for step, read in enumerate(shares)
    ]


def unchosen_weight(num_slots: int, bias: float) -> float:
    """q, the weight of a slot that is not chosen: what the gradients of its logits are multiplied by."""
    return 1 / (math.exp(bias) + num_slots - 1)


def deviation(num_loops: int, num_slots: int, bias: float) -> float:
    """The most that a read of the first forward differs from plain recursion, as a share of the largest state."""
    return max(abs(1 - own) + sum(others) for *others, own in read_coefficients(num_loops, num_slots, bias))


def bias_for(num_loops: int, num_slots: int, bound: float) -> float:
    """The β, rounded up to a tenth, with which `deviation` is below `bound`, if every state has a slot of its own."""
    return math.ceil(10 * math.log((2 * num_slots + 2 * num_loops - 1) / bound)) / 10
