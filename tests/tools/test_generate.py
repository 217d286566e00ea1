"""tools/generate.py: prompts from the command line, a file or the terminal, on one process or several."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch.distributed as dist

from megamesh.checkpoint.inference import load_for_inference
from megamesh.generation.sampling import Sampling
from megamesh.parallel.mesh import ProcessMesh
from megamesh.parallel.tensor import TensorParallel
from tests import distributed
from tests.generation.checkpoints import write_checkpoint
from tests.hf.small_models import CHARACTERS, MESH, build, greedy_oracle, model_config, tokenizer, tokenizer_file
from tests.processes import QUIET, ROOT, run_ranks
from tools.generate import interact, main, read_prompts, silent


@pytest.fixture
def ours(tmp_path: Path):
    module = build(model_config())
    write_checkpoint(tmp_path / "save", module, MESH, tokenizer_file(tmp_path))
    return module


def run(tmp_path: Path, *options: str) -> int:
    return main(["--checkpoint", str(tmp_path / "save"), "--max-new-tokens", "6", "--device", "cpu", *options])


def greedy_text(ours, tmp_path: Path, prompt: str) -> str:
    letters = tokenizer(tmp_path)
    return letters.decode(greedy_oracle(ours.logits, letters.encode(prompt) or [0], 6, stop=0))


def test_prompts_are_continued_greedily(ours, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--prompt", "The end", "--prompt", "a", "--temperature", "0") == 0
    expected = [prompt + greedy_text(ours, tmp_path, prompt) for prompt in ("The end", "a")]
    assert capsys.readouterr().out == "\n".join(expected) + "\n"


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_file_of_prompts_becomes_a_file_of_texts(
    ours, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["The end", "", "b c"]
    source, target = tmp_path / f"prompts{suffix}", tmp_path / "texts.jsonl"
    lines = prompts if suffix == ".txt" else [json.dumps({"text": prompt}) for prompt in prompts]
    source.write_text("".join(line + "\n" for line in lines))
    options = ("--input-file", str(source), "--output", str(target), "--temperature", "0", "--batch-size", "2")
    assert run(tmp_path, *options) == 0
    records = [json.loads(line) for line in target.read_text().splitlines()]
    assert [record["prompt"] for record in records] == prompts
    assert [record["text"] for record in records] == [greedy_text(ours, tmp_path, prompt) for prompt in prompts]
    before = target.read_bytes()
    assert run(tmp_path, *options) == 1
    assert "exists" in capsys.readouterr().err and target.read_bytes() == before


def test_a_session_in_the_terminal_shows_each_continuation(
    ours, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("The end\na\n"))
    assert run(tmp_path, "--interactive", "--temperature", "0") == 0
    said = capsys.readouterr().out
    assert all(greedy_text(ours, tmp_path, prompt) in said for prompt in ("The end", "a"))


def test_a_session_survives_what_is_no_prompt_and_ends_with_an_interrupt(
    ours, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter([b"\xff".decode(errors="surrogateescape"), "a", KeyboardInterrupt()])

    def read(_prompt: str) -> str:
        text = next(typed)
        if isinstance(text, KeyboardInterrupt):
            raise text
        return text

    monkeypatch.setattr("builtins.input", read)
    assert run(tmp_path, "--interactive", "--temperature", "0") == 0
    said = capsys.readouterr()
    assert "not UTF-8" in said.err and greedy_text(ours, tmp_path, "a") in said.out


def test_a_record_may_hold_any_character(tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text(json.dumps({"text": "a\u2028b\x0cc"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_prompts(source) == ["a\u2028b\x0cc"]


def test_a_seed_gives_the_same_text_again(ours, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        assert run(tmp_path, "--prompt", "a", "--seed", seed, "--top-k", "20", "--top-p", "0.95") == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert set("".join(texts)) <= set(CHARACTERS)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--prompt", "a", "--top-p", "2"), "top_p=2.0"),
        (("--prompt", "a", "--batch-size", "0"), "--batch-size=0"),
        (("--prompt", "a", "--device", "nonsense"), "--device=nonsense"),
        (("--prompt", "a", "--pipe-parallel-size", "2"), "--pipe-parallel-size=2 does not divide 1 processes; use 1"),
        (("--input-file", "missing.txt"), "missing.txt"),
        (("--input-file", "/dev/null"), "is empty"),
        (("--prompt", "a", "--output", "/dev/null/a/texts.jsonl"), "the folder /dev/null/a cannot be made"),
    ],
)
def test_bad_input_is_one_error(ours, options, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, *options) == 1
    assert text in capsys.readouterr().err


def test_a_line_that_is_no_prompt_is_named(ours, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text('{"text": "a"}\n{"test": "b"}\n')
    assert run(tmp_path, "--input-file", str(source)) == 1
    assert "prompts.jsonl:2" in capsys.readouterr().err


def words(tmp_path: Path, *options: str) -> list[str]:
    return ["--checkpoint", str(tmp_path / "save"), "--max-new-tokens", "6", *options]


def torchrun(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The tool as a user starts it on two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, "tools/generate.py", *words(tmp_path, *options)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=os.environ | QUIET,
    )  # fmt: skip


def test_two_processes_say_once_what_one_says(ours, tmp_path: Path) -> None:
    """On a tensor axis, and on a pipeline axis."""
    prompts = ("--prompt", "The end", "--prompt", "a", "--temperature", "0")
    expected = "".join(prompt + greedy_text(ours, tmp_path, prompt) + "\n" for prompt in ("The end", "a"))
    for axis in ((), ("--pipe-parallel-size", "2")):
        both = run_ranks(2, "tools/generate.py", *words(tmp_path, *prompts, *axis))
        assert [rank.returncode for rank in both] == [0, 0], both
        assert [rank.stdout for rank in both] == [expected, ""]
        assert [rank.stderr.count("on 2 processes") for rank in both] == [1, 0]


def test_several_processes_tell_an_error_once(tmp_path: Path) -> None:
    module = build(model_config(num_kv_heads=1))
    write_checkpoint(tmp_path / "save", module, MESH, tokenizer_file(tmp_path))
    done = torchrun(tmp_path, "--prompt", "a")
    assert done.returncode != 0 and done.stdout == ""
    told = "error: 2 processes cannot divide this model (num_kv_heads=1); start 1 instead"
    assert done.stderr.count(told) == 1 == done.stderr.count("error: "), done.stderr


def _converse(save: Path) -> tuple[str, str]:
    """A session of two processes; only the first has a terminal."""
    mesh = ProcessMesh.build("cpu", tensor_parallel_size=2)
    model, _, letters = load_for_inference(save, tp=TensorParallel.on(mesh))
    stdin, shown, told = sys.stdin, io.StringIO(), io.StringIO()
    sys.stdin = io.StringIO("The end\n" + "a" * 70 + "\na\n" if dist.get_rank() == 0 else "")
    try:
        with redirect_stdout(shown), redirect_stderr(told), silent(dist.get_rank() > 0):
            interact(model, letters, 6, Sampling(temperature=0))
    finally:
        sys.stdin = stdin
    return shown.getvalue(), told.getvalue()


def test_a_session_of_two_processes_is_one_session(tmp_path: Path) -> None:
    module = build(model_config(pos_emb="learned"))
    write_checkpoint(tmp_path / "save", module, MESH, tokenizer_file(tmp_path))
    first, second = distributed.run(2, _converse, tmp_path / "save")
    assert second == ("", "")
    assert all(greedy_text(module, tmp_path, prompt) in first[0] for prompt in ("The end", "a"))
    assert first[1].count("64 positions") == 1


def test_one_device_for_several_processes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0"), monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["--checkpoint", str(tmp_path), "--prompt", "a", "--device", "cuda:0"]) == 1
    assert "--device=cuda:0 cannot be used by 2 processes; use cpu or cuda" in capsys.readouterr().err
