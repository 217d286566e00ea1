"""What every tool does around its work."""

import signal

import pytest

from megamesh.command import run_command
from megamesh.errors import HookError


def interrupted() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_ends_a_tool_in_one_line(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert run_command(interrupted) == 130
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert run_command(interrupted) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert capfd.readouterr().err == "interrupted\n", "one of several processes says it"


@pytest.mark.parametrize("first", [True, False])
def test_of_ranks_whose_hook_fails_the_first_tells_it(
    first: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> None:
        raise HookError("hook a:B failed", first=first)

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_command(failing) == 1
    assert capfd.readouterr().err == ("error: hook a:B failed\n" if first else "")
