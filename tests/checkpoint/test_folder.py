"""`latest` always names a complete checkpoint, and nothing that it names is ever removed."""

from pathlib import Path

import pytest

from megamesh.checkpoint import folder as folders
from megamesh.errors import CheckpointError


def _save(folder: Path, step: int, content: str = "") -> Path:
    temporary = folders.unfinished(folder, step)
    folders.begin(temporary)
    (temporary / "content").write_text(content)
    (temporary / ".metadata").touch()
    return folders.publish(temporary, step)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_saved_yet(tmp_path: Path) -> None:
    assert folders.find_latest(tmp_path) is None
    assert folders.find_latest(tmp_path / "missing") is None


def test_publish_names_the_new_one_and_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 20, 100):
        _save(tmp_path, step)
        folders.prune(tmp_path, keep_last=2)
    assert _names(tmp_path) == ["global_step100", "global_step20", "latest"]
    assert folders.find_latest(tmp_path) == tmp_path / "global_step100"


def test_prune_never_removes_what_latest_names(tmp_path: Path) -> None:
    for step in (5, 10, 20):
        _save(tmp_path, step)
    _save(tmp_path, 7)  # a run that went back to an earlier step
    folders.prune(tmp_path, keep_last=1)
    assert _names(tmp_path) == ["global_step7", "latest"]


def test_a_run_that_went_back_keeps_what_it_saves_from_there_on(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        _save(tmp_path, step)
    (tmp_path / "latest").write_text("global_step5\n")
    for step in (7, 9, 11):
        _save(tmp_path, step)
        folders.prune(tmp_path, keep_last=2)
    assert _names(tmp_path) == ["global_step11", "global_step9", "latest"]


def test_what_cannot_be_removed_is_a_warning_and_hinders_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that someone holds open on NFS; a checkpoint that was moved elsewhere, with a link in its place."""
    elsewhere = tmp_path / "elsewhere"
    run = tmp_path / "run"
    _save(run, 5).rename(elsewhere)
    (run / "global_step5").symlink_to(elsewhere)
    _save(run, 10)
    folders.prune(run, keep_last=1)
    assert _names(run) == ["global_step10", "latest"] and elsewhere.is_dir()

    def held(path: Path) -> None:
        raise OSError(39, "Directory not empty")

    with monkeypatch.context() as patched:
        patched.setattr(folders.shutil, "rmtree", held)
        for step in (15, 20):
            _save(run, step)
            folders.prune(run, keep_last=1)
        assert folders.find_latest(run) == run / "global_step20"
        assert "Directory not empty" in caplog.text
    _save(run, 25)
    folders.prune(run, keep_last=1)
    assert _names(run) == ["global_step25", "latest"]


def test_a_disk_that_is_full_for_latest_leaves_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 5)
    monkeypatch.setattr(folders, "write_text", _full)
    with pytest.raises(OSError, match="No space"):
        folders.replace_text(tmp_path / "latest", "global_step10")
    assert _names(tmp_path) == ["global_step5", "latest"]


def _full(path: Path, text: str) -> None:
    path.write_text(text[:1])
    raise OSError(28, "No space left on device")


def test_an_unnamed_folder_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    _save(tmp_path, 5)
    orphan = _save(tmp_path, 10, "before the kill")
    (tmp_path / "latest").write_text("global_step5\n")  # as a kill between rename and `latest` leaves it
    assert _save(tmp_path, 10, "after it") == orphan
    assert (orphan / "content").read_text() == "after it"
    assert folders.find_latest(tmp_path) == orphan
    assert _names(tmp_path) == ["global_step10", "global_step5", "latest"]


def test_the_same_step_can_be_saved_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_killed_saves_left_is_removed_by_the_next(tmp_path: Path) -> None:
    _save(tmp_path, 5)
    folders.begin(folders.unfinished(tmp_path, 10))
    (tmp_path / ".removing-global_step1").mkdir()
    _save(tmp_path, 15)
    assert _names(tmp_path) == ["global_step15", "global_step5", "latest"]


@pytest.mark.parametrize("text", ["", "global_step", "../elsewhere", "\x00"])
def test_a_latest_file_that_names_no_checkpoint_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "latest").write_text(text)
    with pytest.raises(CheckpointError, match=r"latest says .* not the name of a checkpoint"):
        folders.find_latest(tmp_path)


def test_an_incomplete_or_missing_latest_is_an_error_that_lists_the_others(tmp_path: Path) -> None:
    _save(tmp_path, 5)
    (_save(tmp_path, 10) / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"names global_step10, which is missing or incomplete; .* global_step5"):
        folders.find_latest(tmp_path)


def test_resolve_takes_a_checkpoint_or_a_run(tmp_path: Path) -> None:
    path = _save(tmp_path, 5)
    assert folders.resolve_checkpoint(path) == folders.resolve_checkpoint(tmp_path) == path
    with pytest.raises(CheckpointError, match="does not exist"):
        folders.resolve_checkpoint(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="neither `latest` nor a complete checkpoint"):
        folders.resolve_checkpoint(tmp_path / "empty")
