"""DataConfig → the three datasets of a run.

    data_path + split ───────────▶ document ranges ─▶ PackedDataset × 3
    train_/valid_/test_data_paths ─▶ PackedDataset per path ─▶ BlendedDataset × 3

Files, settings and token ids are checked here, before any training. Index arrays are kept beside the data under names that hold all they
depend on: a digest of the document lengths, the range of documents, epochs, sequence length and seed (and weights and samples for a
blend). Building twice finds what the first build wrote; so one process builds first, then all others.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megamesh.config.sections import DataConfig
from megamesh.data.blend import blend_order, normalise_weights, numbers_within, samples_wanted
from megamesh.data.cache import cached_arrays
from megamesh.data.dataset import BlendedDataset, PackedDataset, TokenDataset
from megamesh.data.indexed import IndexedDataset
from megamesh.data.sample_index import SampleOrder, build_sample_order, num_epochs
from megamesh.data.splits import SPLIT_NAMES, split_documents
from megamesh.errors import ConfigError, DataError

log = logging.getLogger(__name__)

CACHE_VERSION = 1
ARRAYS = ("document_order", "sample_index", "shuffle")


@dataclass(frozen=True)
class DataSplits:
    """The datasets of a run; None where no samples are wanted or no data is named."""

    train: TokenDataset | None
    valid: TokenDataset | None
    test: TokenDataset | None


def build_datasets(
    data: DataConfig, *, sequence_length: int, seed: int, num_samples: tuple[int, int, int], vocab_size: int
) -> DataSplits:
    """Open, check and index the data of a run. `num_samples`: samples wanted of train, valid and test; 0 wants no dataset.

    A split of share 0, or one without paths, gives None; one whose share rounds to no document raises DataError, as do missing or damaged
    files and token ids outside `vocab_size` (the unpadded vocabulary). Contradictory keys raise ConfigError.
    """
    check_sources(data)
    if data.data_path is not None:
        datasets = _split_one_file(data, sequence_length, seed, num_samples, vocab_size)
    else:
        datasets = [
            _blend_paths(data, name, sequence_length, seed, n, vocab_size)
            for name, n in zip(SPLIT_NAMES, num_samples, strict=True)
        ]
    return DataSplits(*datasets)


def check_sources(data: DataConfig) -> None:
    """Raise ConfigError unless exactly one of data_path and train_data_paths is set."""
    named = [key for key in ("train_data_paths", "valid_data_paths", "test_data_paths") if getattr(data, key)]
    if data.data_path is not None and named:
        raise ConfigError(f"data_path and {named[0]} are both set; give data_path with split, or the *_data_paths")
    if data.data_path is None and "train_data_paths" not in named:
        raise ConfigError("no training data: set data_path (with split) or train_data_paths")


def num_train_samples(data: DataConfig, *, sequence_length: int, epochs: int) -> int:
    """Samples in `epochs` passes over the training data. Raises ConfigError for a blend of several paths."""
    check_sources(data)
    if data.data_path is not None:
        indexed = IndexedDataset(data.data_path)
        start, stop = split_documents(data.split_shares, len(indexed))[0]
    else:
        paths = data.train_data_paths or []
        if len(paths) != 1:
            raise ConfigError(
                f"train_epochs with {len(paths)} train_data_paths: passes over a blend are not defined; set train_iters"
            )
        indexed = IndexedDataset(paths[0])
        start, stop = 0, len(indexed)
    num_tokens = int(indexed.lengths[start:stop].sum(dtype=np.int64))
    return max(0, (epochs * num_tokens - 1) // sequence_length)


def _split_one_file(
    data: DataConfig, sequence_length: int, seed: int, num_samples: tuple[int, int, int], vocab_size: int
) -> list[TokenDataset | None]:
    assert data.data_path is not None
    shares = data.split_shares
    indexed = IndexedDataset(data.data_path)
    indexed.check_token_ids(vocab_size)
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
        datasets.append(_packed(indexed, name, start, stop, wanted, sequence_length, seed))
    return datasets


def _blend_paths(
    data: DataConfig, name: str, sequence_length: int, seed: int, wanted: int, vocab_size: int
) -> TokenDataset | None:
    paths: list[str] = getattr(data, f"{name}_data_paths") or []
    if wanted == 0 or not paths:
        return None
    weights = normalise_weights(getattr(data, f"{name}_data_weights"), len(paths), f"{name}_data_weights")
    key = _digest(repr((CACHE_VERSION, weights, wanted)).encode())
    arrays = cached_arrays(
        Path(f"{paths[0]}_{name}_blend_{wanted}samples_{key}"),
        ("dataset_of",),
        lambda: {"dataset_of": blend_order(weights, wanted)},
    )
    dataset_of = arrays["dataset_of"]
    drawn = np.bincount(dataset_of, minlength=len(paths))
    datasets: list[TokenDataset | None] = []
    for path, weight, count in zip(paths, weights, drawn.tolist(), strict=True):
        if count == 0:
            datasets.append(None)
            continue
        indexed = IndexedDataset(path)
        indexed.check_token_ids(vocab_size)
        datasets.append(
            _packed(indexed, name, 0, len(indexed), samples_wanted(weight, wanted, count), sequence_length, seed)
        )
    return BlendedDataset(datasets, dataset_of, numbers_within(dataset_of, len(paths)), sequence_length)


def _packed(
    indexed: IndexedDataset, name: str, start: int, stop: int, wanted: int, sequence_length: int, seed: int
) -> PackedDataset:
    """Documents [start, stop) in sample order, at least `wanted` samples."""
    lengths = np.array(indexed.lengths[start:stop])
    num_tokens = int(lengths.sum(dtype=np.int64))
    if num_tokens == 0:
        raise DataError(
            f"{indexed.prefix}: the {stop - start} documents for {name} hold no token; preprocess text that is not empty"
        )
    epochs = num_epochs(num_tokens, sequence_length, wanted)
    digest = _digest(np.ascontiguousarray(lengths).data)
    stem = f"{indexed.prefix}_{name}_{start}-{stop}_{epochs}ep_{sequence_length}sl_{seed}s_v{CACHE_VERSION}_{digest}"

    def build() -> dict[str, np.ndarray]:
        order = build_sample_order(lengths, start, epochs, sequence_length, seed)
        return {array: getattr(order, array) for array in ARRAYS}

    order = _checked(
        cached_arrays(Path(stem), ARRAYS, build), len(lengths) * epochs, (epochs * num_tokens - 1) // sequence_length
    )
    if order is None:
        log.warning("%s_*.npy: not the arrays that belong there; building them anew in memory", stem)
        order = SampleOrder(**build())
    log.info(
        "%s: %s: %d documents, %d tokens, %d samples in %d epoch%s (%d wanted)",
        name, indexed.prefix, stop - start, num_tokens, order.num_samples, epochs, "s" * (epochs > 1), wanted,
    )  # fmt: skip
    return PackedDataset(indexed, order, sequence_length)


def _checked(arrays: dict[str, np.ndarray], num_documents: int, num_samples: int) -> SampleOrder | None:
    """The arrays as an order, or None where their shapes are not the expected ones."""
    order = SampleOrder(**arrays)
    shapes = (order.document_order.shape, order.sample_index.shape, order.shuffle.shape)
    return order if shapes == ((num_documents,), (num_samples + 1, 2), (num_samples,)) else None


def _digest(content: Sequence[int] | memoryview | bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()  # type: ignore[arg-type]
