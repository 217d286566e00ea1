"""`latest` always names a complete checkpoint, and nothing that it names is ever removed."""

from pathlib import Path

import pytest

from megamesh.checkpoint import folder as folders
from megamesh.errors import CheckpointError


def _save(folder: Path, step: int, content: str = "") -> Path:
    temporary = folders.begin(folder, step)
    (temporary / "content").write_text(content)
    (temporary / ".metadata").touch()
    return folders.publish(temporary, step)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_saved_yet(tmp_path):
    assert folders.find_latest(tmp_path) is None
    assert folders.find_latest(tmp_path / "missing") is None


def test_publish_names_the_new_one_and_prune_keeps_the_newest(tmp_path):
    for step in (5, 10, 20, 100):
        _save(tmp_path, step)
        folders.prune(tmp_path, keep_last=2)
    assert _names(tmp_path) == ["global_step100", "global_step20", "latest"]
    assert folders.find_latest(tmp_path) == tmp_path / "global_step100"


def test_prune_never_removes_what_latest_names(tmp_path):
    for step in (5, 10, 20):
        _save(tmp_path, step)
    _save(tmp_path, 7)  # a run that went back to an earlier step
    folders.prune(tmp_path, keep_last=1)
    assert _names(tmp_path) == ["global_step7", "latest"]


def test_an_unnamed_folder_of_the_same_step_is_replaced(tmp_path):
    _save(tmp_path, 5)
    orphan = _save(tmp_path, 10, "before the kill")
    (tmp_path / "latest").write_text("global_step5\n")  # as a kill between rename and `latest` leaves it
    assert _save(tmp_path, 10, "after it") == orphan
    assert (orphan / "content").read_text() == "after it"
    assert folders.find_latest(tmp_path) == orphan
    assert _names(tmp_path) == ["global_step10", "global_step5", "latest"]


def test_the_same_step_can_be_saved_again_and_again(tmp_path, monkeypatch):
    remove = folders._remove

    def remove_what_latest_does_not_name(path: Path) -> None:
        assert path != folders.find_latest(tmp_path)
        remove(path)

    monkeypatch.setattr(folders, "_remove", remove_what_latest_does_not_name)
    for content in ("first", "second", "third"):
        _save(tmp_path, 10, content)
        latest = folders.find_latest(tmp_path)
        assert latest is not None and (latest / "content").read_text() == content
        assert len(folders.complete_checkpoints(tmp_path)) == 1


def test_what_killed_saves_left_is_removed_by_the_next(tmp_path):
    _save(tmp_path, 5)
    folders.begin(tmp_path, 10)
    (tmp_path / ".removing-global_step1").mkdir()
    _save(tmp_path, 15)
    assert _names(tmp_path) == ["global_step15", "global_step5", "latest"]


@pytest.mark.parametrize("text", ["", "global_step", "../elsewhere", "\x00"])
def test_a_latest_file_that_names_no_checkpoint_is_an_error(tmp_path, text):
    (tmp_path / "latest").write_text(text)
    with pytest.raises(CheckpointError, match=r"latest says .* not the name of a checkpoint"):
        folders.find_latest(tmp_path)


def test_an_incomplete_or_missing_latest_is_an_error_that_lists_the_others(tmp_path):
    _save(tmp_path, 5)
    (_save(tmp_path, 10) / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"names global_step10, which is missing or incomplete; .* global_step5"):
        folders.find_latest(tmp_path)


def test_resolve_takes_a_checkpoint_or_a_run(tmp_path):
    path = _save(tmp_path, 5)
    assert folders.resolve_checkpoint(path) == folders.resolve_checkpoint(tmp_path) == path
    with pytest.raises(CheckpointError, match="does not exist"):
        folders.resolve_checkpoint(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="neither `latest` nor a complete checkpoint"):
        folders.resolve_checkpoint(tmp_path / "empty")
