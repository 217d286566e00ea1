"""Whole documents in samples (pack_until_overflow, unpacked) and labels, against slow, obvious implementations."""

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megamesh.config.keys import DataConfig
from megamesh.data.samples.build import DataSplits, build_datasets, num_train_samples
from megamesh.data.samples.dataset import TokenDataset
from megamesh.data.samples.loader import iterate_batches
from megamesh.data.store.indexed import IndexedWriter
from megamesh.errors import DataError
from tests.data import corpora

S, VOCAB = 8, 100_000


def make(prefix: Path, wanted: int, labels: Path | None = None, **keys: Any) -> DataSplits:
    label_paths = None if labels is None else [str(labels)]
    data = DataConfig(train_data_paths=[str(prefix)], train_label_data_paths=label_paths, **keys)
    return build_datasets(data, sequence_length=S, seed=3, num_samples=(wanted, 0, 0), vocab_size=VOCAB)


def rows(dataset: TokenDataset | None) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of each sample; labels are the tokens where there are none."""
    assert dataset is not None
    samples = [dataset[i] for i in range(len(dataset))]
    return [(s.tokens.tolist(), (s.tokens if s.labels is None else s.labels).tolist()) for s in samples]


def slow_fill(documents: list[list[int]], one_each: bool) -> list[list[list[int]]]:
    """Documents laid into samples one by one."""
    filled: list[list[list[int]]] = []
    for document in documents:
        if one_each or not filled or sum(map(len, filled[-1])) + len(document) > S + 1:
            filled.append([])
        filled[-1].append(document)
    return filled


def write_labels(prefix: Path, documents: list[list[int]], draw: random.Random) -> list[list[int]]:
    """Labels unlike the tokens, many of them -100, of some documents all, of the last none."""
    labels = []
    with IndexedWriter(prefix, np.int32, overwrite=True) as writer:
        for number, document in enumerate(documents, start=1):
            masked = draw.choice([0.4, 0.4, 0.4, 1.0]) if number < len(documents) else 0.0
            labels.append([-100 if draw.random() < masked else token + 50_000 for token in document])
            writer.add_document(labels[-1])
    return labels


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("allow_chopped", [True, False])
@pytest.mark.parametrize("impl", ["unpacked", "pack_until_overflow"])
def test_samples_are_whole_documents_with_padding(
    tmp_path: Path, impl: str, allow_chopped: bool, labelled: bool
) -> None:
    draw = random.Random(4)
    for case in range(15):
        lengths = [draw.choice([0, 1, 2, 3, 5, S, S + 1, S + 2, 3 * S]) for _ in range(draw.randint(4, 60))] + [3]
        documents = corpora.write(tmp_path / f"{case}", lengths, first=1)
        labels = write_labels(tmp_path / f"{case}l", documents, draw) if labelled else documents
        usable = {
            document[0]: label
            for document, label in zip(documents, labels, strict=True)
            if any(one >= 0 for one in label[1 : S + 1]) and (allow_chopped or len(document) <= S + 1)
        }
        built = make(
            tmp_path / f"{case}",
            1,
            tmp_path / f"{case}l" if labelled else None,
            pack_impl=impl,
            allow_chopped=allow_chopped,
        )
        assert built.train is not None
        order = [documents[i] for i in built.train.datasets[0].order.document_order.tolist()]  # type: ignore[attr-defined]
        assert sorted(document[0] for document in order) == sorted(usable)
        expected = []
        for filled in slow_fill(order, impl == "unpacked"):
            tokens = [token for document in filled for token in document][: S + 1]
            label = [one for document in filled for one in usable[document[0]]][: S + 1]
            pad = S + 1 - len(tokens)
            expected.append((tokens + [0] * pad, label + [-100] * pad))
        assert sorted(rows(built.train.datasets[0])) == sorted(expected)  # type: ignore[attr-defined]


@pytest.mark.parametrize("impl", ["unpacked", "pack_until_overflow"])
def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own(tmp_path: Path, impl: str) -> None:
    corpora.write(tmp_path / "data", [random.Random(2).randint(2, 7)] * 30 + [3] * 25, first=1)
    data = DataConfig(train_data_paths=[str(tmp_path / "data")], pack_impl=impl)  # type: ignore[arg-type]
    total = num_train_samples(data, sequence_length=S, seed=3, epochs=3, vocab_size=VOCAB)
    found = [tokens[0] for tokens, _ in rows(make(tmp_path / "data", total, pack_impl=impl).train)]
    epochs = [found[i : i + total // 3] for i in range(0, total, total // 3)]
    assert len(epochs) == 3
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == len(epoch) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    fewer = [tokens[0] for tokens, _ in rows(make(tmp_path / "data", total // 2, pack_impl=impl).train)]
    assert fewer == found[: len(fewer)]


def test_packed_labels_stand_at_their_tokens(tmp_path: Path) -> None:
    draw = random.Random(5)
    documents = corpora.write(tmp_path / "data", [draw.randint(0, 20) for _ in range(40)])
    labels = write_labels(tmp_path / "labels", documents, draw)
    label_of = {
        token: label for pair in zip(documents, labels, strict=True) for token, label in zip(*pair, strict=True)
    }
    plain, labelled = make(tmp_path / "data", 70).train, make(tmp_path / "data", 70, tmp_path / "labels").train
    assert [tokens for tokens, _ in rows(plain)] == [tokens for tokens, _ in rows(labelled)]
    assert all(label == [label_of[token] for token in tokens] for tokens, label in rows(labelled))


def test_batches_mask_what_is_not_counted(tmp_path: Path) -> None:
    corpora.write(tmp_path / "data", [3, 5], first=1)
    train = make(tmp_path / "data", 2, pack_impl="unpacked").train
    assert train is not None
    (batch,) = iterate_batches(
        train, consumed_samples=0, total_samples=2, micro_batch_size=2, dp_rank=0, dp_size=1, num_workers=0
    )
    found = {tuple(row) for row in torch_rows(batch)}
    assert found == {(1, 2, 3, 0, 0, 0, 0, 0, 2), (4, 5, 6, 7, 8, 0, 0, 0, 4)}
    counted = batch.loss_mask_BS.bool()
    assert sorted(batch.labels_BS[counted].tolist()) == [2, 3, 5, 6, 7, 8]


def torch_rows(batch: Any) -> list[list[int]]:
    """Tokens of a sample, and how many of its positions count."""
    return [
        [*tokens.tolist(), int(mask.sum())] for tokens, mask in zip(batch.tokens_BS, batch.loss_mask_BS, strict=True)
    ]


def test_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "megamesh")
    corpora.write(tmp_path / "data", [0, 1, 5, 20, 30], first=1)
    make(tmp_path / "data", 1, pack_impl="unpacked")
    assert (
        "of 5 documents 2 have nothing to learn from and are left out, 2 are longer than 9 tokens and are cut off (32 tokens)"
        in caplog.text
    )
    make(tmp_path / "data", 1, pack_impl="unpacked", allow_chopped=False)
    assert "2 are longer than 9 tokens and are left out (50 tokens)" in caplog.text
    corpora.write(tmp_path / "long", [20], first=1)
    with pytest.raises(DataError, match=r"long: the 1 documents for train give no sample: .*more than 9"):
        make(tmp_path / "long", 1, pack_impl="unpacked", allow_chopped=False)


def test_labels_that_do_not_fit_are_named(tmp_path: Path) -> None:
    corpora.write(tmp_path / "data", [3, 5, 2])
    corpora.write(tmp_path / "fewer", [3, 5])
    corpora.write(tmp_path / "other", [3, 4, 3])
    corpora.write(tmp_path / "large", [3, 5, 2], first=VOCAB)
    for name, message in (
        ("fewer", r"fewer\.idx: labels of 2 sequences, but .*data\.idx has 3"),
        ("other", r"other\.idx: sequence 1 has 4 labels, but 5 tokens in .*data\.idx"),
        ("large", r"large\.bin: label 100009 is outside the vocabulary of 100000"),
        ("none", r"train_label_data_paths: .*none: no dataset there"),
    ):
        with pytest.raises(DataError, match=message):
            make(tmp_path / "data", 3, tmp_path / name)


def test_changed_labels_cut_anew(tmp_path: Path) -> None:
    """Also where they are as large and, as an archive may say, as old as the ones before."""
    documents = corpora.write(tmp_path / "data", [4, 4, 4], first=1)
    for kept in range(3):
        with IndexedWriter(tmp_path / "labels", np.int32, overwrite=True) as writer:
            for i, document in enumerate(documents):
                writer.add_document(document if i == kept else [-100] * 4)
        os.utime(tmp_path / "labels.bin", (1, 1))
        found = rows(make(tmp_path / "data", 5, tmp_path / "labels", pack_impl="unpacked").train)
        assert Counter(tokens[0] for tokens, _ in found) == {4 * kept + 1: 5}
