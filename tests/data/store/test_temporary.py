"""Temporary files: each has a name of its own, and what a killed process left goes, but nothing that may still be written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megamesh.data.samples.cache import cached_arrays
from megamesh.data.store.temporary import remove_left, replace_file, temporary_path

ARRAYS = {"a": np.arange(5)}


def killed_while_writing(path: Path) -> Path:
    """What a process leaves that is killed while it replaces a file."""
    before = set(path.parent.iterdir())
    child = os.fork()
    if child == 0:
        replace_file(path, lambda file: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = set(path.parent.iterdir()) - before
    return left


def test_the_next_build_of_an_index_removes_what_killed_ones_left(tmp_path: Path) -> None:
    left = [killed_while_writing(tmp_path / "x.index") for _ in range(2)]
    other = killed_while_writing(tmp_path / "xx.index")
    cached_arrays(tmp_path / "x", lambda: ARRAYS)
    assert len({*left, other}) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.index", other.name]


def test_what_a_process_may_still_write_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live process's file, and one of a process that is gone here but may live on another host, whose name may begin as ours."""
    path = tmp_path / "x.index"
    gone = killed_while_writing(path).name.split("-")[-2]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        host = os.uname().nodename
        kept = [f"x.index.tmp-{host}-{process.pid}-01234567"]
        kept += [f"x.index.tmp-{name}-{gone}-01234567" for name in ("elsewhere", f"{host}-{gone}", host[:-1])]
        kept += ["x.index.tmp", f"x.index.tmp-{host}-{'9' * 30}-01234567"]
        for name in kept:
            (tmp_path / name).touch()
        remove_left(path)
        process.communicate()
    assert sorted(found.name for found in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("name", ["x" * 255, "字" * 85], ids=["bytes", "characters"])
def test_a_name_of_any_length_can_be_replaced(tmp_path: Path, name: str) -> None:
    replace_file(tmp_path / name, lambda file: file.write(b"old"))
    replace_file(tmp_path / name, lambda file: file.write(b"new"))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]
    killed_while_writing(tmp_path / name)
    remove_left(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert temporary_path(tmp_path / name) != temporary_path(tmp_path / name)


def test_files_have_the_permissions_that_the_user_gives_new_ones(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        replace_file(tmp_path / "x", lambda file: file.write(b""))
    finally:
        os.umask(mask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
