"""The documents of one file → a dataset of samples, its index read from the cache or built.

    Documents (file, labels, range) + Packing ─┬─ packed ─────────────────────────────▶ PackedDataset
                                               └─ pack_until_overflow, unpacked ──────▶ PaddedDataset

An index is kept under a name that holds all it depends on: a digest of the document lengths, the range of documents, epochs, sequence
length, seed and packing; for padded samples also which labels there are.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from megamesh.data.samples.cache import cached_arrays
from megamesh.data.samples.dataset import PackedDataset, PaddedDataset, TokenDataset
from megamesh.data.samples.labels import num_counted_labels
from megamesh.data.samples.padded import PaddedOrder, cut_documents, shuffle_epochs
from megamesh.data.samples.sample_index import SampleOrder, build_sample_order, num_epochs, samples_in_epochs
from megamesh.data.store.format import bin_path
from megamesh.data.store.indexed import IndexedDataset
from megamesh.errors import DataError

log = logging.getLogger(__name__)

CACHE_VERSION = 2


@dataclass(frozen=True)
class Packing:
    """How documents become samples, and where the index is kept (None: beside the data)."""

    impl: Literal["packed", "pack_until_overflow", "unpacked"]
    allow_chopped: bool
    sequence_length: int
    seed: int
    cache_folder: Path | None = None

    def stem(self, prefix: str, *parts: str) -> Path:
        """Where an index of the file `prefix` is kept, without the ending."""
        name = "_".join((Path(prefix).name, *parts))
        return (Path(prefix).parent if self.cache_folder is None else self.cache_folder) / f"{name}_v{CACHE_VERSION}"


@dataclass(frozen=True)
class Documents:
    """Documents [start, stop) of a file, with their labels where there are any. `split` names what they are for."""

    split: str
    indexed: IndexedDataset
    labels: IndexedDataset | None
    start: int
    stop: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int32."""
        lengths: np.ndarray = self.indexed.lengths[self.start : self.stop]
        return lengths

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    def nothing(self, reason: str) -> DataError:
        return DataError(f"{self.indexed.prefix}: the {self.stop - self.start} documents for {self.split} {reason}")


def num_samples_in_epochs(documents: Documents, packing: Packing, epochs: int) -> int:
    """Samples in so many passes over the documents."""
    if packing.impl == "packed":
        return samples_in_epochs(documents.num_tokens, packing.sequence_length, epochs)
    return epochs * (len(_cut(documents, packing)["starts"]) - 1)


def make_samples(documents: Documents, packing: Packing, wanted: int, epochs: int | None = None) -> TokenDataset:
    """The samples of `epochs` passes at least, and of as few as give `wanted`. Raises DataError where the documents give none."""
    return (_packed if packing.impl == "packed" else _padded)(documents, packing, wanted, epochs)


def _packed(documents: Documents, packing: Packing, wanted: int, epochs: int | None) -> PackedDataset:
    lengths, num_tokens, length = documents.lengths, documents.num_tokens, packing.sequence_length
    if num_tokens == 0:
        raise documents.nothing("hold no token; preprocess text that is not empty")
    epochs = max(epochs or 1, num_epochs(num_tokens, length, wanted))
    stem = packing.stem(
        documents.indexed.prefix,
        documents.split,
        f"{documents.start}-{documents.stop}_{epochs}ep_{length}sl_{packing.seed}s_packed_{digest(lengths)}",
    )

    def build() -> dict[str, np.ndarray]:
        return vars(build_sample_order(lengths, documents.start, epochs, length, packing.seed))

    order = SampleOrder(**cached_arrays(stem, build))
    _say(documents, order.num_samples, epochs, wanted)
    return PackedDataset(documents.indexed, order, length, documents.labels)


def _padded(documents: Documents, packing: Packing, wanted: int, epochs: int | None) -> PaddedDataset:
    cut = _cut(documents, packing)
    per_epoch = len(cut["starts"]) - 1
    if per_epoch == 0:
        raise documents.nothing(
            "give no sample: each has less than 2 tokens, "
            f"{'' if packing.allow_chopped else f'more than {packing.sequence_length + 1}, '}or no label that counts"
        )
    epochs = max(epochs or 1, -(-wanted // per_epoch))
    shuffle = cached_arrays(
        packing.stem(documents.indexed.prefix, f"shuffle_{per_epoch}samples_{epochs}ep_{packing.seed}s"),
        lambda: {"shuffle": shuffle_epochs(per_epoch, epochs, packing.seed)},
    )
    order = PaddedOrder(**cut, **shuffle)
    _say(documents, order.num_samples, epochs, wanted)
    return PaddedDataset(documents.indexed, order, packing.sequence_length, documents.labels)


def _cut(documents: Documents, packing: Packing) -> dict[str, np.ndarray]:
    """Which documents a sample holds: document_order and starts."""
    lengths, room = documents.lengths, packing.sequence_length + 1
    chopped = "" if packing.allow_chopped else "_whole"
    labelled = ""
    if documents.labels is not None:
        labelled = f"_labels{_file_digest(bin_path(documents.labels.prefix))}"
    stem = packing.stem(
        documents.indexed.prefix,
        documents.split,
        f"{documents.start}-{documents.stop}_{packing.sequence_length}sl_{packing.seed}s_{packing.impl}{chopped}{labelled}_{digest(lengths)}",
    )

    def build() -> dict[str, np.ndarray]:
        usable = _usable(documents, packing)
        return cut_documents(lengths, usable, documents.start, room, packing.seed, one_each=packing.impl == "unpacked")

    return cached_arrays(stem, build)


def _usable(documents: Documents, packing: Packing) -> np.ndarray:
    """Which documents become samples; what is left out or cut off is counted in the log."""
    lengths, room = documents.lengths, packing.sequence_length + 1
    usable = lengths >= 2
    if documents.labels is not None:
        usable &= num_counted_labels(documents.labels, documents.start, documents.stop, room) > 0
    empty = len(lengths) - int(usable.sum())
    long = usable & (lengths > room)
    if not packing.allow_chopped:
        usable &= ~long
    log.info(
        "%s: %s: of %d documents %d have nothing to learn from and are left out, %d are longer than %d tokens and are %s (%d tokens)",
        documents.split, documents.indexed.prefix, len(lengths), empty, int(long.sum()), room,
        "cut off" if packing.allow_chopped else "left out",
        int((lengths[long].astype(np.int64) - (room if packing.allow_chopped else 0)).sum()),
    )  # fmt: skip
    return usable


def _say(documents: Documents, num_samples: int, epochs: int, wanted: int) -> None:
    log.info(
        "%s: %s: %d documents, %d tokens, %d samples in %d epoch%s (%d wanted)",
        documents.split, documents.indexed.prefix, documents.stop - documents.start, documents.num_tokens,
        num_samples, epochs, "s" * (epochs > 1), wanted,
    )  # fmt: skip


def _file_digest(path: Path) -> str:
    """Which file this is, without reading it: the time of its last change counts, which copying and unpacking do not preserve."""
    status = path.stat()
    facts = (path.absolute(), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def digest(content: np.ndarray | bytes) -> str:
    """16 hex digits that tell contents apart."""
    data = content if isinstance(content, bytes) else np.ascontiguousarray(content).data
    return hashlib.blake2b(data, digest_size=8).hexdigest()
