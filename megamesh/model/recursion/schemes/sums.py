"""base, residual, anchor, anchor* and sums of them: h(t+1) = f_core(h(t)) + states that are there anyway (method: MeSH eq. 1).

They keep whole states on the highway: these are inputs of blocks, which backward keeps on every rank anyway, so dividing them would only
cost a collective. Nothing is learned.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megamesh.model.recursion.scheme import OUR_REMOTE_CODE, Kept, Learned, Moves, Scheme, mesh_paper

if TYPE_CHECKING:
    from torch import Tensor, nn

    from megamesh.model.recursion.highway import Highway


class Sum(Scheme):
    """h(t+1) = f_core(h(t)) + the sum of any of h(t) (residual), h(0) (anchor) and h_emb (anchor*); base adds none (eq. 1)."""

    divides_tokens = False
    remote_code: Path = OUR_REMOTE_CODE

    @property
    def added(self) -> list[str]:
        return [term for term in self.terms if term != "base"]

    def enter(self, highway: "Highway", h_emb_TD: "Tensor", h_pre_TD: "Tensor") -> "Tensor":
        for term in self.added:
            highway.keep(term, h_emb_TD if term == "anchor*" else h_pre_TD)
        return h_pre_TD

    def advance(self, highway: "Highway", t: int, h_m_TD: "Tensor") -> "Tensor":
        h_TD = h_m_TD
        for term in self.added:
            h_TD = h_TD + highway.recall(term)
        if "residual" in self.terms:
            highway.keep("residual", h_TD)
        return h_TD

    def learned(self, hidden_size: int) -> list[Learned]:
        return []

    def build(self, hidden_size: int) -> "nn.ModuleList":
        from torch import nn

        return nn.ModuleList()

    @property
    def reads_embeddings(self) -> bool:
        return "anchor*" in self.terms

    def moves(self) -> tuple[Moves, Moves]:
        return Moves(), Moves()

    def kept(self) -> Iterator[Kept]:
        if "anchor*" in self.terms:
            yield Kept(0, 1, self.num_loops, 1, in_blocks=True)
        if "anchor" in self.terms:
            yield Kept(0, 1, self.num_loops, 1, num_current=1, in_blocks=True)
        if "residual" in self.terms:  # h(0) is the anchor already
            for t in range("anchor" in self.terms, self.num_loops):
                yield Kept(t, t + 1, t + 1, 1, num_current=1, in_blocks=True)

    def flops(self, hidden_size: int) -> int:
        return self.num_loops * len(self.added) * hidden_size

    @property
    def card_words(self) -> str:
        return mesh_paper(f"`{self.recursion.recursion_scheme}`")

    @property
    def upcycled_words(self) -> str:
        name = self.recursion.recursion_scheme
        if not self.added:
            return f"{name} starts as plain recursion, exactly"
        return f"{name} adds states that the source does not add: its loss starts far from the source's"
