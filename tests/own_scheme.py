"""A recursion scheme of a user's own, in one file: a core that has momentum. `recursion_scheme: tests.own_scheme:Momentum`.

    v(0) = h(0) − h_emb       h(t+1) = h_m(t) + g_t · v(t)       v(t+1) = h(t+1) − h(t)       g_t = linear_t(v(t)), one number per token

With `divided` tensor ranks that hold the same states divide their tokens for it, as they do for MeSH; without, each works on all of them,
as residual and anchor do. The remote code is own_scheme_remote.py.

Letters: T tokens of this rank, D hidden size, K loops.
"""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from megamesh.config.keys import Section
from megamesh.model.recursion.highway import Highway
from megamesh.model.recursion.routers import RouterLinear
from megamesh.model.recursion.scheme import Kept, Learned, Moves, Scheme


class Params(Section):
    """What recursion_scheme_params may hold."""

    momentum: float = 0.4
    divided: bool = True


class Momentum(Scheme):
    """The core's output, and a learned share of how the state moved before."""

    Params = Params
    reads_embeddings = True
    remote_code: Path | None = Path(__file__).with_name("own_scheme_remote.py")
    card_words = "momentum: a learned share of the last change is added, as in tests/own_scheme.py"
    upcycled_words = "momentum starts as plain recursion, exactly"

    @property
    def divides_tokens(self) -> bool:
        divided: bool = self.params.divided
        return divided

    def enter(self, highway: Highway, h_emb_TD: Tensor, h_pre_TD: Tensor) -> Tensor:
        h_emb_own_TD, h_own_TD = h_emb_TD, h_pre_TD
        if self.divides_tokens:
            h_emb_own_TD, h_own_TD = highway.split(h_emb_TD, h_pre_TD, num_views=2)
        highway.keep("v", h_own_TD - h_emb_own_TD)
        if self.num_loops > 1:
            highway.keep("h", h_own_TD)
        return h_pre_TD

    def advance(self, highway: Highway, t: int, h_m_TD: Tensor) -> Tensor:
        if self.divides_tokens:
            (h_m_TD,) = highway.split(h_m_TD)
        v_TD = highway.recall("v")
        h_TD = h_m_TD + (self.routers[t](v_TD) * v_TD).to(h_m_TD.dtype)
        is_last = t == self.num_loops - 1
        if not is_last:
            highway.keep("v", h_TD - highway.recall("h"))
        if self.divides_tokens:
            return highway.join(None if is_last else "h", h_TD)
        return h_TD if is_last else highway.keep("h", h_TD)

    def learned(self, hidden_size: int) -> Iterator[Learned]:
        for t in range(self.num_loops):
            yield Learned(f"{t}.weight", (1, hidden_size), start=None, plain=0.0)
            yield Learned(f"{t}.bias", (1,), start=self.params.momentum, plain=0.0)

    def build(self, hidden_size: int) -> nn.ModuleList:
        return nn.ModuleList(RouterLinear(hidden_size, 1) for _ in range(self.num_loops))

    def moves(self) -> tuple[Moves, Moves]:
        if not self.divides_tokens:
            return Moves(), Moves()
        return Moves(num_split=2), Moves(num_split=1, num_joined=1)

    def kept(self) -> Iterator[Kept]:
        for t in range(self.num_loops):
            yield Kept(t, t + 1, t + 1, 1)  # v(t)
            yield Kept(t + 1, t + 1, t + 1, 0, num_weights=1)  # g_t
        for t in range(self.num_loops - 1):
            yield Kept(t, t + 1, t + 1, 1, num_current=1, in_blocks=True)  # h(t)

    def flops(self, hidden_size: int) -> int:
        """Linears and products with a sum, 2·D each; K differences."""
        return self.num_loops * (2 + 2 + 1) * hidden_size


class Unexported(Momentum):
    """The same without remote code."""

    remote_code = None
