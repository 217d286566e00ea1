"""Dropout under tensor parallelism: the same where ranks hold the same states, different where they hold parts."""

import statistics

import pytest
import torch
from torch import Tensor

from megamesh.model.attention import AttentionInputs
from megamesh.model.block import StateDropout
from megamesh.parallel.random import seed_micro_batch
from tests.distributed import run
from tests.model.sharded import BATCH, SEQUENCE, Case, batch, gather, loss_and_gradients

RATE = 0.3


def _masks(sequence_parallel: bool) -> tuple[Tensor, Tensor, Tensor]:
    tp = Case(sequence_parallel=sequence_parallel).axis()
    seed_micro_batch(1, 0)
    states = StateDropout(RATE, tp)(torch.ones(1000))
    with tp.dropout_of_shares():
        shares = torch.nn.functional.dropout(torch.ones(1000), RATE)
    return states, shares, torch.rand(3)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_streams_of_states_and_shares(sequence_parallel: bool) -> None:
    (states_0, shares_0, after_0), (states_1, shares_1, after_1) = run(2, _masks, sequence_parallel)
    assert torch.equal(states_0, states_1) is not sequence_parallel
    # independent masks agree in a share of rate² + (1 − rate)² = 0.58 of the places
    assert abs((shares_0 == shares_1).float().mean() - 0.58) < 0.06
    assert not torch.equal(states_0, shares_0)
    assert torch.equal(after_0, after_1), "the shared stream goes on where it was"


def _attention_shares() -> tuple[Tensor, Tensor]:
    """What a rank's heads give with dropout and without, where all ranks hold the same weights."""
    case = Case("base", dropout=RATE)
    attention = case.build(case.axis()).prelude[0].attention
    seed_micro_batch(1, 0)
    for layer in (attention.qkv, attention.out):
        torch.nn.init.normal_(layer.weight)
    h_TD, inputs = torch.randn(BATCH * SEQUENCE, 32, dtype=torch.float64), AttentionInputs(BATCH, rotary=None)
    return attention(h_TD, inputs, 0).detach(), attention.eval()(h_TD, inputs, 0).detach()


def test_heads_of_different_ranks_drop_apart() -> None:
    (dropped_0, whole_0), (dropped_1, whole_1) = run(2, _attention_shares)
    assert torch.equal(whole_0, whole_1) and not torch.equal(dropped_0, dropped_1)


def _train(case: Case, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    module = case.build(case.axis())
    specs = module.shards()
    seed_micro_batch(seed, 0)
    loss, gradients = loss_and_gradients(module)
    return loss, gather(gradients, specs, gradients=True)  # which fails where copies on two ranks differ


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("blocks", ["MHA, sequential", "MHA, parallel"])
def test_repeatable_and_replayed_by_recomputation(blocks: str, sequence_parallel: bool) -> None:
    plain = Case("mesh", blocks, sequence_parallel, dropout=RATE)
    first, again, other = (run(2, _train, plain, seed)[0] for seed in (1, 1, 2))
    assert first[0] == again[0] != other[0]
    keys = {"checkpoint_activations": True}
    per_loop = keys | {"checkpoint_activations_per": "loop"}
    for answer in [again] + [
        run(2, _train, Case("mesh", blocks, sequence_parallel, training, RATE), 1)[0] for training in (keys, per_loop)
    ]:
        assert answer[0] == first[0]
        assert all(torch.equal(answer[1][name], gradient) for name, gradient in first[1].items())


def _losses(case: Case, num_draws: int, divided: bool) -> list[float]:
    module = case.build(case.axis()) if divided else case.build()
    losses = []
    for draw in range(num_draws):
        seed_micro_batch(3, draw)
        losses.append(module(*batch()).item())
    return losses


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_two_ranks_equal_one_in_distribution(sequence_parallel: bool) -> None:
    case = Case(None, "MHA, parallel", sequence_parallel, dropout=RATE)
    num_draws = 150
    one, (two, same) = _losses(case, num_draws, divided=False), run(2, _losses, case, num_draws, True)
    assert two == same
    spread = statistics.stdev(one)
    assert spread > 1e-3, "dropout must show in the loss"
    assert abs(statistics.mean(one) - statistics.mean(two)) < 4 * spread * (2 / num_draws) ** 0.5
    assert 0.7 < statistics.stdev(two) / spread < 1.4
