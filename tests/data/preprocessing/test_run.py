"""What is written equals megatron-core's own files, whatever the format, the number of processes and the interruptions."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from megamesh.data.store.indexed import IndexedDataset
from megamesh.data.store.manifest import read_manifest
from tests.data.preprocessing import corpora
from tests.data.preprocessing.corpora import arguments
from tools.preprocess_data import main

SMALL_SHARDS = """
import sys
from megamesh.data.preprocessing import run
from tools.preprocess_data import main
run.SMALLEST_SHARD = {}
if __name__ == "__main__":
    sys.exit(main())
"""


def assert_equal(prefix: Path, expected: Path) -> None:
    for suffix in ("bin", "idx"):
        found = Path(f"{prefix}_text_document.{suffix}").read_bytes()
        assert found == Path(f"{expected}.{suffix}").read_bytes(), suffix


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(
    "pattern", ["part*.jsonl", "part*.jsonl.gz", "part*.jsonl.zst", "part*.json.xz", "part*.parquet"]
)
def test_output_is_megatrons_at_any_number_of_workers(folder: Path, tmp_path: Path, pattern: str) -> None:
    for workers in (1, 2, 5):
        assert main(arguments(folder, pattern, tmp_path / f"out{workers}", "--workers", str(workers))) == 0
        assert_equal(tmp_path / f"out{workers}", folder / "expected")
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name.startswith("out1")) == [
        ".bin",
        ".idx",
        ".json",
        ".json",
    ]


@pytest.mark.parametrize("size", [20, 3_000])
def test_output_is_megatrons_at_any_size_of_shards(
    folder: Path, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = corpora.make_texts(seed=size, count=12)
    (tmp_path / "few.jsonl").write_bytes(corpora.lines(texts))
    corpora.write_with_megatron(texts, folder / "tokenizer.json", tmp_path / "expected")
    monkeypatch.setattr("megamesh.data.preprocessing.run.SMALLEST_SHARD", size)
    words = arguments(folder, "", tmp_path / "out")
    words[1] = str(tmp_path / "few.jsonl")
    assert main(words) == 0
    assert_equal(tmp_path / "out", tmp_path / "expected")


def mpirun(num_ranks: int, words: Sequence[str]) -> list[str]:
    launcher = [
        "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(num_ranks), sys.executable, "-c",
        SMALL_SHARDS.format(3_000), "--mpi",
    ]  # fmt: skip
    return [*launcher, *words]


@pytest.mark.parametrize(
    ("num_ranks", "pattern"),
    [(1, "part*.jsonl"), (4, "part*.jsonl,part*.jsonl.gz,part*.jsonl.zst,part*.json.xz,part0.parquet")],
)
def test_output_is_megatrons_under_mpi(
    folder: Path, tmp_path: Path, texts: list[str], num_ranks: int, pattern: str
) -> None:
    words = arguments(folder, "", tmp_path / "out")
    words[1] = ",".join(str(folder / part) for part in pattern.split(","))
    result = subprocess.run(mpirun(num_ranks, words), capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    for rank in range(num_ranks):
        assert (f"rank {rank}: 100% of" if num_ranks > 1 else "tokenizing: 100% of") in result.stderr
    corpora.write_with_megatron(texts * len(pattern.split(",")), folder / "tokenizer.json", tmp_path / "expected")
    assert_equal(tmp_path / "out", tmp_path / "expected")


def test_ranks_without_the_flag_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "0"), ("SIZE", "4"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    assert main(arguments(folder, "part*.jsonl", tmp_path / "out")) == 1
    assert "started as 4 processes" in capsys.readouterr().err


def test_a_bad_line_on_one_rank_ends_all(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(corpora.lines(corpora.make_texts()) + b'\n{"text": 5}\n')
    words = arguments(tmp_path, "bad.jsonl", tmp_path / "out")
    words[5] = str(folder / "tokenizer.json")
    result = subprocess.run(mpirun(2, words), capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode != 0
    assert "bad.jsonl:403: 'text' is" in result.stderr
    assert not list(tmp_path.glob("out_*"))


def test_killed_at_random_moments_and_started_again_gives_the_same_bytes(
    folder: Path, tmp_path: Path, thorough: bool
) -> None:
    words = [*arguments(folder, "part*.jsonl", tmp_path / "out"), "--workers", "2"]
    command = [sys.executable, "-c", SMALL_SHARDS.format(600), *words]
    started = time.monotonic()
    subprocess.run(
        [word.replace(str(tmp_path / "out"), str(tmp_path / "other")) for word in command],
        check=True,
        capture_output=True,
    )
    seconds = time.monotonic() - started
    draw, kills = random.Random(1), 0
    while kills < (10 if thorough else 4):
        if (tmp_path / "out.json").exists() and not (
            tmp_path / "out.unfinished"
        ).exists():  # it was complete when it was killed
            assert_equal(tmp_path / "out", folder / "expected")
            for path in tmp_path.glob("out*"):
                path.unlink()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        try:
            _, errors = process.communicate(timeout=draw.uniform(0.3, 1.1) * seconds)
            assert process.returncode == 0, errors
        except subprocess.TimeoutExpired:
            if kills % 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()  # its workers see that it is gone
            process.wait()
            kills += 1
    subprocess.run([*command, "--overwrite"], check=True, capture_output=True)
    assert_equal(tmp_path / "out", folder / "expected")
    assert not (tmp_path / "out.unfinished").exists()


def die_at_rename(number: int, words: Sequence[str]) -> int:
    """The exit status of a run (in a child process) that is killed just before its n-th rename: a run's durable steps end in one each."""
    child = os.fork()
    if child == 0:
        left, rename = number, os.replace

        def replace(source: Path, target: Path) -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            rename(source, target)

        os.replace = replace  # type: ignore[assignment]
        status = 1
        try:
            status = main(words)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_before_each_durable_step(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run gets one step further than the one before it, until one ends by itself."""
    monkeypatch.setattr("megamesh.data.preprocessing.run.SMALLEST_SHARD", 50_000)
    words = arguments(folder, "part*.jsonl", tmp_path / "out")
    kills = 0
    while (status := die_at_rename(kills % 7, words)) == -signal.SIGKILL:
        kills += 1
        idx, manifest = tmp_path / "out_text_document.idx", tmp_path / "out.json"
        assert not idx.exists() or (manifest.exists() and idx.read_bytes() == (folder / "expected.idx").read_bytes())
    assert status == 0
    assert kills > 8
    assert_equal(tmp_path / "out", folder / "expected")
    assert not (tmp_path / "out.unfinished").exists()


@pytest.mark.usefixtures("small_shards")
def test_a_tokenizer_that_changed_begins_anew(folder: Path, tmp_path: Path) -> None:
    """Its file is the same, but a tokenizer_config.json beside it makes text of special tokens."""
    shutil.copy(folder / "tokenizer.json", tmp_path)
    words = arguments(folder, "part*.jsonl", tmp_path / "out")
    words[5] = str(tmp_path / "tokenizer.json")
    assert die_at_rename(30, words) == -signal.SIGKILL
    assert list((tmp_path / "out.unfinished").glob("*.tokens"))
    (tmp_path / "tokenizer_config.json").write_text('{"split_special_tokens": true}')
    assert main(words) == 0
    words[-1] = str(tmp_path / "whole")
    assert main(words) == 0
    assert_equal(tmp_path / "out", tmp_path / "whole_text_document")
    found = read_manifest(tmp_path / "out.json").tokenizer
    assert found is not None and found.traits["special_tokens_are_text"] is True


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("kind", ["tokens", "lengths", "skipped", "json"])
def test_damaged_shards_are_done_again(folder: Path, tmp_path: Path, texts: list[str], kind: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(corpora.lines(texts).replace(b"   \n", b"[1]\n[2]\n"))
    words = arguments(tmp_path, "a.jsonl", tmp_path / "out", "--on-bad-line", "skip")
    words[5] = str(folder / "tokenizer.json")
    assert die_at_rename(40, words) == -signal.SIGKILL
    damaged = list((tmp_path / "out.unfinished").glob(f"*.{kind}"))
    assert damaged
    for path in damaged:
        content = path.read_bytes()
        path.write_bytes(content[:-20] if kind in ("skipped", "json") else bytes(len(content)))
    assert main(words) == 0
    assert_equal(tmp_path / "out", folder / "expected")
    assert len((tmp_path / "out.skipped.jsonl").read_text().splitlines()) == 2


def test_the_report_of_an_earlier_run_does_not_stay(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    words = arguments(tmp_path, "a.jsonl", tmp_path / "out", "--on-bad-line", "skip", "--overwrite")
    words[5] = str(folder / "tokenizer.json")
    for line, is_bad in (('{"text": 5}', True), ('{"text": "b"}', False)):
        path.write_text(f'{{"text": "a"}}\n{line}\n')
        assert main(words) == 0
        assert (tmp_path / "out.skipped.jsonl").exists() == is_bad


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("pattern", ["", "*", "**/*.json*"])
def test_a_run_inside_its_input_folder_reads_nothing_of_its_own(
    folder: Path, tmp_path: Path, texts: list[str], pattern: str
) -> None:
    """Continued after a kill, and done again with --overwrite."""
    (tmp_path / "a.jsonl").write_bytes(corpora.lines(texts).replace(b"   \n", b"[1]\n[2]\n"))
    words = arguments(tmp_path, pattern, tmp_path / "out", "--on-bad-line", "skip")
    words[5] = str(folder / "tokenizer.json")
    assert die_at_rename(40, words) == -signal.SIGKILL
    assert list((tmp_path / "out.unfinished").glob("*.json"))
    for more in ([], ["--overwrite"]):
        assert main([*words, *more]) == 0
        assert_equal(tmp_path / "out", folder / "expected")
        assert [Path(entry.path).name for entry in read_manifest(tmp_path / "out.json").inputs] == ["a.jsonl"]
        assert (tmp_path / "out.skipped.jsonl").exists()


def test_a_run_that_is_over_is_not_done_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(folder, "part*.jsonl", tmp_path / "out")
    assert main(words) == 0
    assert main(words) == 1
    assert "out_text_document.bin: exists; choose another --output-prefix or add --overwrite" in capsys.readouterr().err
    assert not (tmp_path / "out.unfinished").exists()
    assert main([*words, "--overwrite"]) == 0


BAD = {
    "bad-json": b'{"text": "cut',
    "bad-utf-8": b'{"text": "\xff"}',
    "missing-key": b'{"body": "x"}',
    "null": b'{"text": null}',
    "not-a-string": b'{"text": 5}',
    "surrogate": b'{"text": "\\ud800"}',
}


@pytest.mark.usefixtures("small_shards")
def test_skipped_records_are_counted_and_listed(folder: Path, tmp_path: Path, texts: list[str]) -> None:
    """Bad lines in two files, cut into shards: all of them in the report with file and line, everything else in the output."""
    draw = random.Random(5)
    expected_places = []
    for i in range(2):
        content = corpora.lines(texts[200 * i : 200 * (i + 1)]).split(b"\n")
        for reason in [*BAD, *BAD]:
            content.insert(draw.randrange(1, len(content)), BAD[reason])
        (tmp_path / f"part{i}.jsonl").write_bytes(b"\n".join(content))
        expected_places += [
            (f"{tmp_path}/part{i}.jsonl:{n}", reason)
            for n, line in enumerate(content, 1) for reason, bad in BAD.items() if line == bad
        ]  # fmt: skip
    words = arguments(tmp_path, "part*.jsonl", tmp_path / "out", "--on-bad-line", "skip", "--workers", "2")
    words[5] = str(folder / "tokenizer.json")
    assert main(words) == 0
    assert_equal(tmp_path / "out", folder / "expected")
    report = [json.loads(line) for line in (tmp_path / "out.skipped.jsonl").read_text().splitlines()]
    assert [(entry["place"], entry["reason"]) for entry in report] == expected_places
    counts = read_manifest(tmp_path / "out.json").counts
    empty = sum(not text for text in texts)
    assert dict(counts.skipped) == dict.fromkeys(BAD, 4)
    assert (counts.records, counts.empty, counts.documents) == (len(texts) + 24, empty, len(texts) - empty)


def test_a_run_that_stopped_continues_after_the_mend(
    folder: Path, tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shards of the file that was right are not encoded again."""
    from megamesh.data.preprocessing import encoders

    good, bad = tmp_path / "part0.jsonl", tmp_path / "part1.jsonl"
    good.write_bytes(corpora.lines(texts[:200]))
    bad.write_bytes(corpora.lines(texts[200:]) + b"\n[1]")
    words = arguments(tmp_path, "part*.jsonl", tmp_path / "out")
    words[5] = str(folder / "tokenizer.json")
    assert main(words) == 1
    assert "part1.jsonl:203: " in capsys.readouterr().err
    assert not list(tmp_path.glob("out_*"))
    bad.write_bytes(corpora.lines(texts[200:]))
    encoded = []
    encode = encoders.TextEncoder.encode

    def counted(self: encoders.TextEncoder, values: Sequence[Sequence[str]]) -> dict[str, encoders.Column]:
        encoded.extend(values[0])
        return encode(self, values)

    monkeypatch.setattr(encoders.TextEncoder, "encode", counted)
    assert main(words) == 0
    assert encoded == [text for text in texts[200:] if text]
    assert_equal(tmp_path / "out", folder / "expected")


def test_names_that_are_not_utf_8_are_escaped(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the manifest and the report; an output cannot have such a name."""
    odd = os.fsdecode(b"a\xe9.jsonl")
    (tmp_path / odd).write_bytes(b'{"text": "a"}\n{"text": 5}\n')
    words = arguments(tmp_path, odd, tmp_path / "out", "--on-bad-line", "skip")
    words[5] = str(folder / "tokenizer.json")
    assert main(words) == 0
    assert [entry.path for entry in read_manifest(tmp_path / "out.json").inputs] == [f"{tmp_path}/a\\xe9.jsonl"]
    assert json.loads((tmp_path / "out.skipped.jsonl").read_bytes())["place"] == f"{tmp_path}/a\\xe9.jsonl:2"
    assert main([*words, "--on-bad-line", "stop", "--overwrite"]) == 1
    told = capsys.readouterr().err
    assert "a\\xe9.jsonl:2: " in told and told.count("mend") == 1  # advice is given once
    words[words.index("--output-prefix") + 1] = str(tmp_path / odd)
    assert main(words) == 1
    assert "is not UTF-8" in capsys.readouterr().err


def test_a_text_that_mending_empties_is_left_out(folder: Path, tmp_path: Path) -> None:
    """Alone, and beside other keys only when these are empty too."""
    vanishing = "\x01"
    records = [("a", "b"), (vanishing, "c"), (vanishing, vanishing), ("", ""), ("d", vanishing)]
    lines = [json.dumps({"text": text, "more": more}) for text, more in records]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    words = arguments(tmp_path, "a.jsonl", tmp_path / "out", "--ftfy", "--overwrite")
    words[5] = str(folder / "tokenizer.json")
    for more, kept in (([], 2), (["--jsonl-keys", "text", "more"], 3), (["--segment-keys", "text", "more"], 3)):
        assert main([*words, *more]) == 0
        counts = read_manifest(tmp_path / "out.json").counts
        assert (counts.records, counts.documents, counts.empty) == (5, kept, 5 - kept)
        assert len(IndexedDataset(tmp_path / "out_text_document")) == kept


def test_manifest_says_what_went_in_and_what_came_out(folder: Path, tmp_path: Path) -> None:
    assert main(arguments(folder, "part*.jsonl.gz", tmp_path / "out")) == 0
    manifest = read_manifest(tmp_path / "out.json")
    output = manifest.outputs["out_text_document"]
    assert output.bin_bytes == sum(part.num_bytes for part in output.parts) == (folder / "expected.bin").stat().st_size
    assert output.tokens * 2 == output.bin_bytes
    assert [Path(entry.path).name for entry in manifest.inputs] == ["part0.jsonl.gz", "part1.jsonl.gz"]
    assert manifest.options["append_eod"] is True
    assert manifest.tokenizer.vocab_size == 320
