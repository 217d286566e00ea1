"""Finding inputs: paths, globs, folders, saved datasets; nothing twice, nothing left out in silence."""

import importlib.util
import json
import os
from pathlib import Path

import datasets
import pytest

from megamesh.data.sources import find_inputs
from megamesh.data.sources.inputs import file_kind
from megamesh.errors import ConfigError, DataError
from tests.data.sources.formats import read_all


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "b.jsonl",
        "a.txt",
        "sub/c.jsonl.zst",
        "sub/deep/d.parquet",
        "z/e.JSONL",
        "README.md",
        ".hidden.txt",
        "_SUCCESS",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("")
    return tmp_path


def found(*values: str) -> list[str]:
    return [str(file.path) for file in find_inputs(values)]


def test_the_order_is_the_one_given_and_folders_are_sorted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert found("b.jsonl,a.txt") == ["b.jsonl", "a.txt"]
    assert found("b.jsonl", "a.txt") == ["b.jsonl", "a.txt"]
    assert not caplog.records
    everything = ["a.txt", "b.jsonl", "sub/c.jsonl.zst", "sub/deep/d.parquet", "z/e.JSONL"]
    assert found(".") == everything
    assert [record.getMessage() for record in caplog.records] == [
        "--input: left out 3 files of other kinds: .hidden.txt, README.md, _SUCCESS"
    ]
    assert found("**/*.*")[:3] == everything[:3]
    assert sorted(found("**")) == everything
    assert found("*.jsonl,sub/*.zst") == ["b.jsonl", "sub/c.jsonl.zst"]
    assert found("z,s*b") == ["z/e.JSONL", "sub/c.jsonl.zst", "sub/deep/d.parquet"]
    (folder / "with,comma.txt").write_text("")
    assert found("with,comma.txt") == ["with,comma.txt"]


def test_what_megamesh_wrote_is_read_only_where_it_is_named(folder: Path) -> None:
    report = '{"place": "b.jsonl:3", "reason": "bad-json", "message": "not JSON"}'
    own = {
        "out.json": '{\n  "manifest": 1,',
        "out.skipped.jsonl": report,
        "out.stdin.jsonl": "",
        "out_text_document.token_range.json": "{}",
        "out.unfinished/0f.json": "{}",
        "sub/other.unfinished/joined/other.json": "{}",
    }
    theirs = {"corpus.json": '{"text": ""}', "the.skipped.jsonl": '{"text": ""}', "stdin.jsonl": ""}
    for name, content in {**own, **theirs}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    expected = ["a.txt", "b.jsonl", "sub/c.jsonl.zst", "sub/deep/d.parquet", "z/e.JSONL", *theirs]
    assert sorted(found(".")) == sorted(found("**")) == sorted(found("*")) == sorted(expected)
    assert found(*own) == list(own)
    assert found("out.unfinished") == found("out.unfinished/*") == ["out.unfinished/0f.json"]


def test_kinds() -> None:
    for name, kind in {
        "a.json": ("jsonl", "none"),
        "a.ndjson.gz": ("jsonl", "gzip"),
        "a.jsonl.xz": ("jsonl", "xz"),
        "a.txt.zst": ("text", "zstd"),
        "a.tgz": ("tar", "gzip"),
        "a.jsonl.zst.tar": ("tar", "none"),
        "a.tar.xz": ("tar", "xz"),
        "a.dat.zst": ("dat", "zstd"),
        "a.pq": ("parquet", "none"),
        "A.ARROW": ("arrow", "none"),
        "a.zip": ("zip", "none"),
        "a.parquet.gz": None,
        "a.gz": None,
        "a.dat": None,
        "jsonl": None,
    }.items():
        assert file_kind(name) == kind, name


def test_a_file_found_twice_is_an_error(folder: Path) -> None:
    (folder / "link.jsonl").symlink_to("b.jsonl")
    os.link("a.txt", "hard.txt")
    for values in (
        ("b.jsonl", "b.jsonl"),
        ("b.jsonl", "*.jsonl"),
        ("link.jsonl,b.jsonl",),
        ("sub", "sub/deep"),
        ("a.txt", "hard.txt"),
    ):
        with pytest.raises(DataError, match="would count twice"):
            find_inputs(values)


def test_values_that_name_nothing(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "broken.txt").symlink_to("nowhere")
    (folder / "loop").mkdir()
    (folder / "loop" / "self").symlink_to("../loop")
    for values, words in {
        (): "names no file",
        (",",): "names no file",
        ("no.txt",): "does not exist",
        ("*.csv",): "no file matches",
        ("*.md",): "holds no file that can be read",
        ("empty",): "holds no file that can be read",
        ("README.md",): r"README\.md: cannot read \.md; --input takes \.jsonl",
        ("broken.txt",): "does not exist",
        ("broken.*",): "cannot be read",
        ("loop",): "a link to a folder above it",
        ("/dev/null",): "neither a file nor a folder",
    }.items():
        with pytest.raises(DataError, match=words):
            find_inputs(values)


def test_saved_datasets(tmp_path: Path) -> None:
    texts = [f"é {number}" for number in range(25)]
    data = datasets.Dataset.from_dict({"text": texts, "n": list(range(25))})
    data.save_to_disk(tmp_path / "data", num_shards=12)
    files = find_inputs([str(tmp_path / "data")])
    assert [file.path.name for file in files] == [f"data-{number:05d}-of-00012.arrow" for number in range(12)]
    assert [record for file in files for record in read_all(file.path)[0]] == [(text,) for text in texts]
    assert find_inputs([str(tmp_path)]) == files, "also inside a folder"
    state = tmp_path / "data" / "state.json"
    content = json.loads(state.read_text())
    state.write_text(json.dumps({**content, "_data_files": content["_data_files"][::-1]}))
    assert find_inputs([str(tmp_path / "data")]) == files[::-1], "the order of state.json"
    state.write_text(json.dumps({**content, "_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(DataError, match="flatten_indices"):
        find_inputs([str(tmp_path / "data")])
    files[3].path.unlink()
    state.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"data-00003-of-00012\.arrow: does not exist"):
        find_inputs([str(tmp_path / "data")])
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match=r"name one split's folder: .*splits/test, .*splits/train"):
        find_inputs([str(tmp_path / "splits")])
    assert len(find_inputs([str(tmp_path / "splits" / "train")])) == 1


@pytest.mark.parametrize(
    ("name", "package"),
    [("a.jsonl.zst", "zstandard"), ("a.jsonl.zst.tar", "zstandard"), ("a.parquet", "pyarrow"), ("a.arrow", "pyarrow")],
)
def test_missing_packages_are_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    (tmp_path / name).write_bytes(b"")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == package else real(asked))
    with pytest.raises(ConfigError, match=rf"needs the package {package}: pip install 'megamesh\[data\]'"):
        find_inputs([str(tmp_path / name)])
