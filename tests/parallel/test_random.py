"""Keyed streams depend on their keys and on nothing else."""

import random

import torch

from megamesh.parallel.random import derive_seed, keyed_generator, seed_micro_batch


def test_seeds_are_stable_and_keys_do_not_run_together() -> None:
    assert derive_seed("parameter", 1234, "head.weight") == 6936457899219922496  # weights of old runs depend on it
    keys = [("a", "b"), ("ab",), ("a", "b", ""), ("b", "a"), (1, 2), ("1", "2"), (12,), ("1", 2)]
    seeds = {derive_seed(*each) for each in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_start_at_the_beginning_of_their_stream() -> None:
    first, again, other = (torch.rand(4, generator=keyed_generator("x", seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_micro_batch_draws_the_same_whatever_came_before() -> None:
    seed_micro_batch(5, 32)
    expected = torch.rand(3), random.random()
    torch.rand(100)
    seed_micro_batch(5, 32)
    assert torch.equal(torch.rand(3), expected[0]) and random.random() == expected[1]
    seed_micro_batch(5, 36)
    assert not torch.equal(torch.rand(3), expected[0])
