"""kill -9 at random moments, again and again: the curve of the whole run is that of an undisturbed one, bit for bit."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

from megamesh.checkpoint.folder import find_latest, interrupted_saves
from tests.distributed import run
from tests.processes import Process, free_port
from tests.training.test_run import assert_same_run, train_here
from tests.training.tiny import write_config, write_corpus

STEPS_PER_KILL = 4
MOMENTS = random.Random(5)


def _train(config: Path, rank: int, world_size: int, port: int) -> None:
    """What tools/train.py does in a process that a launcher started."""
    from megamesh.config.load import load_config
    from megamesh.training.run import run as run_training

    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    run_training(load_config([config]))


def _start(config: Path, world_size: int) -> list[Process]:
    port = free_port()
    processes = [Process(_train, (config, rank, world_size, port), rank) for rank in range(world_size)]
    for process in processes:
        process.start()
    return processes


def _rows(folder: Path) -> list[tuple[str, int, float]]:
    """(kind, step, loss) of all whole lines of metrics.jsonl."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(row["kind"], row["step"], row["loss"]) for row in rows]


def _last_step(folder: Path) -> int:
    return max((step for _, step, _ in _rows(folder)), default=0)


def _is_saving(folder: Path) -> bool:
    return bool(interrupted_saves(folder))


def test_a_run_killed_at_random_again_and_again_is_the_undisturbed_one(tmp_path: Path, thorough: bool) -> None:
    """Two processes that save beside training at every third step; all of them die, or one, whom the other follows.

    Every other kill waits for a save to begin.
    """
    num_kills = 20 if thorough else 8
    num_steps = (num_kills + 1) * STEPS_PER_KILL
    write_corpus(tmp_path / "corpus")
    keys = dict(
        train_iters=num_steps, checkpoint_factor=3, keep_last_n_checkpoints=2, async_save=True, eval_interval=10
    )
    straight, killed = write_config(tmp_path, "straight", **keys), write_config(tmp_path, "killed", **keys)
    run(2, train_here, straight)
    expected = set(_rows(tmp_path / "straight"))
    folder, seen, interrupted = tmp_path / "killed", set(), 0
    for kill in range(1, num_kills + 1):
        processes = _start(killed, 2)
        goal = kill * STEPS_PER_KILL
        while _last_step(folder) < goal and all(process.is_alive() for process in processes):
            time.sleep(0.002)
        while kill % 2 and not _is_saving(folder) and all(process.is_alive() for process in processes):
            time.sleep(0.0005)
        time.sleep(MOMENTS.uniform(0, 0.01 if kill % 2 else 0.08))
        for process in MOMENTS.choice([processes, processes[:1], processes[1:]]):
            process.kill()
        for process in processes:
            process.join(60)
        codes = [process.exitcode for process in processes]
        assert -signal.SIGKILL in codes and set(codes) <= {-signal.SIGKILL, 1}, codes
        rows = _rows(folder)
        assert set(rows) <= expected, f"after kill {kill}: {sorted(set(rows) - expected)}"
        seen |= set(rows)
        interrupted += _is_saving(folder)
        find_latest(folder)  # raises where it names anything but a whole checkpoint
    assert interrupted > 0, "some kills strike while a checkpoint is being written"
    for process in _start(killed, 2):
        process.join(120)
        assert process.exitcode == 0
    assert_same_run(tmp_path / "straight", folder)
    assert set(_rows(folder)) == expected >= seen
    left = {path.name for path in folder.iterdir()}
    assert left == {f"global_step{num_steps - 3}", f"global_step{num_steps}", "latest", "metrics.jsonl"}
    shutil.rmtree(folder)
