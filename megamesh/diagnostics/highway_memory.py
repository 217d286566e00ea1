"""How much memory the state buffer takes on this rank.

    with watch_highways(model) as highways:
        … forward passes …                 the latest micro-batch's highway is highways[-1]; the others are let go
    highways[-1].num_bytes

What is counted is what the highway holds after the last loop, each state once; of views that is what they show. Under tensor parallelism
it is 1/size of what one process holds; the sums (anchor, residual …) without sequence parallelism hold nothing of their own: see
`model/recursion/schemes.py`.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from megamesh.model.recursion.highway import Highway
from megamesh.model.transformer import Transformer


@contextmanager
def watch_highways(model: Transformer) -> Iterator[deque[Highway]]:
    """The latest highway of the passes inside the block."""
    latest: deque[Highway] = deque(maxlen=1)
    new_highway = model.new_highway

    def watched() -> Highway:
        latest.append(new_highway())
        return latest[-1]

    model.new_highway = watched  # type: ignore[method-assign]
    try:
        yield latest
    finally:
        del model.new_highway


def highway_bytes(model: Transformer, tokens_BS: Tensor) -> int:
    """Bytes of one micro-batch's highway on this rank. A collective of the tensor axis."""
    with watch_highways(model) as highways, torch.enable_grad():
        model.states(tokens_BS)
    return highways[-1].num_bytes
