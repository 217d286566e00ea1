"""No run replaces or removes what is not its own."""

from pathlib import Path

import pytest

from tests.data.preprocessing import corpora
from tests.data.preprocessing.corpora import arguments
from tools.preprocess_data import main

REPORT_LINE = b'{"place": "a.jsonl:1", "reason": "null", "message": "\'text\' is null", "text": ""}\n'


def test_a_manifest_never_replaces_a_file_of_another_kind(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = corpora.lines(["some text"])
    (tmp_path / "corpus.json").write_bytes(content)
    words = arguments(tmp_path, "corpus.json", tmp_path / "corpus", "--overwrite")
    words[5] = str(folder / "tokenizer.json")
    assert main(words) == 1
    assert "corpus.json: is needed for the manifest" in capsys.readouterr().err
    assert (tmp_path / "corpus.json").read_bytes() == content


@pytest.mark.parametrize(
    "name", ["out.json", "out.skipped.jsonl", "out_text_document.token_range.json", "out.unfinished/a.jsonl"]
)
@pytest.mark.parametrize("through_a_link", [False, True])
def test_no_input_is_replaced_or_removed(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], name: str, through_a_link: bool
) -> None:
    """Whatever it holds, also what a run of ours begins such a file with."""
    beginning = {"out.json": b'{"manifest": 1, "text": ""}\n', "out.skipped.jsonl": REPORT_LINE}
    content = beginning.get(name, b"") + corpora.lines(["some text"]).removeprefix(b"\xef\xbb\xbf")
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / name).write_bytes(content)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / name)
    words = arguments(tmp_path, "link.jsonl" if through_a_link else name, tmp_path / "out", "--overwrite")
    words[5] = str(folder / "tokenizer.json")
    assert main(words) == 1
    assert "is an input, and a run would replace or remove it" in capsys.readouterr().err
    assert (tmp_path / name).read_bytes() == content
    assert not list(tmp_path.glob("*.bin"))


@pytest.mark.parametrize("content", [b"", b'{"text": "a"}\n', b'{"place": "Rome", "text": "a"}\n'])
def test_a_report_never_replaces_a_file_of_another_kind(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "out.skipped.jsonl").write_bytes(content)
    assert main(arguments(folder, "part*.jsonl", tmp_path / "out", "--overwrite")) == 1
    assert "out.skipped.jsonl: is needed for the report" in capsys.readouterr().err
    assert (tmp_path / "out.skipped.jsonl").read_bytes() == content
