"""Memory of saving and loading: none, and two chunks; an asynchronous save holds its copy. Measured as resident memory."""

from pathlib import Path

import torch.distributed as dist

from megamesh.checkpoint.background import BackgroundSaver
from megamesh.checkpoint.boxes import MAX_CHUNK_BYTES
from megamesh.checkpoint.load import load_checkpoint
from megamesh.checkpoint.meta import RunState
from megamesh.checkpoint.save import Target, take, write
from megamesh.engine.peak_memory import ResidentPeak
from tests.distributed import run
from tests.engine import runs
from tests.engine.runs import Setup, train, training

MIB = 2**20
CHUNKS = 2 * MAX_CHUNK_BYTES  # one chunk, as bytes and as tensor
SLACK = 48 * MIB  # of the allocator, the index, and torch's own work


def _measure(folder: Path, vocabulary: int) -> dict[str, int]:
    """Bytes that saving and loading need beside the state of this rank, and the state's own."""
    original, runs.VOCAB = runs.VOCAB, vocabulary
    try:
        with training(Setup(1)) as engine:
            train(engine, 0, 1)
            snapshot = take(engine, RunState(1, 4, 7), {})
            saver = BackgroundSaver(Target(folder, {}))
            with ResidentPeak() as synchronous:
                write(Target(folder, {}), snapshot)
            with ResidentPeak() as loading:
                load_checkpoint(folder, engine)
            with ResidentPeak() as beside:
                saver.start(snapshot)
                saver.wait()
            with ResidentPeak() as again:
                saver.start(snapshot)
                saver.wait()
    finally:
        runs.VOCAB = original
    dist.barrier()
    share = sum(box.values.nbytes for box in snapshot.boxes)
    return {
        "share": share,
        "save": synchronous.extra_bytes,
        "load": loading.extra_bytes,
        "asynchronous": beside.extra_bytes,
        "second": again.extra_bytes,
    }


def test_no_rank_holds_its_share_twice_but_for_an_asynchronous_save(tmp_path: Path) -> None:
    """A model of 53 million parameters, most of them in embedding and head: tensors far larger than a chunk."""
    for found in run(2, _measure, tmp_path, 800_000):
        print({name: f"{value / MIB:.0f} MiB" for name, value in found.items()})
        assert found["share"] > 1.5 * (CHUNKS + SLACK), "else the bounds say nothing"
        assert found["save"] < SLACK
        assert found["load"] < CHUNKS + SLACK
        assert found["asynchronous"] < found["share"] + SLACK
        assert found["second"] < SLACK
