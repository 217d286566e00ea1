"""Batches: the same global order at every layout, worker count and starting point."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from megamesh.data.samples import loader
from megamesh.data.samples.batch import Batch, make_batch
from megamesh.data.samples.dataset import Sample
from megamesh.data.samples.loader import iterate_batches
from megamesh.data.samples.sampler import micro_batch_ids
from megamesh.errors import DataError

TOTAL = 48


class Numbers:
    """Sample i is i·100, i·100 + 1, …"""

    sequence_length = 6

    def __len__(self) -> int:
        return TOTAL

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.arange(index * 100, index * 100 + 7, dtype=np.int64))


class Broken(Numbers):
    def __getitem__(self, index: int) -> Sample:
        if index == 5:
            raise DataError("corpus.bin: sample 5 cannot be read")
        return super().__getitem__(index)


class Deadly(Numbers):
    def __getitem__(self, index: int) -> Sample:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Labelled(Numbers):
    """Every other sample has labels, the first of them not counted."""

    def __getitem__(self, index: int) -> Sample:
        tokens = super().__getitem__(index).tokens
        return Sample(tokens, np.where(tokens % 100 < 3, -100, tokens + 1) if index % 2 else None)


def read(
    dataset: Numbers, consumed: int = 0, micro: int = 2, rank: int = 0, size: int = 1, workers: int = 0
) -> list[list[int]]:
    """The sample numbers of each micro-batch of a rank."""
    batches = iterate_batches(
        dataset,
        consumed_samples=consumed,
        total_samples=TOTAL,
        micro_batch_size=micro,
        dp_rank=rank,
        dp_size=size,
        num_workers=workers,
    )
    return [(batch.tokens_BS[:, 0] // 100).tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_do_not_change_batches_or_the_global_random_stream(workers: int) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert read(Numbers(), workers=workers) == [[i, i + 1] for i in range(0, TOTAL, 2)]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("micro", "size"), [(1, 1), (4, 1), (2, 2), (1, 4), (3, 2), (2, 3)])
@pytest.mark.parametrize("consumed", [0, 12, 36])
def test_every_layout_has_the_same_global_batches_from_any_point(micro: int, size: int, consumed: int) -> None:
    batch = 12
    ranks = [read(Numbers(), consumed, micro, rank, size) for rank in range(size)]
    accumulation = batch // (micro * size)
    for step in range((TOTAL - consumed) // batch):
        first = consumed + step * batch
        micro_steps = [[ranks[rank][step * accumulation + a] for rank in range(size)] for a in range(accumulation)]
        assert [i for ids in micro_steps for part in ids for i in part] == list(range(first, first + batch))
    assert all(len(rank) == (TOTAL - consumed) // (micro * size) for rank in ranks)


def test_batches_travel_between_processes_whole() -> None:
    """Tokens, labels and mask; a sample without labels beside one that has them."""
    here, there = (
        list(
            iterate_batches(
                Labelled(), consumed_samples=0, total_samples=TOTAL, micro_batch_size=3, dp_rank=0, dp_size=1, num_workers=workers
            )
        )
        for workers in (0, 2)
    )  # fmt: skip
    assert len(here) == len(there) == TOTAL // 3
    for ours, theirs in zip(here, there, strict=True):
        assert all(
            torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours.inputs(), theirs.inputs(), strict=True)
        )
    assert here[0].loss_mask_BS.tolist() == [[1.0] * 6, [0.0, 0.0, 1.0, 1.0, 1.0, 1.0], [1.0] * 6]
    assert here[0].labels_BS[1].tolist() == [0, 0, 104, 105, 106, 107]


def test_the_loader_pins_what_comes_from_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's thread does it: by the item's own method."""
    from torch.utils.data._utils.pin_memory import pin_memory

    monkeypatch.setattr(Batch, "pin_memory", lambda batch: ("pinned", batch.tokens_BS.tolist()))
    rows = loader._MicroBatches(Numbers())[range(2)]
    assert pin_memory(rows) == ("pinned", [[0, 1, 2, 3, 4, 5], [100, 101, 102, 103, 104, 105]])


def test_resume_with_workers_continues_the_same_batches() -> None:
    whole = read(Numbers(), micro=4, workers=2)
    assert read(Numbers(), consumed=20, micro=4, workers=2) == whole[5:]


def test_remainder_is_left_out_on_every_rank() -> None:
    assert [list(ids) for ids in micro_batch_ids(0, 11, 2, 1, 2)] == [[2, 3], [6, 7]]
    assert [list(ids) for ids in micro_batch_ids(0, 11, 2, 0, 2)] == [[0, 1], [4, 5]]


def test_batch_is_shifted_once() -> None:
    batch = make_batch([np.arange(5), np.arange(10, 15)])
    assert batch.tokens_BS.tolist() == [[0, 1, 2, 3], [10, 11, 12, 13]]
    assert batch.labels_BS.tolist() == [[1, 2, 3, 4], [11, 12, 13, 14]]
    assert [t.dtype for t in (batch.tokens_BS, batch.labels_BS, batch.loss_mask_BS)] == [
        torch.int64,
        torch.int64,
        torch.float32,
    ]
    assert batch.loss_mask_BS.tolist() == [[1.0] * 4] * 2
    moved = batch.to("cpu")
    assert isinstance(moved, Batch)
    assert torch.equal(moved.labels_BS, batch.labels_BS)


def test_negative_labels_are_not_counted() -> None:
    batch = make_batch([np.arange(1, 6), np.arange(1, 6)], [np.array([9, -100, 3, -1, 0]), np.full(5, -100)])
    assert batch.tokens_BS.tolist() == [[1, 2, 3, 4]] * 2
    assert batch.loss_mask_BS.tolist() == [[0.0, 1.0, 0.0, 1.0], [0.0] * 4]
    assert batch.labels_BS[0, [1, 3]].tolist() == [3, 0]
    assert int(batch.labels_BS.min()) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_errors_arrive_as_they_are(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        read(Broken(), workers=workers)
    assert str(caught.value) == "corpus.bin: sample 5 cannot be read"


def test_dead_worker_is_an_error_with_a_mend() -> None:
    with pytest.raises(DataError, match=r"a data loader process died .*num_workers: 0"):
        read(Deadly(), workers=2)


def test_too_few_samples_are_named() -> None:
    with pytest.raises(DataError, match="49 samples are wanted of a dataset of 48"):
        iterate_batches(
            Numbers(), consumed_samples=0, total_samples=49, micro_batch_size=1, dp_rank=0, dp_size=1, num_workers=0
        )


START = """
import os, signal, sys
from multiprocessing import active_children
from megamesh.data.samples.loader import iterate_batches
from tests.data.samples.test_loader import Numbers
def start():
    batches = iterate_batches(
        Numbers(), consumed_samples=0, total_samples=48, micro_batch_size=1, dp_rank=0, dp_size=1, num_workers=2)
    next(batches)
    return batches
"""
SIGNAL_TO_ALL = """
signal.signal(signal.SIGTERM, lambda *_: None)
batches = start()
os.killpg(os.getpgrp(), signal.SIGTERM)
assert len(list(batches)) == 47
again = start()
print(len(active_children()))
"""
DEAD_WORKER = """
batches = start()
active_children()[0].kill()
list(batches)
"""
INTERRUPTED_INSIDE_NEXT = """
batches = start()
def interrupt(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 1e-4)
while True:
    list(batches)
    batches = start()
"""


def _run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START + script],
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )


def test_workers_outlive_a_signal_to_all_processes_and_end_with_the_interpreter() -> None:
    done = _run(SIGNAL_TO_ALL)
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr


@pytest.mark.parametrize(
    ("script", "said"),
    [(DEAD_WORKER, "DataLoader worker (pid"), (INTERRUPTED_INSIDE_NEXT, "KeyboardInterrupt")],
    ids=["dead worker", "interrupt"],
)
def test_the_interpreter_ends_though_a_traceback_holds_the_iterator(script: str, said: str) -> None:
    assert said in _run(script).stderr
