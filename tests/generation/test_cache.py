"""The cache returns what was put in, per compute layer."""

import torch

from megamesh.generation.cache import KVCache


def test_layers_are_kept_apart_and_grow_together() -> None:
    draw = torch.Generator().manual_seed(0)
    steps = [[torch.randn(2, 3, length, 4, generator=draw) for _ in range(4)] for length in (5, 1, 2)]
    cache = KVCache(num_layers=2, capacity=8)
    for number, (k0, v0, k1, v1) in enumerate(steps):
        for layer, k, v in ((0, k0, v0), (1, k1, v1)):
            keys, values = cache.update(layer, k, v)
            assert torch.equal(keys, torch.cat([step[2 * layer] for step in steps[: number + 1]], dim=2))
            assert torch.equal(values, torch.cat([step[2 * layer + 1] for step in steps[: number + 1]], dim=2))
        cache.advance(k0.shape[2])
    cache = KVCache(num_layers=1, capacity=4)
    cache.update(0, steps[0][0][:, :, :2], steps[0][1][:, :, :2])
    cache.advance(2)
    cache.keep_rows(torch.tensor([1]))
    keys, _ = cache.update(0, steps[1][0][1:], steps[1][1][1:])
    assert torch.equal(keys[0], torch.cat((steps[0][0][1, :, :2], steps[1][0][1]), dim=1))
