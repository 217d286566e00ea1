"""How a rank's tensor sits in the global, layout-independent one.

    global [V, D]  ──dim 0 cut over tp ranks──▶  local [V/tp, D]   blocks ((local 0, global rank·V/tp, V/tp),)
    fused rows (q, k, v or gate, up) cut separately have one block per part

Parallel layers state it for their parameters, the checkpoint turns it into boxes of the global tensor. A replicated
parameter is its own global tensor and has no blocks.
"""

from dataclasses import dataclass

from torch import Tensor


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
    # Replicated, but each tensor rank's gradient covers only part of the tokens or heads.
    partial_gradient: bool = False


def fill_from_global(parameter: Tensor, whole: Tensor, spec: ShardSpec) -> None:
    """Copy this rank's part of a global tensor into its parameter; rows that no block covers (padding) become zero."""
    if spec.dim is None:
        parameter.copy_(whole)
        return
    if sum(block.length for block in spec.blocks) < parameter.shape[spec.dim]:
        parameter.zero_()
    for block in spec.blocks:
        own = parameter.narrow(spec.dim, block.local_start, block.length)
        own.copy_(whole.narrow(spec.dim, block.global_start, block.length))
