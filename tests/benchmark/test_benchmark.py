"""The benchmark's arithmetic, and one real measurement of three models in turn."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from megamesh.benchmark import processes as module
from megamesh.benchmark.bubble import BubbleReport, measure_bubble
from megamesh.benchmark.checkpoint_speed import measure_checkpoints
from megamesh.benchmark.processes import CandidateProcesses, make_candidate
from megamesh.benchmark.processes import _serve as serve
from megamesh.benchmark.report import Measurement, benchmark
from megamesh.config.load import load_config
from megamesh.errors import ConfigError, TrainingError
from megamesh.pipeline.order import training_order
from tests.processes import Forked
from tests.training.tiny import write_config
from tools.benchmark import main


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    """Processes are forked, but in the test that takes this back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method: Forked)
        yield


def measurement(config: Path, seconds: list[float]) -> Measurement:
    candidate = make_candidate("config", load_config([config]).run, 64)
    return Measurement(candidate, 1, 1000, 2, seconds, 2**20, 1.0)


def test_ratios_are_taken_within_rounds(tmp_path: Path) -> None:
    """The machine is three times slower in the second round; the candidate is twice as fast in every round."""
    config = write_config(tmp_path)
    slow, fast = measurement(config, [2.0, 6.0, 2.2]), measurement(config, [1.0, 3.0, 1.1])
    assert fast.ratio_to(slow) == 2.0
    assert fast.median_seconds == 1.1
    assert fast.tokens_per_second == pytest.approx(1000 / 1.1)
    assert fast.tflops_per_device == pytest.approx(1000 / 1.1 * fast.candidate.flops_per_token / 2 / 1e12)


def test_a_plain_stack_cannot_be_compared_with_its_recursion(tmp_path: Path) -> None:
    config = load_config([write_config(tmp_path, recursion=None, recursion_scheme=None)]).run
    with pytest.raises(TrainingError, match="no recursion"):
        make_candidate("base", config, 64)


def test_what_does_not_divide_is_said_before_a_process_starts(tmp_path: Path) -> None:
    keys = {"make_vocab_size_divisible_by": 16, "model_parallel_size": 2}
    candidate = make_candidate("config", load_config([write_config(tmp_path, **keys)]).run, 60)
    with pytest.raises(ConfigError, match=r"^3 processes .*; start a multiple of 2$"):
        CandidateProcesses(candidate, 3)
    with pytest.raises(ConfigError, match=r"× data-parallel size 3"):
        CandidateProcesses(candidate, 6)
    with pytest.raises(ConfigError, match=r"^vocab_size=60 .*nothing but padding"):
        CandidateProcesses(replace(candidate, vocab_size=16), 2)


def die(self: object, count: int) -> float:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
    return 0.0


def test_a_process_that_dies_ends_the_benchmark_and_all_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one, which waits for it, is not waited for. These processes import for themselves, as those of users do."""
    monkeypatch.setattr(multiprocessing, "get_context", get_context)
    candidate = make_candidate("config", load_config([write_config(tmp_path)]).run, 64)
    before = set(multiprocessing.active_children())
    monkeypatch.setattr(module, "_serve", serve_and_die)
    started = time.monotonic()
    with pytest.raises(TrainingError, match=r"1\+1R2\+1 mesh: a process died"):
        benchmark([candidate], num_processes=2, num_rounds=1, steps_per_round=1, num_warmup_steps=1)
    assert time.monotonic() - started < 300
    assert set(multiprocessing.active_children()) == before


def serve_and_die(*arguments) -> None:
    module.TimedEngine.steps = die
    serve(*arguments)


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--set", "seed"], ["--against", "gpt"]])
def test_a_wrong_command_line_is_a_usage_error(arguments, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "a.yml", *arguments])
    assert "usage:" in capsys.readouterr().err


def test_gpt_neox_is_not_compared_with_another_kind_of_block(tmp_path: Path) -> None:
    config = load_config([write_config(tmp_path, norm="rmsnorm")]).run
    with pytest.raises(TrainingError, match="norm=rmsnorm"):
        make_candidate("transformers", config, 64)


def test_the_table_has_a_row_per_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["train", str(write_config(tmp_path)), "--rounds", "2", "--steps", "1", "--warmup", "1"]) == 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    header, *rows = capsys.readouterr().out.splitlines()[-4:]
    assert header.split()[:2] == ["model", "parameters"]
    assert [row.split("  ")[0] for row in rows] == ["1+1R2+1 mesh", "1+1R2+1 base", "transformers GPTNeoX"]
    assert rows[0].split()[2:3] == ["43,262"]


def test_checkpoints_are_timed_and_nothing_is_left(tmp_path: Path) -> None:
    """Every way of saving and loading has its rounds; all ranks' masters and moments are counted, once."""
    config = load_config([write_config(tmp_path)]).run
    before = sorted(tmp_path.iterdir())
    reports = measure_checkpoints(make_candidate("config", config, 64), 2, 2, tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    assert [report.way.split(",")[0] for report in reports] == ["save", "save", "save", "load", "load"]
    for report in reports:
        assert report.state_bytes == 43_262 * 12
        assert len(report.seconds) == 2 and min(report.seconds) > 0
    beside = reports[1]
    assert 0 < beside.waiting_seconds < min(beside.seconds)


@pytest.fixture(scope="module")
def asleep(tmp_path_factory: pytest.TempPathFactory) -> BubbleReport:
    """Two pipeline ranks whose blocks sleep instead of computing."""
    keys = {"pipe_parallel_size": 2, "recursion": "1+2R2+1", "num_layers": 6}
    config = load_config([write_config(tmp_path_factory.mktemp("bubble"), **keys)]).run
    return measure_bubble(make_candidate("config", config, 64), num_steps=1, layer_seconds=0.002)


def test_what_runs_is_what_the_simulator_replays(asleep: BubbleReport) -> None:
    """The same forwards and backwards, on each rank in the same order; no block is faster than it may sleep."""
    order = training_order("interleaved_1f1b", 2, 4, 4)
    (measured,) = asleep.measured
    for timeline in (measured, asleep.simulated):
        for rank, actions in enumerate(order):
            expected = [action for action in actions if action.kind in ("forward", "backward")]
            assert [stretch.action for stretch in timeline.busy if stretch.rank == rank] == expected
    slept = {stretch.action: stretch.end - stretch.start for stretch in asleep.simulated.busy}
    for stretch in measured.busy:
        assert stretch.end - stretch.start >= slept[stretch.action] - 1e-4


def test_a_sleeping_rank_cannot_be_less_idle_than_the_simulated_one(asleep: BubbleReport) -> None:
    assert asleep.simulated.seconds <= asleep.measured[0].seconds
    assert asleep.simulated.idle_share > 0
    assert asleep.measured_idle_share == asleep.measured[0].idle_share


def test_without_a_pipeline_there_is_no_bubble_to_measure(tmp_path: Path) -> None:
    candidate = make_candidate("config", load_config([write_config(tmp_path)]).run, 64)
    with pytest.raises(TrainingError, match="use pipe_parallel_size of 2 or more"):
        measure_bubble(candidate, num_steps=1, layer_seconds=None)
