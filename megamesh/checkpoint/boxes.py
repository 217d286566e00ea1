"""Flat ranges of local tensors as boxes of global tensors.

    local parameter, row-major, range [s, e) of it flattened          boxes: axis-aligned, contiguous, in global coordinates
      . . . s s s                                                     [0:1, 3:6]
      s s s s s s      ──flat_boxes──▶  at most 2·ndim − 1 boxes ──▶  [1:2, 0:6]   (shifted along the cut dim by the
      s s . . . .                                                     [2:3, 0:2]    tensor-parallel blocks)

A ZeRO piece is such a range. Since each box is contiguous in it, a box is a view: saving copies nothing, loading writes in
place, and torch.distributed.checkpoint takes the boxes as ordinary chunks of the global tensor.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from megamesh.parallel.shards import ShardSpec

MAX_CHUNK_BYTES = 64 * 2**20
"""Of what is stored in one piece: whoever reads any element of it reads all of it."""
Index = tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """`values` are the elements of the global tensor `key` from `offset` on, along every dim."""

    key: str
    global_shape: Index
    offset: Index
    values: Tensor


def flat_boxes(shape: Index, start: int, end: int) -> Iterator[tuple[Index, Index, int]]:
    """Cut elements start … end of a row-major array into (offset, size, flat start) boxes, in order, each contiguous."""
    if start >= end:
        return
    if len(shape) <= 1:
        yield ((start,), (end - start,), start) if shape else ((), (), 0)
        return
    inner = math.prod(shape[1:])
    first, last = start // inner, (end - 1) // inner
    if first == last and end - start < inner:
        yield from _within_row(shape, first, start - first * inner, end - first * inner)
        return
    if start % inner:
        yield from _within_row(shape, first, start % inner, inner)
        first += 1
    whole_rows_end = last + 1 if end % inner == 0 else last
    if first < whole_rows_end:
        yield (first, *(0 for _ in shape[1:])), (whole_rows_end - first, *shape[1:]), first * inner
    if end % inner:
        yield from _within_row(shape, last, 0, end % inner)


def _within_row(shape: Index, row: int, start: int, end: int) -> Iterator[tuple[Index, Index, int]]:
    for offset, size, flat_start in flat_boxes(shape[1:], start, end):
        yield (row, *offset), (1, *size), row * math.prod(shape[1:]) + flat_start


def fragment_boxes(key: str, spec: ShardSpec, local_shape: Index, start: int, values: Tensor) -> Iterator[Box]:
    """Boxes of the elements `values` (flat), which begin at `start` in the flattened local tensor."""
    for offset, size, flat_start in flat_boxes(local_shape, start, start + values.numel()):
        view = values.narrow(0, flat_start - start, math.prod(size)).view(size)
        if spec.dim is None:
            yield Box(key, spec.global_shape, offset, view)
            continue
        dim, low, high = spec.dim, offset[spec.dim], offset[spec.dim] + size[spec.dim]
        for block in spec.blocks:
            first, end = max(low, block.local_start), min(high, block.local_start + block.length)
            if first < end:
                moved = first - block.local_start + block.global_start
                yield Box(
                    key,
                    spec.global_shape,
                    (*offset[:dim], moved, *offset[dim + 1 :]),
                    view.narrow(dim, first - low, end - first),
                )


def pieces(box: Box, max_bytes: int = MAX_CHUNK_BYTES) -> Iterator[Box]:
    """Cut a box into boxes of at most `max_bytes` each (of one element at least), contiguous where it is, in order."""
    if box.values.nbytes <= max_bytes or box.values.numel() == 1:
        yield box
        return
    dim = next(dim for dim, size in enumerate(box.values.shape) if size > 1)
    size = box.values.shape[dim]
    step = max(max_bytes // (box.values.nbytes // size), 1)
    for start in range(0, size, step):
        offset = (*box.offset[:dim], box.offset[dim] + start, *box.offset[dim + 1 :])
        part = box.values.narrow(dim, start, min(step, size - start))
        yield from pieces(Box(box.key, box.global_shape, offset, part), max_bytes)
