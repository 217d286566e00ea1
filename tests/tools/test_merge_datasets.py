"""tools/merge_datasets.py: everything that can name its inputs, and each way to be refused."""

from pathlib import Path

import numpy as np
import pytest

from tests.data import corpora
from tests.data.store.test_merge import pair
from tools.merge_datasets import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shards").mkdir()
    for i in range(4):
        corpora.write(Path(f"shards/part{i}"), [3, 0, 5], first=8 * i)
    corpora.write(Path("whole"), [3, 0, 5] * 4)


@pytest.mark.parametrize(
    "names",
    [
        ["--input", *(f"shards/part{i}" for i in range(4))],
        ["--input", "shards"],
        ["--input", "shards/part[01]", "shards/part2.bin", "shards/part3.idx"],
        ["--input-list", "list.txt"],
        ["--input", "shards/part0", "--input-list", "rest.txt"],
    ],
)
def test_names_of_inputs(names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.txt").write_text("shards/part0\n\n  shards/part[1-3]\n")
    Path("rest.txt").write_text("shards/part[1-3]")
    assert main([*names, "--output-prefix", "merged"]) == 0
    assert pair(Path("merged")) == pair(Path("whole"))
    assert "12 documents, 32 tokens from 4 datasets" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "nothing to merge: name datasets with --input or --input-list"),
        (["--input", "shards/part9"], "shards/part9: no dataset there"),
        (["--input", "shards", "shards/part1"], "shards/part1 is named twice"),
        (["--input-list", "none.txt"], "none.txt: not a readable list"),
        (["--input", "whole", "narrow"], "add --widen"),
        (["--input", "whole", "cut"], "cut.idx: truncated"),
        (["--input", "shards", "--output-prefix", "narrow"], "narrow.bin: exists"),
        (["--input", "shards", "--output-prefix", "shards/part2", "--overwrite"], "shards/part2.bin: is an input"),
    ],
)
def test_refusals(names: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    corpora.write(Path("narrow"), [3], dtype=np.uint16)
    corpora.write(Path("cut"), [3])
    Path("cut.idx").write_bytes(Path("cut.idx").read_bytes()[:-1])
    before = {path: path.read_bytes() for path in Path().rglob("*.*")}
    assert main(["--output-prefix", "merged", *names]) == 1
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path().rglob("*.*")} == before
