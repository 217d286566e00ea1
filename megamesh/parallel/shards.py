"""How a rank's tensor sits in the global, layout-independent one.

    global [V, D]  ──dim 0 cut over tp ranks──▶  local [V/tp, D]   blocks ((local 0, global rank·V/tp, V/tp),)
    fused rows (q, k, v or gate, up) cut separately have one block per part

Parallel layers state it for their parameters, the checkpoint turns it into boxes of the global tensor. A replicated
parameter is its own global tensor and has no blocks.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """`length` rows along the cut dim: local rows from `local_start` are global rows from `global_start`."""

    local_start: int
    global_start: int
    length: int


@dataclass(frozen=True)
class ShardSpec:
    """One parameter's place. `dim` None: replicated, the local tensor is the global one."""

    name: str
    global_shape: tuple[int, ...]
    dim: int | None = None
    blocks: tuple[Block, ...] = ()
    writes: bool = True  # False on the ranks that hold a copy which another rank saves
