"""tools/train.py on bad input: status 1, one message with what, where and the mend, and nothing on disk is lost."""

import contextlib
import io
import signal
from pathlib import Path

import pytest

from tests.distributed import run
from tests.processes import run_script
from tests.training.tiny import write_config, write_corpus
from tools.train import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus")
    return tmp_path


def train_in_worker(arguments: list[str]) -> tuple[int, str]:
    """main() in a process of the test pool, whose process group must survive it; (status, standard error)."""
    from megamesh.training import run as module

    shut_down, module.shut_down_distributed = module.shut_down_distributed, lambda: None
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            status = main(arguments)
    except SystemExit as left:
        status = int(left.code or 0)
    finally:
        module.shut_down_distributed = shut_down
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
    return status, errors.getvalue()


def failure(config: Path, *arguments: str, processes: int = 1) -> str:
    """The message of a run that must fail: on rank 0, and on no other rank."""
    (status, message), *others = run(processes, train_in_worker, [str(config), *arguments])
    assert status == 1
    assert "error" in message
    for other_status, other_message in others:
        assert other_status == 1
        assert "error" not in other_message
    return message


def test_a_missing_corpus(folder: Path) -> None:
    message = failure(write_config(folder, data_path=str(folder / "nothing")))
    assert str(folder / "nothing") in message


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_truncated_corpus_is_told_once(folder: Path, suffix: str) -> None:
    file = folder / f"corpus{suffix}"
    file.write_bytes(file.read_bytes()[:-9])
    message = failure(write_config(folder), processes=2)
    assert f"corpus{suffix}" in message


def test_token_ids_outside_the_vocabulary(folder: Path) -> None:
    message = failure(write_config(folder, vocab_size=20, make_vocab_size_divisible_by=4))
    assert "corpus.bin" in message
    assert "20" in message


def test_a_split_without_documents(folder: Path) -> None:
    message = failure(write_config(folder, split="1000,1,0"))
    assert "split" in message
    assert "valid" in message


def test_a_tokenizer_larger_than_the_model(folder: Path) -> None:
    (folder / "characters.json").write_text("{}")
    message = failure(
        write_config(folder, tokenizer_type="CharLevelTokenizer", vocab_file=str(folder / "characters.json")),
        processes=2,
    )
    assert "characters.json" in message


@pytest.mark.parametrize("key", ["save", "tensorboard_dir"])
def test_a_folder_that_cannot_be_made(folder: Path, key: str) -> None:
    message = failure(write_config(folder, **{key: str(folder / "corpus.idx/x")}), processes=2)
    assert f"{key}={folder / 'corpus.idx/x'} cannot be made: Not a directory" in message


def test_a_load_folder_without_checkpoint(folder: Path) -> None:
    message = failure(write_config(folder, load=str(folder / "elsewhere")))
    assert f"load={folder / 'elsewhere'}" in message


class TestWithCheckpoint:
    @pytest.fixture
    def saved(self, folder: Path) -> Path:
        status, message = run(1, train_in_worker, [str(write_config(folder, train_iters=2, lr_decay_iters=4))])[0]
        assert status == 0, message
        return folder

    def test_a_damaged_checkpoint(self, saved: Path) -> None:
        (shard,) = (saved / "run/global_step2").glob("*.distcp")
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
        message = failure(write_config(saved, train_iters=4, lr_decay_iters=4))
        assert shard.name in message
        assert (saved / "run/global_step2/meta.json").exists()

    def test_latest_names_nothing(self, saved: Path) -> None:
        (saved / "run/latest").write_text("global_step7")
        message = failure(write_config(saved, train_iters=4, lr_decay_iters=4))
        assert "global_step7" in message
        assert "global_step2" in message

    def test_another_architecture(self, saved: Path) -> None:
        message = failure(write_config(saved, hidden_size=64, train_iters=4, lr_decay_iters=4))
        assert "64" in message
        assert "32" in message
        message = failure(write_config(saved, num_attention_heads=2, train_iters=4, lr_decay_iters=4))
        assert "num_attention_heads" in message

    def test_another_schedule(self, saved: Path) -> None:
        config = write_config(saved, train_iters=4, lr_decay_iters=8)
        message = failure(config)
        assert "lr_decay_iters was 4, is 8" in message
        assert "override_lr_scheduler" in message
        assert run(1, train_in_worker, [str(config), "--set", "override_lr_scheduler=true"])[0][0] == 0

    def test_a_full_disk_keeps_the_older_checkpoint(self, saved: Path) -> None:
        """Real ENOSPC needs a file system of its own; the limit on a file's size stops the write in the same place."""
        config = write_config(saved, train_iters=4, lr_decay_iters=4)
        done = run_script("tests/training/limited_run.py", config, MEGAMESH_TEST_FILE_BYTES="200000")
        assert done.returncode == 1
        assert "the previous checkpoint is untouched" in done.stderr
        assert (saved / "run/latest").read_text().strip() == "global_step2"
        assert not list((saved / "run").glob(".saving*"))
        assert run(1, train_in_worker, [str(config)])[0][0] == 0
        assert (saved / "run/latest").read_text().strip() == "global_step4"


def test_a_config_error_comes_before_any_process_group(folder: Path) -> None:
    config = write_config(folder, num_attention_heads=5, hiden_size=3)
    status, message = run(2, train_in_worker, [str(config)])[0]
    assert status == 1
    assert "hiden_size" in message
    assert "hidden_size" in message


def test_nonfinite_steps_stop_the_run_with_the_last_checkpoint_intact(folder: Path) -> None:
    assert run(1, train_in_worker, [str(write_config(folder, train_iters=3, lr_decay_iters=30))])[0][0] == 0
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*") if path.name != "metrics.jsonl"}
    blow_up = {"type": "AdamW", "params": {"lr": 1e30}}
    config = write_config(
        folder,
        train_iters=30,
        optimizer=blow_up,
        max_nonfinite_steps=3,
        override_lr_scheduler=True,
        gradient_clipping=0,
    )
    message = failure(config)
    assert "3 non-finite steps in a row (max_nonfinite_steps=3)" in message
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (folder / "run/latest").read_text().strip() == "global_step3"
