"""Passes over a blend of 300 datasets, with the number of ranks changed in mid-run: nothing is read twice, nothing is left out."""

import random
from collections import Counter

import numpy as np
import pytest

from megamesh.config.keys import DataConfig
from megamesh.data.samples.build import build_datasets, num_train_samples
from megamesh.data.samples.dataset import BlendedDataset
from megamesh.data.samples.loader import iterate_batches
from tests.data import corpora

S, EPOCHS, NUM_DATASETS, BATCH, VOCAB = 16, 3, 300, 8, 60_000
IDS_PER_DATASET = 200


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """300 datasets; token id = 200·dataset + position in the dataset, so that a token says where it comes from."""
    folder, draw = tmp_path_factory.mktemp("blend"), random.Random(6)
    for number in range(NUM_DATASETS):
        lengths = [draw.randint(0, 30) for _ in range(draw.randint(1, 6))] + [draw.randint(5, 19)]
        corpora.write(folder / f"d{number}", lengths, first=IDS_PER_DATASET * number, dtype=np.uint16)
    return DataConfig(
        train_data_paths=[str(folder / f"d{i}") for i in range(NUM_DATASETS)], data_cache_path=str(folder / "cache")
    )


def with_packing(config: DataConfig, impl: str) -> DataConfig:
    return config.model_copy(update={"pack_impl": impl})


def build(config: DataConfig) -> BlendedDataset:
    """The training set of 3 epochs."""
    wanted = num_train_samples(config, sequence_length=S, seed=5, epochs=EPOCHS, vocab_size=VOCAB)
    built = build_datasets(
        config, sequence_length=S, seed=5, num_samples=(wanted, 0, 0), vocab_size=VOCAB, train_epochs=EPOCHS
    )
    assert isinstance(built.train, BlendedDataset)
    assert len(built.train) == wanted
    return built.train


def read(dataset: BlendedDataset, start: int, stop: int, dp_size: int) -> list[list[int]]:
    """The rows of samples [start, stop): tokens and the last label, from all ranks, in the order of the global batches."""
    micro = 2
    ranks = [
        iterate_batches(
            dataset, consumed_samples=start, total_samples=stop, micro_batch_size=micro, dp_rank=rank, dp_size=dp_size, num_workers=0
        )
        for rank in range(dp_size)
    ]  # fmt: skip
    rows: list[list[int]] = []
    for micro_step in zip(*ranks, strict=True):
        for batch in micro_step:
            counted = batch.loss_mask_BS.sum(dim=1).int().tolist()
            whole = np.concatenate((batch.tokens_BS.numpy(), batch.labels_BS.numpy()[:, -1:]), axis=1).tolist()
            rows += [row[: number + 1] for row, number in zip(whole, counted, strict=True)]
    return rows


def run(dataset: BlendedDataset, steps: list[tuple[int, int]]) -> list[list[int]]:
    """All samples of a run whose parts end at (sample, with so many ranks)."""
    rows, consumed = [], 0
    for end, dp_size in steps:
        rows += read(dataset, consumed, end, dp_size)
        consumed = end
    return rows


@pytest.mark.parametrize("impl", ["packed", "pack_until_overflow"])
def test_order_does_not_depend_on_the_ranks_and_no_sample_is_lost(config: DataConfig, impl: str) -> None:
    """1, 2 and 4 ranks in turn read what one rank reads, and that is every sample of every dataset once per place in its order."""
    dataset = build(with_packing(config, impl))
    total = len(dataset) // BATCH * BATCH
    third = total // 3 // BATCH * BATCH
    rows = run(dataset, [(third, 1), (2 * third, 2), (total, 4)])
    assert rows == run(dataset, [(total, 1)]) == run(dataset, [(total, 4)])
    places = list(zip(dataset.dataset_of.tolist(), dataset.number_within.tolist(), strict=True))
    sizes = [0 if part is None else len(part) for part in dataset.datasets]
    assert sorted(places) == [(i, number) for i, size in enumerate(sizes) for number in range(size)]
    assert [row[0] // IDS_PER_DATASET for row in rows] == dataset.dataset_of[:total].tolist()


def test_packed_tokens_are_read_once_per_epoch_of_their_dataset(config: DataConfig) -> None:
    """Every token is an input 3 times; only the rest of a dataset's 3 epochs that fills no sample is left out, less than S + 1 tokens."""
    dataset = build(config)
    inputs = Counter(token for i in range(len(dataset)) for token in dataset[i].tokens[:-1].tolist())
    for number, part in enumerate(dataset.datasets):
        assert part is not None
        num_tokens = part.indexed.num_tokens  # type: ignore[attr-defined]
        counts = [inputs[IDS_PER_DATASET * number + position] for position in range(num_tokens)]
        assert max(counts) <= EPOCHS
        assert sum(counts) == (EPOCHS * num_tokens - 1) // S * S


def test_padded_samples_are_read_once_in_every_epoch(config: DataConfig) -> None:
    """Every document of 2 or more tokens is in one sample of each epoch, and an epoch ends before the next begins."""
    dataset = build(with_packing(config, "pack_until_overflow"))
    for number, part in enumerate(dataset.datasets):
        assert part is not None
        per_epoch = len(part) // EPOCHS
        first = IDS_PER_DATASET * number
        expected = Counter[int]()
        for length in part.indexed.lengths.tolist():  # type: ignore[attr-defined]
            expected.update(range(first, first + min(length, S + 1)) if length >= 2 else [])
            first += length
        for epoch in range(EPOCHS):
            samples = [part[epoch * per_epoch + i] for i in range(per_epoch)]
            found = Counter(t for s in samples if s.labels is not None for t in s.tokens[s.labels >= 0].tolist())
            assert found == expected


def test_a_path_of_a_blend_is_read_as_it_would_be_alone(config: DataConfig) -> None:
    dataset = build(config)
    for number in (0, 117):
        alone = DataConfig(train_data_paths=[config.train_data_paths[number]])  # type: ignore[index]
        wanted = num_train_samples(alone, sequence_length=S, seed=5, epochs=EPOCHS, vocab_size=VOCAB)
        one = build_datasets(
            alone, sequence_length=S, seed=5, num_samples=(wanted, 0, 0), vocab_size=VOCAB, train_epochs=EPOCHS
        ).train
        assert one is not None
        drawn = np.flatnonzero(dataset.dataset_of == number)
        assert len(drawn) == len(one)
        assert all(np.array_equal(dataset[i].tokens, one[n].tokens) for n, i in enumerate(drawn.tolist()))
