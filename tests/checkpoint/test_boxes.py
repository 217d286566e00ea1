"""Boxes cover exactly the elements of a flat range, through any tensor-parallel cut, as views."""

import itertools
import math
import random

import pytest
import torch

from megamesh.checkpoint.boxes import flat_boxes, fragment_boxes
from megamesh.parallel.shards import Block, ShardSpec


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (5, 1), (1, 6), (2, 3, 4), (3, 1, 2), (2, 2, 2, 3)])
def test_every_range_of_a_tensor_is_covered_once_by_few_contiguous_boxes(shape) -> None:
    numbers = torch.arange(math.prod(shape)).view(shape)
    for start, end in itertools.combinations(range(math.prod(shape) + 1), 2):
        covered = []
        boxes = list(flat_boxes(shape, start, end))
        for offset, size, flat_start in boxes:
            inside = tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))
            values = numbers[inside].flatten().tolist()
            assert values[0] == flat_start
            covered += values
        assert covered == list(range(start, end))
        assert len(boxes) <= max(2 * len(shape) - 1, 1)
    assert list(flat_boxes(shape, 1, 1)) == []


def _fused_spec(shape: tuple[int, int], dim: int, parts: list[int], size: int, rank: int) -> ShardSpec:
    """Like qkv: the cut dim is made of parts, and every rank has its share of each, one after the other."""
    blocks, local, base = [], 0, 0
    for part in parts:
        low, high = part * rank // size, part * (rank + 1) // size
        blocks.append(Block(local, base + low, high - low))
        local, base = local + high - low, base + part
    return ShardSpec("w", shape, dim, tuple(blocks))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("parts", [[12], [6, 4, 2], [5, 7]])
def test_fragments_of_all_ranks_rebuild_the_global_tensor(dim: int, parts) -> None:
    draw = random.Random(str((dim, parts)))
    shape = (sum(parts), 5) if dim == 0 else (5, sum(parts))
    numbers = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    for tensor_size, data_size in itertools.product((1, 2, 3), (1, 2, 4)):
        rebuilt, writes = torch.full(shape, -1.0), torch.zeros(shape)
        for rank in range(tensor_size):
            spec = _fused_spec(shape, dim, parts, tensor_size, rank)
            local = torch.cat([numbers.narrow(dim, b.global_start, b.length) for b in spec.blocks], dim).contiguous()
            cuts = sorted(draw.randrange(local.numel() + 1) for _ in range(data_size - 1))
            for start, end in itertools.pairwise([0, *cuts, local.numel()]):
                flat = local.view(-1)[start:end].clone()
                for box in fragment_boxes("fp32.w", spec, tuple(local.shape), start, flat):
                    assert box.values.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr(), "a copy"
                    inside = tuple(slice(o, o + s) for o, s in zip(box.offset, box.values.shape, strict=True))
                    rebuilt[inside] = box.values
                    writes[inside] += 1
        assert torch.equal(rebuilt, numbers)
        assert torch.equal(writes, torch.ones(shape))
