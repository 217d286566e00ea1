"""tools/split_dataset.py: names and sizes of what it writes, and each way to be refused."""

from pathlib import Path

import pytest

from megamesh.data.store.indexed import IndexedDataset
from tests.data import corpora
from tools.split_dataset import main


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpora.write(Path("corpus"), [4] * 12)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (["--split", "8,3,1"], {"out_train": 8, "out_valid": 3, "out_test": 1}),
        (["--split", "2,1"], {"out_train": 8, "out_valid": 4}),
        (["--split", "8,3,1", "--shuffle", "--seed", "5"], {"out_train": 8, "out_valid": 3, "out_test": 1}),
        (["--parts", "12"], {f"out_part{i:02}": 1 for i in range(12)}),
        (["--parts", "3"], {f"out_part{i}": 4 for i in range(3)}),
        (["--documents", "2:5"], {"out": 3}),
        (["--documents", "10:"], {"out": 2}),
        (["--documents", ":4"], {"out": 4}),
    ],
)
def test_outputs(how: list[str], expected: dict[str, int]) -> None:
    assert main(["--input", "corpus", "--output-prefix", "out", *how]) == 0
    assert {path.stem: len(IndexedDataset(path.with_suffix(""))) for path in Path().glob("out*.bin")} == expected
    assert {path.stem for path in Path().glob("out*.json") if "token_range" not in path.name} == set(expected)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (["--split", "a,b"], "--split=a,b is not a list of numbers; write shares such as 969,30,1"),
        (["--split", "1,1,1,1"], "--split=1,1,1,1 has 4 shares"),
        (["--split", "999,1"], "leaves no document for valid out of 12"),
        (["--parts", "13"], "--parts=13, but it has 12 documents"),
        (["--documents", "5:13"], "--documents=5:13 are not in it"),
        (["--parts", "2", "--input", "nothing"], "nothing: no dataset there"),
        (["--documents", ":3", "--output-prefix", "corpus", "--overwrite"], "corpus.bin: is an input"),
    ],
)
def test_refusals(how: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--input", "corpus", "--output-prefix", "out", *how]) == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["corpus.bin", "corpus.idx"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (["--parts", "2", "--shuffle"], "--shuffle goes with --split"),
        (["--documents", "3"], "'3' is not FIRST:LAST"),
        (["--documents", "-1:3"], "'-1:3' is not FIRST:LAST"),
        (["--split", "1,1", "--shuffle", "--seed", "-1"], "--seed -1 is below 0"),
        (["--parts", "0"], "'0' is not a number from 1 up"),
        ([], "one of the arguments --split --parts --documents is required"),
    ],
)
def test_usage(how: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    equals = [f"{how[0]}={how[1]}", *how[2:]] if how and how[1].startswith("-") else how
    with pytest.raises(SystemExit):
        main(["--input", "corpus", "--output-prefix", "out", *equals])
    assert message in capsys.readouterr().err
