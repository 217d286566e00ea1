"""Recursion schemes: what the core's next input is made of (method: MeSH eq. 1-7).

    h_emb, prelude output ──enter──▶ h(0) ──core──▶ h_m(0) ──advance(0)──▶ h(1) … ──advance(K−1)──▶ h(K) ──▶ coda

A scheme keeps on the highway whatever it needs later and nothing else. Nothing outside this file knows which scheme runs. Schemes with
learned parts work on this rank's tokens (`split`, `join`). Sums keep whole states: they are inputs of blocks, which backward keeps on every
rank anyway, so dividing them would only cost a collective.

Letters: T tokens, D hidden size, K loops.
"""

from typing import Protocol

from torch import Tensor, nn

from megamesh.config.keys import RecursionConfig
from megamesh.config.keys.recursion import TransitionInput
from megamesh.config.recursion import RecursionLayout, parse_scheme
from megamesh.kernels.highway import highway_read
from megamesh.model.recursion.highway import Highway
from megamesh.model.recursion.routers import DynamicMixer, Router, StaticMixer


class Scheme(Protocol):
    """The two moments at which a scheme acts."""

    def enter(self, highway: Highway, h_emb_TD: Tensor, h_pre_TD: Tensor) -> Tensor:
        """The core's first input h(0), from the embeddings and the prelude's output."""
        ...

    def advance(self, highway: Highway, t: int, h_m_TD: Tensor) -> Tensor:
        """h(t+1), from the output of the core's loop t."""
        ...


class SumScheme:
    """h(t+1) = f_core(h(t)) + the sum of any of h(t) (residual), h(0) (anchor) and h_emb (anchor*); base adds none (eq. 1)."""

    def __init__(self, terms: tuple[str, ...]):
        self.terms = [term for term in terms if term != "base"]

    def enter(self, highway: Highway, h_emb_TD: Tensor, h_pre_TD: Tensor) -> Tensor:
        for term in self.terms:
            highway.keep(term, h_emb_TD if term == "anchor*" else h_pre_TD)
        return h_pre_TD

    def advance(self, highway: Highway, t: int, h_m_TD: Tensor) -> Tensor:
        h_TD = h_m_TD
        for term in self.terms:
            h_TD = h_TD + highway.recall(term)
        if "residual" in self.terms:
            highway.keep("residual", h_TD)
        return h_TD


class MixScheme:
    """h(t+1) = a1·f_core(h(t)) + a2·h(0) + a3·h_emb, the scalars from mixer t (`static`, `dynamic`)."""

    def __init__(self, mixers: nn.ModuleList):
        self.mixers = mixers

    def enter(self, highway: Highway, h_emb_TD: Tensor, h_pre_TD: Tensor) -> Tensor:
        h_emb_own_TD, h_pre_own_TD = highway.split(h_emb_TD, h_pre_TD, num_views=2)
        highway.keep("h_emb", h_emb_own_TD)
        highway.keep("h(0)", h_pre_own_TD)
        highway.keep("h", h_pre_own_TD)
        return h_pre_TD

    def advance(self, highway: Highway, t: int, h_m_TD: Tensor) -> Tensor:
        (h_m_TD,) = highway.split(h_m_TD)
        a = self.mixers[t](highway.recall("h"))
        mixed_TD = a[..., 0:1] * h_m_TD + a[..., 1:2] * highway.recall("h(0)") + a[..., 2:3] * highway.recall("h_emb")
        return highway.join("h", mixed_TD.to(h_m_TD.dtype))


class MeshScheme:
    """Memory-as-State-Highways: routed writes to and reads from a state buffer, in the unrolled form (eq. 2-7)."""

    def __init__(self, routers: nn.ModuleList, transition_input: TransitionInput):
        self.routers = routers
        self.transition_input = transition_input

    def enter(self, highway: Highway, h_emb_TD: Tensor, h_pre_TD: Tensor) -> Tensor:
        # The prelude was given h_emb, unless it is empty. No block is given its output: the core starts from the first read.
        h_emb_TD, h_pre_TD = highway.split(h_emb_TD, h_pre_TD, num_views=0 if h_pre_TD is h_emb_TD else 1)
        h_emb_TD = highway.keep("source.0", h_emb_TD)
        h_pre_TD = highway.keep("source.1", h_pre_TD)
        control_TD = h_emb_TD if self.transition_input == "h_emb" else h_pre_TD
        write_TN, read_TN = self.routers[0](control_TD)
        write_TN = highway.keep("write.1", write_TN)
        return highway.join("h", highway_read(read_TN, [write_TN], [h_emb_TD, h_pre_TD]))

    def advance(self, highway: Highway, t: int, h_m_TD: Tensor) -> Tensor:
        (h_m_TD,) = highway.split(h_m_TD)
        write_TN, read_TN = self.routers[t + 1](highway.recall("h"))
        sources = [highway.recall(f"source.{i}") for i in range(t + 2)] + [highway.keep(f"source.{t + 2}", h_m_TD)]
        writes = [highway.recall(f"write.{i}") for i in range(1, t + 2)] + [highway.keep(f"write.{t + 2}", write_TN)]
        return highway.join("h", highway_read(read_TN, writes, sources))


def reads_embeddings(recursion: RecursionConfig) -> bool:
    """Whether `enter` uses h_emb, so that it must be brought to where loop boundaries are."""
    return not {"anchor*", "static", "dynamic", "mesh"}.isdisjoint(parse_scheme(recursion.recursion_scheme))


def build_routers(recursion: RecursionConfig, layout: RecursionLayout, hidden_size: int) -> nn.ModuleList:
    """The learned modules of the configured scheme, one per step; none for base, residual, anchor and anchor*."""
    (term, *_) = parse_scheme(recursion.recursion_scheme)
    if term == "mesh":
        return nn.ModuleList(Router(hidden_size, recursion.num_slots) for _ in range(layout.num_loops + 1))
    if term == "static":
        return nn.ModuleList(StaticMixer() for _ in range(layout.num_loops))
    if term == "dynamic":
        return nn.ModuleList(DynamicMixer(hidden_size) for _ in range(layout.num_loops))
    return nn.ModuleList()


def build_scheme(recursion: RecursionConfig, routers: nn.ModuleList) -> Scheme:
    """The configured scheme, over the routers that `build_routers` made."""
    terms = parse_scheme(recursion.recursion_scheme)
    if terms == ("mesh",):
        return MeshScheme(routers, recursion.mesh_transition_input)
    if terms in (("static",), ("dynamic",)):
        return MixScheme(routers)
    return SumScheme(terms)
