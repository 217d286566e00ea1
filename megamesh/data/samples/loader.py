"""Samples → batches, read ahead by worker processes.

    micro_batch_ids ─▶ [worker: dataset[i] for i in ids ─▶ Batch] ─▶ iterate_batches

The batches and their order do not depend on the number of workers. No global random stream is touched: the torch DataLoader has a
generator of its own. Workers never see the signals on which a run saves and leaves (a scheduler sends them to every process); they end with
the iterator, at the interpreter's exit, or, within seconds, when the training process is gone.
"""

import atexit
import contextlib
import signal
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from megamesh.child_signals import children_without
from megamesh.data.samples.batch import Batch, make_batch
from megamesh.data.samples.dataset import TokenDataset
from megamesh.data.samples.sampler import micro_batch_ids
from megamesh.errors import DataError, MegaMeshError

_SIGNALS_THAT_SAVE = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
DEATH_SECONDS = 1.0  # until a process that is dying has ended
_running: "weakref.WeakSet[_Batches]" = weakref.WeakSet()


def iterate_batches(
    dataset: TokenDataset,
    *,
    consumed_samples: int,
    total_samples: int,
    micro_batch_size: int,
    dp_rank: int,
    dp_size: int,
    num_workers: int,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Every micro-batch of this rank from sample `consumed_samples` up to `total_samples`, in order.

    Raises DataError where the dataset has fewer than `total_samples`, and what reading raised in a worker.
    """
    if total_samples > len(dataset):
        raise DataError(f"{total_samples} samples are wanted of a dataset of {len(dataset)}; build it for that many")
    ids = micro_batch_ids(consumed_samples, total_samples, micro_batch_size, dp_rank, dp_size)
    if num_workers == 0:
        batches = (_MicroBatches(dataset).read(i).batch() for i in ids)
        return (batch.pin_memory() for batch in batches) if pin_memory else batches
    return _Batches(dataset, ids, num_workers, pin_memory)


class _Batches(Iterator[Batch]):
    """An iterator that owns worker processes; `close` ends them."""

    def __init__(self, dataset: TokenDataset, ids: Iterator[range], num_workers: int, pin_memory: bool):
        loader: DataLoader = DataLoader(
            _MicroBatches(dataset),
            batch_size=None,
            sampler=_Ids(ids),
            num_workers=num_workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),
            pin_memory=pin_memory,
        )
        others = set(active_children())
        with children_without(_SIGNALS_THAT_SAVE):
            self._source: Iterator | None = iter(loader)
        self._workers = set(active_children()) - others
        _running.add(self)

    def __next__(self) -> Batch:
        if self._source is None:
            raise StopIteration
        try:
            item = next(self._source)
        except StopIteration:
            self.close()
            raise
        except (RuntimeError, OSError, EOFError) as error:
            # A death shows as the DataLoader's RuntimeError, or as a connection that breaks while something is fetched from the dead.
            died = wait([worker.sentinel for worker in self._workers], DEATH_SECONDS)
            gone = [worker.pid for worker in self._workers if worker.sentinel in died]
            self.close()
            if not gone:
                raise
            reason = str(error) if "DataLoader worker" in str(error) else f"DataLoader worker (pid {gone[0]}): {error}"
            raise DataError(
                f"a data loader process died ({reason}); is memory or /dev/shm full? num_workers: 0 reads without such processes"
            ) from error
        if isinstance(item, MegaMeshError):
            self.close()
            raise item
        return item.batch() if isinstance(item, _Rows) else item

    def close(self) -> None:
        """End the workers; further calls of next() stop."""
        source, self._source = self._source, None
        if source is not None:
            _running.discard(self)
            del source  # the DataLoader's iterator ends its workers when it is collected
            for worker in self._workers:
                if worker.is_alive():  # a traceback keeps that iterator
                    with contextlib.suppress(RuntimeError):  # the DataLoader reports the death of its workers
                        worker.kill()
                        worker.join()

    def __del__(self) -> None:
        self._source = None


@dataclass(frozen=True)
class _Rows:
    """The rows of a micro-batch as they travel between processes: one block of bytes through a pipe, where each tensor would need a shared
    memory of its own, and a message to open it."""

    tokens: np.ndarray
    labels: np.ndarray | None

    def batch(self) -> Batch:
        return make_batch(self.tokens, self.labels)

    def pin_memory(self) -> Batch:
        """What the DataLoader's thread for pinned memory calls."""
        return self.batch().pin_memory()


class _MicroBatches(Dataset):
    """Index by the sample numbers of a micro-batch. Errors with a message for the user are returned, so that no worker's traceback wraps
    them."""

    def __init__(self, dataset: TokenDataset):
        self._dataset = dataset

    def read(self, ids: range) -> _Rows:
        samples = [self._dataset[i] for i in ids]
        tokens = np.stack([sample.tokens for sample in samples])
        if all(sample.labels is None for sample in samples):
            return _Rows(tokens, None)
        return _Rows(
            tokens, np.stack([sample.tokens if sample.labels is None else sample.labels for sample in samples])
        )

    def __getitem__(self, ids: range) -> _Rows | MegaMeshError:
        try:
            return self.read(ids)
        except MegaMeshError as error:
            return error


class _Ids(Sampler[range]):
    def __init__(self, ids: Iterator[range]):
        self._ids = ids

    def __iter__(self) -> Iterator[range]:
        return self._ids


def _unchanged(item: Any) -> Any:
    return item


@atexit.register
def _close_all() -> None:
    """Runs before multiprocessing's own exit, which would wait for workers that ignore SIGTERM."""
    for batches in list(_running):
        batches.close()
