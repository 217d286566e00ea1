"""The order of samples against slow, obvious implementations of contracts.md."""

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from megamesh.config.keys import DataConfig
from megamesh.data.samples import blend
from megamesh.data.samples.blend import blend_order, interleave_order, numbers_within
from megamesh.data.samples.dataset import PackedDataset
from megamesh.data.samples.sample_index import build_sample_index, build_sample_order, num_epochs, shuffled_documents
from megamesh.data.samples.weights import normalise_weights, weights_by_documents, weights_by_size
from megamesh.data.store.indexed import IndexedDataset
from megamesh.data.store.splits import split_documents
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
        found = [dataset[i].tokens.tolist() for i in range(len(dataset))]
        assert found == slow_samples(documents[first:], first, sequence_length, wanted, seed), f"case {case}: {lengths}"
        assert len(found) >= wanted


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_sample_index_rows_equal_a_walk_over_single_tokens(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megamesh.data.samples.sample_index.BLOCK_DOCUMENTS", block)
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


def slow_blend(shares: np.ndarray, num_samples: int) -> list[int]:
    counts, order = np.zeros(len(shares)), []
    for n in range(num_samples):
        order.append(int(np.argmax(np.where(shares > 0, shares * max(n, 1) - counts, -np.inf))))
        counts[order[-1]] += 1
    return order


@pytest.mark.parametrize(("cells", "longest", "shortest"), [(64, 64, 1), (500, 100, 7), (1 << 16, 8000, 64)])
def test_blend_draws_the_largest_deficit_first_of_equals(
    cells: int, longest: int, shortest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the order is cut into stretches that are computed side by side."""
    for name, value in (("CELLS", cells), ("LONGEST", longest), ("SHORTEST", shortest)):
        monkeypatch.setattr(blend, name, value)
    draw = random.Random(5)
    for _ in range(60):
        count = draw.choice([1, 2, 5, 30])
        weights = [draw.choice([0.0, 1.0, 2.0, 5.0, draw.random(), np.exp(9 * draw.random())]) for _ in range(count)]
        weights[draw.randrange(len(weights))] = 1.0
        shares = np.array(normalise_weights(weights, len(weights), "train_data_weights"))
        expected = slow_blend(shares / shares.sum(), 500)
        found = blend_order(shares.tolist(), 500)
        assert found.tolist() == expected
        assert blend_order(shares.tolist(), 317).tolist() == expected[:317]
        numbers = numbers_within(found, len(weights)).tolist()
        assert numbers == [expected[:n].count(expected[n]) for n in range(500)]


def test_blend_of_more_datasets_than_int16_holds() -> None:
    order = blend_order([1.0] * 40_000, 300)
    assert order.dtype == np.int32
    assert order.tolist() == list(range(300))
    assert blend_order([0.0] * 39_999 + [1.0], 3).tolist() == [39_999] * 3
    assert interleave_order([0] * 39_998 + [1, 2]).tolist() == [39_999, 39_998, 39_999]


def test_passes_give_every_sample_once_and_in_proportion_throughout() -> None:
    draw = random.Random(8)
    for _ in range(100):
        sizes = [draw.choice([0, 1, 3, 50, draw.randint(1, 400)]) for _ in range(draw.randint(1, 12))] + [1]
        order = interleave_order(sizes)
        assert np.bincount(order, minlength=len(sizes)).tolist() == sizes
        for i, size in enumerate(sizes):
            drawn = np.cumsum(order == i)
            assert np.all(np.abs(drawn - size * np.arange(1, len(order) + 1) / len(order)) <= len(sizes))


def test_weights_by_size() -> None:
    assert weights_by_size([1, 3, 0], 1.0) == [0.25, 0.75, 0.0]
    assert weights_by_size([1, 4], 0.5) == pytest.approx([1 / 3, 2 / 3])
    assert weights_by_size([5, 7], 0.0) == [0.5, 0.5]
    assert weights_by_size([10, 20], 1e6) == [0.0, 1.0]


def test_weights_by_documents_are_neoxs() -> None:
    """p^α / Σ p^α · (1 − p), normalised, with p the shares of min(documents, limit)."""
    counts, alpha, limit = [10, 200, 3000], 0.3, 500
    p = np.minimum(counts, limit) / np.minimum(counts, limit).sum()
    expected = p**alpha / (p**alpha).sum() * (1 - p)
    assert weights_by_documents(counts, alpha, limit) == pytest.approx((expected / expected.sum()).tolist(), rel=1e-14)
    assert weights_by_documents([1, 3], 1.0) == pytest.approx([0.5, 0.5])
    assert weights_by_documents([0, 3], 1.0) == [0.0, 1.0]


def test_document_numbers_beyond_int32_are_kept() -> None:
    first = 2**31 - 3
    order = shuffled_documents(np.random.RandomState(1), first, 5, 2)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == sorted(list(range(first, first + 5)) * 2)
    lengths = np.array([2**31 - 1, 2**31 - 1, 5, 2**31 - 1, 7], np.int32)
    rows = build_sample_index(lengths, order, first, 2**31 - 2)
    ends = np.cumsum(lengths.astype(np.int64)[order - first])
    for j, (position, offset) in enumerate(rows.tolist()):
        assert int(ends[position] - lengths[order[position] - first]) + offset == j * (2**31 - 2)


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
