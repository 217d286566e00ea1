"""Evaluation over any layout is the mean over all counted tokens, each sample once."""

import pytest
import torch

from megamesh.data.samples.batch import Batch
from megamesh.evaluation.perplexity import mean_loss
from tests.distributed import run
from tests.engine.runs import GLOBAL_BATCH, SEQUENCE, VOCAB, Setup, training, transformer

NUM_BATCHES = 3


def global_batch(index: int) -> Batch:
    """Samples of which some count with few tokens, so that a mean of means would show."""
    draw = torch.Generator().manual_seed(index)
    tokens = torch.randint(0, VOCAB, (GLOBAL_BATCH, SEQUENCE + 1), generator=draw)
    counted = torch.rand(GLOBAL_BATCH, SEQUENCE, generator=draw) < torch.linspace(0.1, 1, GLOBAL_BATCH)[:, None]
    return Batch(tokens[:, :-1], tokens[:, 1:], counted.float())


def _evaluate(setup: Setup) -> float:
    with training(setup) as engine:
        rank, size = engine.mesh.rank("dp"), engine.mesh.size("dp")
        batches = []
        for batch in map(global_batch, range(NUM_BATCHES)):
            parts = zip(*(tensor.chunk(GLOBAL_BATCH) for tensor in batch.inputs()), strict=True)
            batches += [Batch(*part) for index, part in enumerate(parts) if index % size == rank]
        return mean_loss(engine, engine.mesh, batches)


@pytest.mark.parametrize(
    ("world_size", "setup"),
    [
        (1, Setup()),
        (2, Setup(1)),
        (2, Setup(tensor_parallel_size=2)),
        (4, Setup(1, tensor_parallel_size=2, sequence_parallel=True)),
        (4, Setup(3, tensor_parallel_size=2)),
    ],
    ids=["one process", "dp 2", "tp 2", "tp 2 split × dp 2", "tp 2 × dp 2 stage 3"],
)
def test_the_mean_is_over_tokens_and_counts_every_sample_once(world_size: int, setup: Setup) -> None:
    module = transformer(setup).double()
    whole = [torch.cat(parts) for parts in zip(*(global_batch(i).inputs() for i in range(NUM_BATCHES)), strict=True)]
    with torch.no_grad():
        expected = module(*whole).item() / whole[2].mean().item()
    assert run(world_size, _evaluate, setup) == pytest.approx([expected] * world_size, rel=1e-6)
