"""Datasets of a run: splits, blends, caches and what is refused."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megamesh.config.keys import DataConfig
from megamesh.data.samples import document_samples
from megamesh.data.samples.build import DataSplits, build_datasets, num_train_samples
from megamesh.data.samples.dataset import TokenDataset
from megamesh.errors import ConfigError, DataError
from tests.data import corpora
from tests.data.samples.test_sample_order import slow_samples

S = 8


def make(
    data: DataConfig, num_samples: tuple[int, int, int] = (30, 6, 0), *, seed: int = 1, s: int = S, vocab: int = 10_000
) -> DataSplits:
    return build_datasets(data, sequence_length=s, seed=seed, num_samples=num_samples, vocab_size=vocab)


def samples(dataset: TokenDataset | None) -> list[list[int]]:
    assert dataset is not None
    return [dataset[i].tokens.tolist() for i in range(len(dataset))]


def lengths(seed: int, count: int = 40) -> list[int]:
    draw = random.Random(seed)
    return [draw.randint(0, 20) for _ in range(count)]


def test_splits_are_the_slow_samples_of_their_documents(tmp_path: Path) -> None:
    documents = corpora.write(tmp_path / "data", lengths(1))
    built = make(DataConfig(data_path=str(tmp_path / "data"), split="80,15,5"), (100, 20, 5))
    for dataset, (start, stop), wanted in zip(
        (built.train, built.valid, built.test), ((0, 32), (32, 38), (38, 40)), (100, 20, 5), strict=True
    ):
        assert samples(dataset) == slow_samples(documents[start:stop], start, S, wanted, 1)


def test_blend_takes_each_dataset_in_its_own_order(tmp_path: Path) -> None:
    parts = [corpora.write(tmp_path / f"d{i}", lengths(i), first=1000 * i) for i in range(3)]
    weights = [0.5, 0.2, 0.3]
    data = DataConfig(train_data_paths=[str(tmp_path / f"d{i}") for i in range(3)], train_data_weights=[5, 2, 3])
    found = samples(make(data, (200, 0, 0)).train)
    own = [slow_samples(parts[i], 0, S, int(np.ceil(200 * weights[i] * 1.005)), 1) for i in range(3)]
    drawn, expected = [0, 0, 0], []
    for n in range(200):
        deficits = [w * max(n, 1) - d for w, d in zip(weights, drawn, strict=True)]
        best = deficits.index(max(deficits))
        expected.append(own[best][drawn[best]])
        drawn[best] += 1
    assert found == expected


def test_each_dataset_of_a_blend_is_asked_for_half_a_percent_more(tmp_path: Path) -> None:
    """As in NeoX: 100 samples would be one epoch here, 101 are two, and their documents are shuffled together."""
    documents = corpora.write(tmp_path / "data", [7] * 114 + [3])
    found = samples(make(DataConfig(train_data_paths=[str(tmp_path / "data")] * 2), (200, 0, 0)).train)
    assert sum(map(len, documents)) == 100 * S + 1
    assert found[::2] == found[1::2] == slow_samples(documents, 0, S, 101, 1)[:100]


def test_dataset_of_weight_zero_is_not_read(tmp_path: Path) -> None:
    corpora.write(tmp_path / "a", lengths(1))
    data = DataConfig(train_data_paths=[str(tmp_path / "a"), str(tmp_path / "missing")], train_data_weights=[1, 0])
    assert len(samples(make(data, (20, 0, 0)).train)) == 20


def test_second_build_reads_the_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpora.write(tmp_path / "data", lengths(1))
    data = DataConfig(data_path=str(tmp_path / "data"), split="80,20,0")
    first = make(data)
    monkeypatch.setattr(document_samples, "build_sample_order", lambda *_: pytest.fail("built again"))
    second = make(data)
    assert samples(first.train) == samples(second.train)
    assert samples(first.valid) == samples(second.valid)


CHANGES: dict[str, dict[str, Any]] = {
    "split": {"split": "60,40,0"},
    "seed": {"seed": 2},
    "sequence length": {"s": 5},
    "samples": {"train": 300},
    "file": {},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_builds_a_new_index(tmp_path: Path, change: str) -> None:
    corpora.write(tmp_path / "data", lengths(1))
    make(DataConfig(data_path=str(tmp_path / "data"), split="80,20,0"))
    what = CHANGES[change]
    turned = [*lengths(1)[31::-1], *lengths(1)[:31:-1]]  # as many documents and tokens in each split
    documents = corpora.write(tmp_path / "data", turned if change == "file" else lengths(1))
    split, seed, s, wanted = what.get("split", "80,20,0"), what.get("seed", 1), what.get("s", S), what.get("train", 30)
    built = make(DataConfig(data_path=str(tmp_path / "data"), split=split), (wanted, 6, 0), seed=seed, s=s)
    end = 24 if change == "split" else 32
    assert samples(built.train) == slow_samples(documents[:end], 0, s, wanted, seed)
    assert samples(built.valid) == slow_samples(documents[end:], end, s, 6, seed)


def test_a_change_that_keeps_every_shape_builds_a_new_index(tmp_path: Path) -> None:
    """Documents of one length: a moved split, and a blend of other weights, have arrays of the same shapes."""
    documents = corpora.write(tmp_path / "data", [10] * 40)
    for split, start in (("20,10,10", 20), ("25,10,5", 25)):
        built = make(DataConfig(data_path=str(tmp_path / "data"), split=split))
        assert samples(built.valid) == slow_samples(documents[start : start + 10], start, S, 6, 1)
    corpora.write(tmp_path / "other", [10] * 40, first=1000)
    paths = [str(tmp_path / "data"), str(tmp_path / "other")]
    for weights, drawn in (([3, 1], 30), ([1, 3], 10)):
        found = samples(make(DataConfig(train_data_paths=paths, train_data_weights=weights), (40, 0, 0)).train)
        assert sum(sample[0] < 1000 for sample in found) == drawn


def test_damaged_cache_is_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever byte is damaged, wherever the file is cut, and where it is another index under this name."""
    documents = corpora.write(tmp_path / "data", lengths(1))
    data = DataConfig(data_path=str(tmp_path / "data"), split="1")
    expected = slow_samples(documents, 0, S, 30, 1)
    make(data, seed=2)
    (other,) = (path.read_bytes() for path in tmp_path.glob("*.index"))
    make(data)
    (path,) = tmp_path.glob("*_1s_*.index")
    whole = path.read_bytes()
    draw = random.Random(1)
    flipped = [bytearray(whole) for _ in range(60)]
    for i, content in enumerate(flipped):
        content[i if i < 20 else draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    strange_type = whole.replace(b'["<i4"', b'["<04"', 1)
    assert strange_type != whole
    cut = [whole[: draw.randrange(len(whole))] for _ in range(20)]
    for content in [b"", b"not an index", other, strange_type, *cut, *flipped]:
        path.write_bytes(content)
        caplog.clear()
        assert samples(make(data).train) == expected
        assert "building it again" in caplog.text or content == path.read_bytes()
        assert path.read_bytes() == whole or "building it again" not in caplog.text


def test_unwritable_folder_works_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    documents = corpora.write(tmp_path / "data", lengths(1))
    monkeypatch.setattr("megamesh.data.samples.cache.replace_file", full)
    monkeypatch.setattr("megamesh.data.store.token_range.replace_file", full)
    built = make(DataConfig(data_path=str(tmp_path / "data"), split="1"))
    assert samples(built.train) == slow_samples(documents, 0, S, 30, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.bin", "data.idx"]


def test_a_name_too_long_for_an_index_works_from_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefix = tmp_path / ("x" * 240)
    documents = corpora.write(prefix, lengths(1))
    built = make(DataConfig(data_path=str(prefix), split="1"))
    assert samples(built.train) == slow_samples(documents, 0, S, 30, 1)
    assert "cannot be kept there (File name too long); it stays in memory" in caplog.text
    assert not list(tmp_path.glob("*.tmp-*"))


def test_caches_can_lie_elsewhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two files of one name in different folders do not get in each other's way, and the second start scans nothing."""
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        corpora.write(tmp_path / folder / "data", lengths(number), first=1000 * number)
    paths = [str(tmp_path / folder / "data") for folder in "ab"]
    beside = samples(make(DataConfig(train_data_paths=paths)).train)
    for file in [*tmp_path.rglob("*.index"), *tmp_path.rglob("*.json")]:
        file.unlink()
    data = DataConfig(train_data_paths=paths, data_cache_path=str(tmp_path / "deep" / "cache"))
    assert samples(make(data).train) == beside
    assert sorted(path.name for path in tmp_path.glob("[ab]/*")) == ["data.bin", "data.bin", "data.idx", "data.idx"]
    caplog.set_level("INFO", "megamesh")
    caplog.clear()
    assert samples(make(data).train) == beside
    assert "token ids" not in caplog.text


def test_weights_follow_the_sizes_of_the_files(tmp_path: Path) -> None:
    """90, 45 and 15 tokens in 9, 9 and 3 documents."""
    for number, (count, length) in enumerate(((9, 10), (9, 5), (3, 5))):
        corpora.write(tmp_path / f"d{number}", [length] * count, first=1000 * number)
    paths = [str(tmp_path / f"d{number}") for number in range(3)]

    def drawn(**keys: Any) -> list[int]:
        found = samples(make(DataConfig(train_data_paths=paths, **keys), (300, 0, 0)).train)
        return np.bincount([sample[0] // 1000 for sample in found]).tolist()

    assert drawn(weight_by_num_tokens=True) == [180, 90, 30]
    assert drawn(weight_by_num_tokens=True, weighted_sampler_alpha=0.0) == [100, 100, 100]
    shares = np.array([3, 3, 1]) / 7 * (1 - np.array([3, 3, 1]) / 7)
    assert drawn(weight_by_num_documents=True) == pytest.approx((300 * shares / shares.sum()).tolist(), abs=1)
    with pytest.raises(ConfigError, match="train_data_weights and weight_by_num_tokens are both set"):
        drawn(weight_by_num_tokens=True, train_data_weights=[1, 1, 1])


def test_each_validation_path_has_a_dataset_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    parts = [corpora.write(tmp_path / name, lengths(i), first=1000 * i) for i, name in enumerate(("a", "b", "x/a"))]
    paths = [str(tmp_path / name) for name in ("a", "b", "x/a")]
    data = DataConfig(train_data_paths=paths[:1], valid_data_paths=paths, valid_per_dataset=True)
    built = make(data, (4, 6, 0))
    assert list(built.valid_parts) == [paths[0], "b", paths[2]]
    for part, documents in zip(built.valid_parts.values(), parts, strict=True):
        assert samples(part) == slow_samples(documents, 0, S, 6, 1)


def test_interrupted_cache_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    corpora.write(tmp_path / "data", lengths(1))
    monkeypatch.setattr("megamesh.data.samples.cache._write", stop)
    with pytest.raises(KeyboardInterrupt):
        make(DataConfig(data_path=str(tmp_path / "data"), split="1"))
    assert not [path for path in tmp_path.iterdir() if "index" in path.name]


def test_samples_of_epochs(tmp_path: Path) -> None:
    documents = corpora.write(tmp_path / "data", lengths(1))
    data = DataConfig(data_path=str(tmp_path / "data"), split="80,20,0")
    wanted = num_train_samples(data, sequence_length=S, seed=1, epochs=3, vocab_size=10_000)
    assert wanted == (3 * sum(map(len, documents[:32])) - 1) // S
    assert len(samples(make(data, (wanted, 0, 0)).train)) == wanted


def test_what_is_not_wanted_is_none(tmp_path: Path) -> None:
    corpora.write(tmp_path / "data", lengths(1))
    built = make(DataConfig(data_path=str(tmp_path / "data"), split="1"), (10, 10, 0))
    assert built.valid is None
    assert built.test is None


def bad_rounded(prefix: str) -> DataConfig:
    return DataConfig(data_path=prefix, split="999,1,0")


def bad_both(prefix: str) -> DataConfig:
    return DataConfig(data_path=prefix, train_data_paths=[prefix])


def bad_weights(prefix: str) -> DataConfig:
    return DataConfig(train_data_paths=[prefix], train_data_weights=[1, 2])


def bad_negative(prefix: str) -> DataConfig:
    return DataConfig(train_data_paths=[prefix, prefix], train_data_weights=[1, -2])


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (
            bad_rounded,
            DataError,
            r"split='999,1,0' leaves no document for valid out of 40, but 6 samples are wanted; give valid a larger share",
        ),
        (bad_both, ConfigError, r"data_path and train_data_paths are both set"),
        (bad_weights, ConfigError, r"train_data_weights has 2 values for 1 data paths"),
        (bad_negative, ConfigError, r"train_data_weights=\[1.0, -2.0\]"),
        (lambda _: DataConfig(), ConfigError, r"set data_path .*or train_data_paths"),
        (
            lambda p: DataConfig(data_path=f"{p}2"),
            DataError,
            r"data_path: .*data2: no dataset there; .* such as .*data$",
        ),
    ],
)
def test_bad_data_is_named(tmp_path: Path, config: Any, kind: type[Exception], message: str) -> None:
    corpora.write(tmp_path / "data", lengths(1))
    with pytest.raises(kind, match=message):
        make(config(str(tmp_path / "data")))


def test_ids_outside_the_vocabulary_and_empty_data_are_named(tmp_path: Path) -> None:
    corpora.write(tmp_path / "data", lengths(1))
    with pytest.raises(DataError, match=r"data\.bin: token id \d+ is outside the vocabulary of 50"):
        make(DataConfig(data_path=str(tmp_path / "data")), vocab=50)
    corpora.write(tmp_path / "empty", [0, 0])
    with pytest.raises(DataError, match="hold no token"):
        make(DataConfig(data_path=str(tmp_path / "empty"), split="1"))
