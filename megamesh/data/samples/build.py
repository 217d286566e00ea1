"""DataConfig → the datasets of a run.

    data_path + split ─────────────▶ document ranges ─▶ samples × 3
    train_/valid_/test_data_paths ─▶ samples per path ─▶ BlendedDataset × 3

Files, settings and token ids are checked here, before any training. Index arrays are kept beside the data or in data_cache_path, under
names that hold all they depend on (document_samples.py). Building twice finds what the first build wrote; so one process of a node builds
first.

Passes (`train_epochs`) over several paths: each path gives each of its samples as often as one pass after the other over it alone would,
interleaved in proportion throughout (blend.py).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megamesh.config.keys import DataConfig
from megamesh.data.samples.blend import blend_order, interleave_order, numbers_within, samples_wanted
from megamesh.data.samples.cache import cached_arrays
from megamesh.data.samples.dataset import BlendedDataset, TokenDataset
from megamesh.data.samples.document_samples import Documents, Packing, digest, make_samples, num_samples_in_epochs
from megamesh.data.samples.labels import open_labels
from megamesh.data.samples.paths import as_found, whole_prefix
from megamesh.data.samples.weights import normalise_weights, weights_by_documents, weights_by_size
from megamesh.data.store.indexed import IndexedDataset
from megamesh.data.store.mapped import allow_many_files
from megamesh.data.store.splits import SPLIT_NAMES, split_documents
from megamesh.errors import ConfigError, DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSplits:
    """The datasets of a run; None where no samples are wanted or no data is named. `valid_parts`: each validation path by itself."""

    train: TokenDataset | None
    valid: TokenDataset | None
    test: TokenDataset | None
    valid_parts: dict[str, TokenDataset] = field(default_factory=dict)


def build_datasets(
    data: DataConfig,
    *,
    sequence_length: int,
    seed: int,
    num_samples: tuple[int, int, int],
    vocab_size: int,
    train_epochs: int | None = None,
) -> DataSplits:
    """Open, check and index the data of a run. `num_samples`: samples wanted of train, valid and test; 0 wants no dataset.

    A split of share 0, or one without paths, gives None; one whose share rounds to no document raises DataError, as do missing or damaged
    files and token ids outside `vocab_size` (the unpadded vocabulary). Contradictory keys raise ConfigError. `train_epochs`: the run
    consists of passes, and train_data_paths are interleaved so.
    """
    check_sources(data)
    allow_many_files()
    packing = _packing(data, sequence_length, seed)
    if data.data_path is not None:
        train, valid, test = _split_one_file(data, packing, num_samples, vocab_size, train_epochs)
        return DataSplits(train, valid, test)
    train, valid, test = (
        _blend(_Paths(data, name, vocab_size), packing, n, train_epochs if name == "train" else None)
        for name, n in zip(SPLIT_NAMES, num_samples, strict=True)
    )
    parts: dict[str, TokenDataset] = {}
    if data.valid_per_dataset and num_samples[1] and data.valid_data_paths:
        paths = _Paths(data, "valid", vocab_size)
        names = short_names(data.valid_data_paths)
        parts = {name: make_samples(paths.open(i), packing, num_samples[1]) for i, name in enumerate(names)}
    return DataSplits(train, valid, test, parts)


def check_sources(data: DataConfig) -> None:
    """Raise ConfigError unless exactly one of data_path and train_data_paths is set."""
    named = [key for key in ("train_data_paths", "valid_data_paths", "test_data_paths") if getattr(data, key)]
    if data.data_path is not None and named:
        raise ConfigError(f"data_path and {named[0]} are both set; give data_path with split, or the *_data_paths")
    if data.data_path is None and "train_data_paths" not in named:
        raise ConfigError("no training data: set data_path (with split) or train_data_paths")


def num_train_samples(data: DataConfig, *, sequence_length: int, seed: int, epochs: int, vocab_size: int) -> int:
    """Samples in `epochs` passes over the training data, over each path of a blend."""
    check_sources(data)
    allow_many_files()
    packing = _packing(data, sequence_length, seed)
    if data.data_path is not None:
        indexed = IndexedDataset(whole_prefix("data_path", data.data_path))
        start, stop = split_documents(data.split_shares, len(indexed))[0]
        return num_samples_in_epochs(Documents("train", indexed, None, start, stop), packing, epochs)
    return sum(_samples_of_paths(_Paths(data, "train", vocab_size), packing, epochs))


class _Paths:
    """The files of one split of a blend."""

    def __init__(self, data: DataConfig, split: str, vocab_size: int):
        self.data, self.split, self.vocab_size = data, split, vocab_size
        self.cache_folder = _cache_folder(data)
        self.prefixes: list[str] = getattr(data, f"{split}_data_paths") or []
        self.labels: list[str] | None = getattr(data, f"{split}_label_data_paths")

    def open(self, number: int) -> Documents:
        """All documents of a path, checked."""
        indexed = IndexedDataset(self._whole("data_paths", self.prefixes[number]))
        indexed.check_token_ids(self.vocab_size, self.cache_folder)
        labels = None
        if self.labels is not None:
            prefix = self._whole("label_data_paths", self.labels[number])
            labels = open_labels(prefix, indexed, self.vocab_size, self.cache_folder)
        return Documents(self.split, indexed, labels, 0, len(indexed))

    def _whole(self, key: str, name: str) -> str:
        return whole_prefix(f"{self.split}_{key}", name)

    def weights(self) -> list[float]:
        """Each path's share of the blend."""
        key = f"{self.split}_data_weights"
        given, data = getattr(self.data, key), self.data
        by = [name for name in ("weight_by_num_documents", "weight_by_num_tokens") if getattr(data, name)]
        if len(by) + (given is not None) > 1:
            raise ConfigError(f"{' and '.join([key] * (given is not None) + by)} are both set; keep one")
        if not by:
            return normalise_weights(given, len(self.prefixes), key)
        opened = [IndexedDataset(self._whole("data_paths", name)) for name in self.prefixes]
        if not any(indexed.num_tokens for indexed in opened):
            raise DataError(
                f"{self.prefixes[0]}: {self.split}_data_paths hold no text; preprocess text that is not empty"
            )
        alpha = data.weighted_sampler_alpha
        if data.weight_by_num_tokens:
            return weights_by_size([indexed.num_tokens for indexed in opened], alpha)
        return weights_by_documents([len(indexed) for indexed in opened], alpha, data.weighted_document_limit)


def _blend(paths: _Paths, packing: Packing, wanted: int, epochs: int | None) -> TokenDataset | None:
    if wanted == 0 or not paths.prefixes:
        return None
    num_paths = len(paths.prefixes)
    if epochs is not None:
        sizes = _samples_of_paths(paths, packing, epochs)
        if sum(sizes) < wanted:
            raise DataError(
                f"train_epochs={epochs} over train_data_paths gives {sum(sizes)} samples, but {wanted} are wanted; "
                "a run whose batch size or data has changed on the way needs train_iters"
            )
        for prefix, size in zip(paths.prefixes, sizes, strict=True):
            if size == 0:
                log.warning("%s: too short for a sample in %d epochs: it has no part in the run", prefix, epochs)
        arrays = _blend_arrays(paths, packing, repr(sizes), lambda: interleave_order(sizes))
        asked = sizes
    else:
        weights = paths.weights()
        arrays = _blend_arrays(paths, packing, repr((weights, wanted)), lambda: blend_order(weights, wanted))
        drawn = np.bincount(arrays["dataset_of"], minlength=num_paths).tolist()
        asked = [samples_wanted(weight, wanted, n) if n else 0 for weight, n in zip(weights, drawn, strict=True)]
    datasets = [make_samples(paths.open(i), packing, n, epochs) if n else None for i, n in enumerate(asked)]
    return BlendedDataset(datasets, arrays["dataset_of"], arrays["number_within"], packing.sequence_length)


def _blend_arrays(
    paths: _Paths, packing: Packing, depends_on: str, order: Callable[[], np.ndarray]
) -> dict[str, np.ndarray]:
    """dataset_of and number_within of a blend, whose order is a function of `depends_on`."""
    num_paths = len(paths.prefixes)

    def build() -> dict[str, np.ndarray]:
        dataset_of = order()
        return {"dataset_of": dataset_of, "number_within": numbers_within(dataset_of, num_paths)}

    stem = packing.stem(
        as_found(paths.prefixes[0]), paths.split, f"blend_{num_paths}paths_{digest(depends_on.encode())}"
    )
    return cached_arrays(stem, build)


def _samples_of_paths(paths: _Paths, packing: Packing, epochs: int) -> list[int]:
    """Samples in so many passes over each path."""
    return [num_samples_in_epochs(paths.open(i), packing, epochs) for i in range(len(paths.prefixes))]


def _split_one_file(
    data: DataConfig, packing: Packing, num_samples: tuple[int, int, int], vocab_size: int, train_epochs: int | None
) -> list[TokenDataset | None]:
    assert data.data_path is not None
    shares = data.split_shares
    indexed = IndexedDataset(whole_prefix("data_path", data.data_path))
    indexed.check_token_ids(vocab_size, packing.cache_folder)
    datasets: list[TokenDataset | None] = []
    for name, share, (start, stop), wanted in zip(
        SPLIT_NAMES, shares, split_documents(shares, len(indexed)), num_samples, strict=True
    ):
        if wanted == 0 or (share == 0 and name != "train"):
            datasets.append(None)
            continue
        if start == stop:
            raise DataError(
                f"{data.data_path}: split={data.split!r} leaves no document for {name} out of {len(indexed)}, "
                f"but {wanted} samples are wanted; give {name} a larger share"
                f"{'' if name == 'train' else ', or 0 to do without'}, or more documents"
            )
        epochs = train_epochs if name == "train" else None
        datasets.append(make_samples(Documents(name, indexed, None, start, stop), packing, wanted, epochs))
    return datasets


def short_names(prefixes: Sequence[str]) -> list[str]:
    """The last part of each prefix; the whole prefix where two would be equal, numbered where these are."""
    ends = [Path(prefix).name for prefix in prefixes]
    names = [end if ends.count(end) == 1 else prefix for end, prefix in zip(ends, prefixes, strict=True)]
    return [name if names.count(name) == 1 else f"{name}#{i}" for i, name in enumerate(names)]


def _packing(data: DataConfig, sequence_length: int, seed: int) -> Packing:
    return Packing(data.pack_impl, data.allow_chopped, sequence_length, seed, _cache_folder(data))


def _cache_folder(data: DataConfig) -> Path | None:
    return None if data.data_cache_path is None else Path(data.data_cache_path)
