"""The highway: the states of one micro-batch that outlive a loop.

    keep(name, state)   a state joins the highway; use what is returned from here on
    recall(name)        the same state, in a later loop

In one process it is a dictionary. Its two verbs are all that a scheme may use, so that other highways (a slice of the sequence
per tensor-parallel rank, states that join the graphs of different pipeline passes) can take its place.
"""

from torch import Tensor


class Highway:
    """States of one micro-batch in one process."""

    def __init__(self) -> None:
        self._states: dict[str, Tensor] = {}

    def keep(self, name: str, state: Tensor) -> Tensor:
        """Store `state` under `name`, replacing what stood there."""
        self._states[name] = state
        return state

    def recall(self, name: str) -> Tensor:
        """The state kept under `name`."""
        return self._states[name]
