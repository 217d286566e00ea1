"""The order of samples against slow, obvious implementations of contracts.md."""

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from megamesh.config.sections import DataConfig
from megamesh.data.blend import blend_order, normalise_weights, numbers_within
from megamesh.data.dataset import PackedDataset
from megamesh.data.indexed import IndexedDataset
from megamesh.data.sample_index import build_sample_order, num_epochs
from megamesh.data.splits import split_documents
from tests.data import corpora


def slow_epochs(num_tokens: int, sequence_length: int, wanted: int) -> int:
    epochs = 1
    while (epochs * num_tokens - 1) // sequence_length < wanted:
        epochs += 1
    return epochs


def slow_samples(
    documents: list[list[int]], first: int, sequence_length: int, wanted: int, seed: int
) -> list[list[int]]:
    """All samples in drawing order, by laying every token of every epoch in one list."""
    epochs = slow_epochs(sum(map(len, documents)), sequence_length, wanted)
    generator = np.random.RandomState(seed)
    order = np.array(list(range(first, first + len(documents))) * epochs, dtype=np.int32)
    generator.shuffle(order)
    row = [token for document in order for token in documents[document - first]]
    cut = [
        row[j * sequence_length : j * sequence_length + sequence_length + 1]
        for j in range((len(row) - 1) // sequence_length)
    ]
    drawing = np.arange(len(cut), dtype=np.uint32)
    generator.shuffle(drawing)
    return [cut[j] for j in drawing]


def slow_rows(lengths: np.ndarray, order: np.ndarray, sequence_length: int) -> list[tuple[int, int]]:
    """Rows of the sample index by walking one token at a time; the first is (0, 0) by definition."""
    places = [(position, offset) for position, document in enumerate(order) for offset in range(lengths[document])]
    return [(0, 0), *places[sequence_length:][::sequence_length]]


def random_lengths(draw: random.Random) -> list[int]:
    kind = draw.choice(["short", "long", "mixed", "mostly empty"])
    longest = {"short": 4, "long": 60, "mixed": 30, "mostly empty": 9}[kind]
    lengths = [draw.randint(0, longest) for _ in range(draw.randint(1, 25))]
    if kind == "mostly empty":
        lengths = [n if draw.random() < 0.3 else 0 for n in lengths]
    return lengths if sum(lengths) > 0 else [*lengths, 3]


def test_samples_equal_the_slow_implementation_on_random_documents(tmp_path: Path) -> None:
    draw = random.Random(7)
    for case in range(400):
        lengths = random_lengths(draw)
        documents = corpora.write(tmp_path / "data", lengths)
        first = draw.randint(0, len(lengths) - 1)
        if sum(lengths[first:]) == 0:
            first = 0
        sequence_length, wanted, seed = draw.randint(1, 17), draw.randint(1, 40), draw.randint(0, 2**32 - 1)
        epochs = num_epochs(sum(lengths[first:]), sequence_length, wanted)
        order = build_sample_order(np.array(lengths[first:], np.int32), first, epochs, sequence_length, seed)
        dataset = PackedDataset(IndexedDataset(tmp_path / "data"), order, sequence_length)
        found = [dataset[i].tolist() for i in range(len(dataset))]
        assert found == slow_samples(documents[first:], first, sequence_length, wanted, seed), f"case {case}: {lengths}"
        assert len(found) >= wanted


@pytest.mark.parametrize("block_rows", [1, 3, 1 << 24])
def test_sample_index_rows_equal_a_walk_over_single_tokens(block_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megamesh.data.sample_index.BLOCK_ROWS", block_rows)
    draw = random.Random(3)
    for _ in range(300):
        lengths = np.array(random_lengths(draw), np.int32)
        sequence_length = draw.randint(1, 9)
        order = build_sample_order(lengths, 0, draw.randint(1, 4), sequence_length, draw.randint(0, 1000))
        expected = slow_rows(lengths, order.document_order, sequence_length)[: len(order.sample_index)]
        assert [tuple(row) for row in order.sample_index.tolist()] == expected


@pytest.mark.parametrize(
    ("tokens", "length", "wanted", "epochs"), [(9, 4, 2, 1), (8, 4, 2, 2), (1, 4, 1, 5), (10, 3, 0, 1)]
)
def test_epochs_are_the_fewest_that_give_the_samples(tokens: int, length: int, wanted: int, epochs: int) -> None:
    assert num_epochs(tokens, length, wanted) == slow_epochs(tokens, length, wanted) == epochs


def test_types_of_the_index_arrays() -> None:
    order = build_sample_order(np.array([5, 6], np.int32), 0, 3, 4, 1)
    assert [a.dtype for a in (order.document_order, order.sample_index, order.shuffle)] == [
        np.int32,
        np.int32,
        np.uint32,
    ]


def test_published_seed_gives_numpys_legacy_stream() -> None:
    order = build_sample_order(np.full(5, 4, np.int32), 0, 1, 4, 1234)
    generator = np.random.RandomState(1234)
    documents, samples = np.arange(5), np.arange(4)
    generator.shuffle(documents)
    generator.shuffle(samples)
    assert order.document_order.tolist() == documents.tolist()
    assert order.shuffle.tolist() == samples.tolist()


def test_blend_draws_the_largest_deficit_first_of_equals() -> None:
    draw = random.Random(5)
    for _ in range(60):
        weights = [draw.choice([0.0, 1.0, 2.0, 5.0, draw.random()]) for _ in range(draw.randint(1, 6))]
        weights[draw.randrange(len(weights))] = 1.0
        shares = np.array(normalise_weights(weights, len(weights), "train_data_weights"))
        shares /= shares.sum()
        counts, expected = np.zeros(len(shares)), []
        for n in range(500):
            expected.append(int(np.argmax(shares * max(n, 1) - counts)))
            counts[expected[-1]] += 1
        found = blend_order(shares.tolist(), 500)
        assert found.tolist() == expected
        numbers = numbers_within(found, len(weights)).tolist()
        assert numbers == [expected[:n].count(expected[n]) for n in range(500)]


def test_blend_of_exact_weights_keeps_every_prefix_within_one_sample() -> None:
    order = blend_order([0.5, 0.25, 0.25], 400)
    for n in range(1, 401):
        for dataset, share in enumerate((Fraction(1, 2), Fraction(1, 4), Fraction(1, 4))):
            assert abs(int((order[:n] == dataset).sum()) - share * n) <= 1


@pytest.mark.parametrize(
    ("split", "documents", "expected"),
    [
        ("969,30,1", 1000, [(0, 969), (969, 999), (999, 1000)]),
        ("969,30,1", 10, [(0, 10), (10, 10), (10, 10)]),
        ("90/10", 20, [(0, 18), (18, 20), (20, 20)]),
        ("1", 3, [(0, 3), (3, 3), (3, 3)]),
        ("0.5,0.5,0", 3, [(0, 1), (1, 3), (3, 3)]),  # 1.5 rounds to 2 twice; the surplus of 1 moves every boundary
        ("0,50,50", 3, [(0, 0), (0, 1), (1, 3)]),
    ],
)
def test_split_rounds_as_neox_does(split: str, documents: int, expected: list[tuple[int, int]]) -> None:
    assert split_documents(DataConfig(split=split).split_shares, documents) == expected
