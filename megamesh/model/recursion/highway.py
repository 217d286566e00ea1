"""The highway: the states of one micro-batch that outlive a loop.

    split(states)       this rank's tokens of states: what a router works on and the highway keeps
    keep(name, state)   a state joins the highway; use what is returned from here on
    recall(name)        the same state, in a later loop
    join(name, state)   all tokens again, for the blocks; the rank's part of them is kept

On one process, and under sequence parallelism, where a rank's states are its tokens anyway, nothing is split or joined. Where
tensor-parallel ranks hold the same states, each keeps 1/size of the tokens: routing is per token, so nothing is said between them but
one all-gather per loop boundary. What a block is given, backward keeps whole on every rank; of that the highway keeps a view, and a
copy of the rest, so that what it adds to plain recursion is 1/size of what it adds on one process. These verbs are all that a scheme may
use, so that another highway (states that join the graphs of different pipeline passes) can take its place.
"""

from torch import Tensor

from megamesh.parallel.tensor import SINGLE, TensorParallel


class Highway:
    """States of one micro-batch on one rank."""

    def __init__(self, tp: TensorParallel = SINGLE) -> None:
        self._tp = tp
        self._states: dict[str, Tensor] = {}

    def split(self, *states: Tensor, num_views: int = 0) -> tuple[Tensor, ...]:
        """This rank's tokens of states between blocks, [T, D] each: views of the first `num_views`, which blocks are given, and copies."""
        return self._tp.split(*states, num_views=num_views)

    def join(self, name: str | None, state: Tensor) -> Tensor:
        """The state between blocks whose tokens the ranks hold; `name` is this rank's part of it from here on (None: nobody recalls it)."""
        whole, own = self._tp.join(state)
        if name is not None:
            self.keep(name, own)
        return whole

    def keep(self, name: str, state: Tensor) -> Tensor:
        """Store `state` under `name`, replacing what stood there."""
        self._states[name] = state
        return state

    def recall(self, name: str) -> Tensor:
        """The state kept under `name`."""
        return self._states[name]

    @property
    def num_bytes(self) -> int:
        """Memory of the kept states on this rank, each once, in bytes; of a view what it shows."""
        return sum({state.data_ptr(): state.nbytes for state in self._states.values()}.values())
