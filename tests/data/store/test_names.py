"""A name finds the one dataset that it can mean, in tools and in training, and an error lists what is there."""

import logging
from pathlib import Path

import pytest

from megamesh.config.keys import DataConfig
from megamesh.data.samples.build import build_datasets, num_train_samples
from megamesh.data.samples.paths import same_data, say_whole_prefixes
from megamesh.data.store.names import existing_prefix
from megamesh.data.store.stored import find_prefixes
from megamesh.errors import DataError
from tests.data import corpora
from tools.split_dataset import main as split_main

LENGTHS = [30, 41, 7, 90]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One output of `corpus`, two of `chat`, and a dataset that has no more to its name."""
    names = ("corpus_text_document", "chat_messages_document", "chat_messages_label_document", "books", "books_train")
    for name in names:
        corpora.write(tmp_path / name, LENGTHS)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("corpus", "corpus_text_document"),
        ("corpus_text_document", "corpus_text_document"),
        ("corpus_text_document.bin", "corpus_text_document"),
        ("corpus_text_document.idx", "corpus_text_document"),
        ("corpus.bin", "corpus_text_document"),
        ("books", "books"),
        ("chat_messages_label_document", "chat_messages_label_document"),
    ],
)
def test_a_name_finds_its_dataset_everywhere(folder: Path, name: str, found: str) -> None:
    assert existing_prefix(f"{folder}/{name}") == f"{folder}/{found}"
    assert find_prefixes([f"{folder}/{name}"]) == [f"{folder}/{found}"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chat", "chat: may be any of {0}/chat_messages_document, {0}/chat_messages_label_document; name one of them"),
        ("corpsu", "corpsu: no dataset there; name the prefix of a .bin/.idx pair, such as {0}/books, "),
        (
            "corpus_txt_document",
            "no dataset there; name the prefix of a .bin/.idx pair, such as {0}/corpus_text_document",
        ),
        ("no/where", "no/where: no dataset there; name the prefix of a .bin/.idx pair"),
        ("c?rpus", "c?rpus: no dataset there"),
    ],
)
def test_what_is_not_clear_is_listed(folder: Path, name: str, message: str) -> None:
    with pytest.raises(DataError) as refused:
        existing_prefix(f"{folder}/{name}")
    assert message.format(folder) in str(refused.value)
    with pytest.raises(DataError) as again:
        find_prefixes([f"{folder}/{name}"])
    assert str(again.value) == str(refused.value)


def test_training_reads_the_same_data_by_its_short_name(folder: Path) -> None:
    wanted = {"sequence_length": 8, "seed": 1, "vocab_size": 1000}
    short, whole = f"{folder}/corpus", f"{folder}/corpus_text_document"
    for ours, theirs in (
        (DataConfig(data_path=short), DataConfig(data_path=whole)),
        (DataConfig(data_path=f"{whole}.idx"), DataConfig(data_path=whole)),
        (DataConfig(train_data_paths=[short]), DataConfig(train_data_paths=[whole])),
    ):
        first, second = (build_datasets(data, num_samples=(9, 0, 0), **wanted).train for data in (ours, theirs))
        assert first is not None and second is not None
        assert [first[i][0].tolist() for i in range(9)] == [second[i][0].tolist() for i in range(9)]
        counts = [num_train_samples(data, epochs=2, **wanted) for data in (ours, theirs)]
        assert counts[0] == counts[1] > 0
    with pytest.raises(DataError, match=r"train_data_paths: .*chat: may be any of"):
        build_datasets(DataConfig(train_data_paths=[f"{folder}/chat"]), num_samples=(9, 0, 0), **wanted)


def test_a_run_that_goes_on_under_a_shorter_name_has_the_same_data(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, now = {"data_path": f"{folder}/corpus_text_document"}, {"data_path": f"{folder}/corpus"}
    assert same_data(before, now, "data_path")
    assert not same_data(before, {"data_path": f"{folder}/books"}, "data_path")
    lists = {"train_data_paths": [f"{folder}/corpus", "gone"]}
    assert same_data(lists, {"train_data_paths": [f"{folder}/corpus_text_document", "gone"]}, "train_data_paths")
    assert not same_data({"split": "1"}, {"split": "1"}, "split")  # is compared as it is written
    with caplog.at_level(logging.INFO, "megamesh"):
        monkeypatch.setattr(logging.getLogger("megamesh"), "propagate", True)
        say_whole_prefixes(DataConfig(data_path=f"{folder}/corpus"))
        say_whole_prefixes(DataConfig(data_path=f"{folder}/books"))
    assert [record.getMessage() for record in caplog.records] == [
        f"data_path: {folder}/corpus is {folder}/corpus_text_document"
    ]


def test_tools_say_what_they_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--input", f"{folder}/corpus", "--output-prefix", f"{folder}/new/part", "--parts", "2"]
    assert split_main(words) == 0
    assert f"{folder}/corpus is {folder}/corpus_text_document" in capsys.readouterr().err
    assert (folder / "new" / "part_part1.idx").is_file()
    assert split_main([*words[:1], f"{folder}/chat", *words[2:]]) == 1
    assert "may be any of" in capsys.readouterr().err
