"""The highway of one micro-batch on the ring: states that join the graphs of different passes on the rank where loop boundaries fall.

    forward    pass 0 ──keep(a)──▶ …        pass 2 ──recall(a)──▶ a leaf of this pass's graph with a's values
    backward   pass 2: the leaf's gradient ──▶ left at a ──▶ pass 0: backward also starts from a, with what was left there

Every pass has a graph of its own, which its backward consumes. A kept state is a further output of its pass, a recalled one a further
input; for one micro-batch later passes run backward first, so all that is ever left for a state has been left when its own pass runs
backward. That is the chain rule: gradients are those of one graph, summed in another order. Nothing crosses a wire.

What stays in memory: the highway itself holds values from a state's keep to the last loop boundary's forward; then each lives as long as
a pass that reads it has its backward ahead, and is let go with the last of them.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from megamesh.model.recursion.highway import Highway
from megamesh.parallel.tensor import TensorParallel


@dataclass(eq=False)
class _Kept:
    """A state's values, its place in the graph of its pass, and the gradient that later passes have left."""

    value: Tensor | None
    edge: GradientEdge | None
    gradient: Tensor | None = None


@dataclass
class _Pass:
    """What one pass kept, and the leaves that stand for what it recalled."""

    kept: dict[str, _Kept] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)  # in the pass's graph; while its forward runs
    recalled: list[tuple[_Kept, Tensor]] = field(default_factory=list)


class RingHighway(Highway):
    """States of one micro-batch on the last pipeline rank, over all its passes."""

    def __init__(self, tp: TensorParallel):
        super().__init__(tp)
        self._passes: dict[int, _Pass] = {}
        self._latest: dict[str, _Kept] = {}
        self._now = _Pass()

    def start(self, pass_index: int) -> None:
        """The forward of a pass begins; what is kept and recalled from here on belongs to it."""
        self._now = self._passes[pass_index] = _Pass()

    def finish(self, *, is_last: bool) -> None:
        """The forward of the pass is done. After the last one that has a loop boundary, nothing is recalled any more."""
        self._now.states.clear()
        if is_last:
            for kept in self._latest.values():
                kept.value = None

    def split(self, *states: Tensor, num_views: int = 0) -> tuple[Tensor, ...]:
        """Copies always: no block of this rank keeps the whole states that views would show."""
        return super().split(*states)

    def join(self, name: str | None, state: Tensor) -> Tensor:
        """All tokens again, to be sent; the rank keeps its part of them, and not the memory of all."""
        whole, own = self._tp.join(state)
        if name is not None:
            self.keep(name, own if own is whole else own.clone())
        return whole

    def keep(self, name: str, state: Tensor) -> Tensor:
        """Store `state` under `name`, replacing what stood there for the passes that follow."""
        if name in self._latest:
            self._latest[name].value = None
        edge = get_gradient_edge(state) if state.requires_grad else None
        self._now.kept[name] = self._latest[name] = _Kept(state.detach(), edge)
        self._now.states[name] = state
        return state

    def recall(self, name: str) -> Tensor:
        """The state under `name`: the graph's own in the pass that kept it, else a leaf of this pass's graph."""
        if name in self._now.states:
            return self._now.states[name]
        kept = self._latest[name]
        assert kept.value is not None, f"{name} is recalled after the last loop boundary"
        leaf = kept.value.detach().requires_grad_(kept.edge is not None and torch.is_grad_enabled())
        self._now.states[name] = leaf
        if leaf.requires_grad:
            self._now.recalled.append((kept, leaf))
        return leaf

    def outputs(self, pass_index: int) -> tuple[list[GradientEdge], list[Tensor]]:
        """Where the backward of a pass starts beside the states it sent, and with which gradients. Call it right before."""
        left = [kept for kept in self._passes[pass_index].kept.values() if kept.gradient is not None]
        return [kept.edge for kept in left if kept.edge], [kept.gradient for kept in left if kept.gradient is not None]

    def leave_gradients(self, pass_index: int) -> None:
        """The backward of a pass is done: what it found for recalled states is left there for their own passes."""
        done = self._passes.pop(pass_index)
        for kept, leaf in done.recalled:
            if leaf.grad is not None:
                kept.gradient = leaf.grad if kept.gradient is None else kept.gradient + leaf.grad
        for kept in done.kept.values():
            kept.edge = kept.gradient = None

    @property
    def num_gradients(self) -> int:
        """Gradients that were left for passes whose backward is ahead."""
        known = {*self._latest.values(), *(kept for ended in self._passes.values() for kept in ended.kept.values())}
        return sum(kept.gradient is not None for kept in known)

    @property
    def num_states(self) -> int:
        """States whose values this highway keeps alive: those to be recalled, and leaves of passes whose backward is ahead."""
        return len(self._alive())

    @property
    def num_bytes(self) -> int:
        """Memory of these states, each once, in bytes."""
        return sum(state.nbytes for state in self._alive().values())

    def _alive(self) -> dict[int, Tensor]:
        kept = [kept.value for kept in self._latest.values() if kept.value is not None]
        leaves = [leaf for ended in self._passes.values() for _, leaf in ended.recalled]
        return {state.data_ptr(): state for state in kept + leaves}
