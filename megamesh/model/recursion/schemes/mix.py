"""static and dynamic: h(t+1) = a1·f_core(h(t)) + a2·h(0) + a3·h_emb, with learned scalars or scalars of each token.

Parameters are `{t}.…` for loop t, never shared between loops. Mixers work on this rank's tokens. They start at (1, 0, 0), plain recursion.

Letters: T tokens of this rank, D hidden size, 3 mixed states.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megamesh.model.recursion.scheme import OUR_REMOTE_CODE, Kept, Learned, Moves, Scheme, mesh_paper

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megamesh.model.recursion.highway import Highway

NUM_MIXED_STATES = 3
"""Core output, h(0) and h_emb."""
PLAIN_MIX = (1.0, 0.0, 0.0)


class Mix(Scheme):
    """`static`: the scalars are parameters. `dynamic`: mixer t computes them from h(t)."""

    divides_tokens = True
    reads_embeddings = True
    remote_code: Path = OUR_REMOTE_CODE

    @property
    def is_dynamic(self) -> bool:
        return self.terms == ("dynamic",)

    def enter(self, highway: "Highway", h_emb_TD: "Tensor", h_pre_TD: "Tensor") -> "Tensor":
        h_emb_own_TD, h_pre_own_TD = highway.split(h_emb_TD, h_pre_TD, num_views=2)
        highway.keep("h_emb", h_emb_own_TD)
        highway.keep("h(0)", h_pre_own_TD)
        if self.is_dynamic:
            highway.keep("h", h_pre_own_TD)
        return h_pre_TD

    def advance(self, highway: "Highway", t: int, h_m_TD: "Tensor") -> "Tensor":
        (h_m_TD,) = highway.split(h_m_TD)
        a = self.routers[t](highway.recall("h") if self.is_dynamic else h_m_TD)
        mixed_TD = a[..., 0:1] * h_m_TD + a[..., 1:2] * highway.recall("h(0)") + a[..., 2:3] * highway.recall("h_emb")
        return highway.join("h" if self.is_dynamic else None, mixed_TD.to(h_m_TD.dtype))

    def learned(self, hidden_size: int) -> Iterator[Learned]:
        for t in range(self.num_loops):
            if self.is_dynamic:
                yield Learned(f"{t}.weight", (NUM_MIXED_STATES, hidden_size), start=None, plain=0.0)
                yield Learned(f"{t}.bias", (NUM_MIXED_STATES,), start=PLAIN_MIX, plain=PLAIN_MIX)
            else:
                yield Learned(f"{t}.weight", (NUM_MIXED_STATES,), start=PLAIN_MIX, plain=PLAIN_MIX)

    def build(self, hidden_size: int) -> "nn.ModuleList":
        from torch import nn

        from megamesh.model.recursion.routers import RouterLinear, Scalars

        return nn.ModuleList(
            RouterLinear(hidden_size, NUM_MIXED_STATES) if self.is_dynamic else Scalars(NUM_MIXED_STATES)
            for _ in range(self.num_loops)
        )

    def moves(self) -> tuple[Moves, Moves]:
        return Moves(num_split=2), Moves(num_split=1, num_joined=1)

    def kept(self) -> Iterator[Kept]:
        yield Kept(0, 1, self.num_loops, 2, num_current=1, num_inputs=2)  # h_emb and h(0)
        for t in range(self.num_loops):  # h_m(t), and what it is multiplied by
            yield Kept(t + 1, t + 1, t + 1, 1, NUM_MIXED_STATES if self.is_dynamic else 0)
        if self.is_dynamic:  # h(t), which mixer t reads
            for t in range(1, self.num_loops):
                yield Kept(t, t + 1, t + 1, 1, num_current=1, in_blocks=True)

    def flops(self, hidden_size: int) -> int:
        per_loop = 2 * hidden_size * NUM_MIXED_STATES
        return self.num_loops * per_loop * (2 if self.is_dynamic else 1)

    @property
    def card_words(self) -> str:
        return mesh_paper(f"`{self.recursion.recursion_scheme}`")

    @property
    def upcycled_words(self) -> str:
        return f"{self.recursion.recursion_scheme} starts as plain recursion, exactly"
