"""A staged folder is there whole or not at all, and what a killed export left goes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megamesh.errors import CheckpointError
from megamesh.hf.staging import staging


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_at_the_end_and_not_after_an_error(tmp_path: Path) -> None:
    with staging(tmp_path / "deep" / "out") as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"] and names(tmp_path / "deep" / "out") == ["file"]
    with pytest.raises(KeyError), staging(tmp_path / "other"):
        raise KeyError
    assert names(tmp_path) == ["deep"]


def test_a_folder_that_came_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exists"), staging(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == []


KILLED = """
import os, signal, sys
from pathlib import Path
from megamesh.hf.staging import staging
with staging(Path(sys.argv[1])) as folder:
    (folder / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_export_left_is_removed_and_a_running_ones_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], check=False)
    (left,) = names(tmp_path)
    assert left.startswith(f".out.partial-{socket.gethostname()}-")
    others = [
        f".out.partial-{socket.gethostname()}-{os.getppid()}",  # runs
        f".out.partial-elsewhere-{left.rpartition('-')[2]}",  # another host's process of this number may run
        f".out.partial-{socket.gethostname()}-notes",
        left.replace("out", "out2"),
    ]
    for name in others:
        (tmp_path / name).mkdir()
    with staging(tmp_path / "out"):
        pass
    assert names(tmp_path) == sorted([*others, "out"])
    assert [record.getMessage() for record in caplog.records] == [
        f"removing {tmp_path / left}, left by a conversion that was interrupted"
    ]
