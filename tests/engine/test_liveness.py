"""A process that is gone: the others leave, and one of them names it. A process that is slow, done or stopped by all is left alone."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megamesh.engine import meeting
from megamesh.errors import TrainingError
from tests.engine.living import live

KILLED = -signal.SIGKILL


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def pids() -> list[int]:
    found: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(found, os.getpid())
    return found


def reduce_until(dead: list[int]) -> None:
    """Steps of all ranks; in the sixth the last of `dead` kills the others of them and itself."""
    everyone = pids()
    for step in range(1000):
        if step == 5 and dist.get_rank() == dead[-1]:
            for rank in dead:
                os.kill(everyone[rank], signal.SIGKILL)
        dist.all_reduce(torch.zeros(1000))


def chain(dead: int) -> None:
    """Every rank waits for its right neighbour only, and the last one for nobody."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    for step in range(1000):
        if step == 5 and rank == dead:
            die()
        if rank < last:
            dist.recv(torch.zeros(10), src=rank + 1)
        if rank > 0:
            dist.send(torch.zeros(10), dst=rank - 1)
        elif step % 5 == 4:
            time.sleep(0.01)


@pytest.mark.parametrize("dead", [0, 1, 3])
def test_a_killed_rank_is_named_once_and_all_leave(tmp_path: Path, dead: int) -> None:
    outcome = live(tmp_path, 4, reduce_until, [dead])
    assert outcome.statuses == [KILLED if rank == dead else 1 for rank in range(4)], outcome.stderr
    (message,) = outcome.messages
    assert f"rank {dead} on {socket.gethostname()} ended without a word" in message
    assert outcome.stderr == message + "\n", "nothing else: no traceback, no text of a socket"


@pytest.mark.parametrize("dead", [0, 3])
def test_ranks_that_do_not_talk_to_the_dead_one_leave_too(tmp_path: Path, dead: int) -> None:
    outcome = live(tmp_path, 4, chain, dead)
    assert outcome.statuses == [KILLED if rank == dead else 1 for rank in range(4)], outcome.stderr
    (message,) = outcome.messages
    assert f"rank {dead} on" in message


def test_ranks_that_go_together_are_named_together(tmp_path: Path) -> None:
    outcome = live(tmp_path, 4, reduce_until, [2, 0], GONE_SECONDS=3.0)
    assert outcome.statuses == [KILLED, 1, KILLED, 1], outcome.stderr
    (message,) = outcome.messages
    assert "ranks 0, 2 on" in message


def test_without_keepers_all_leave_and_tell(tmp_path: Path) -> None:
    outcome = live(tmp_path, 4, reduce_until, [1, 0])
    assert outcome.statuses == [KILLED, KILLED, 1, 1], outcome.stderr
    assert 1 <= len(outcome.messages) <= 2
    assert all("ranks 0, 1 on" in message for message in outcome.messages)


def stop_and_go_on(stopped: int, waker: int) -> None:
    """One rank stands still for longer than a dead one would be waited for."""
    everyone = pids()
    for step in range(10):
        if step == 5 and dist.get_rank() == stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        if step == 5 and dist.get_rank() == waker:
            time.sleep(2)
            os.kill(everyone[stopped], signal.SIGCONT)
        dist.all_reduce(torch.zeros(1000))


@pytest.mark.parametrize(("stopped", "waker"), [(0, 1), (2, 0)])
def test_a_rank_that_stands_still_is_waited_for(tmp_path: Path, stopped: int, waker: int) -> None:
    outcome = live(tmp_path, 3, stop_and_go_on, stopped, waker)
    assert outcome.statuses == [0, 0, 0] and outcome.stderr == ""


def leave_one_by_one() -> None:
    dist.all_reduce(torch.zeros(1))
    time.sleep(0.7 * dist.get_rank())


def test_a_run_that_ends_in_order_says_nothing(tmp_path: Path) -> None:
    outcome = live(tmp_path, 4, leave_one_by_one)
    assert outcome.statuses == [0, 0, 0, 0] and outcome.stderr == ""


def all_fail_one_by_one() -> None:
    dist.all_reduce(torch.zeros(1))
    time.sleep(0.7 * dist.get_rank())
    raise SystemExit(3)


def test_an_error_that_all_find_is_told_by_themselves_alone(tmp_path: Path) -> None:
    outcome = live(tmp_path, 4, all_fail_one_by_one)
    assert outcome.statuses == [3, 3, 3, 3] and outcome.stderr == ""


def fail_alone(rank: int) -> None:
    for step in range(1000):
        if step == 5 and dist.get_rank() == rank:
            raise TrainingError("no more of this")
        dist.all_reduce(torch.zeros(1000))


@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_of_one_rank_is_told_by_it_and_named_once(tmp_path: Path, failing: int) -> None:
    outcome = live(tmp_path, 3, fail_alone, failing, FAILED_SECONDS=1.0)
    assert outcome.statuses == [1, 1, 1]
    (message,) = outcome.messages
    assert f"rank {failing} on {socket.gethostname()} failed" in message
    assert outcome.stderr.count("TrainingError: no more of this") == 1
    assert outcome.stderr.count("Traceback") == 1


def die_before_a_child(pid_file: Path) -> None:
    """The child, as a data loader's worker, was forked during the run and lives longer than its parent."""
    if dist.get_rank() == 1:
        if (child := os.fork()) == 0:
            time.sleep(600)
        pid_file.write_text(str(child))
        die()
    dist.all_reduce(torch.zeros(1000))


def test_a_worker_that_outlives_its_process_does_not_hide_its_end(tmp_path: Path) -> None:
    outcome = live(tmp_path, 2, die_before_a_child, tmp_path / "pid")
    child = int((tmp_path / "pid").read_text())
    os.kill(child, signal.SIGKILL)  # fails where it did not outlive all
    assert outcome.statuses == [1, KILLED]
    assert len(outcome.messages) == 1


def die_while_the_keeper_stands_still() -> None:
    everyone = pids()
    if dist.get_rank() == 0:
        subprocess.Popen(["sh", "-c", f"sleep 4; kill -CONT {os.getpid()}"])
        os.kill(everyone[3], signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.zeros(1000))


def test_a_keeper_that_stands_still_is_stood_in_for(tmp_path: Path) -> None:
    outcome = live(tmp_path, 4, die_while_the_keeper_stands_still, TURN_SECONDS=0.5)
    assert outcome.statuses == [1, 1, 1, KILLED], outcome.stderr
    (message,) = outcome.messages
    assert "rank 3 on" in message


def reduce_beside_a_rank_that_left_the_group() -> None:
    group = dist.new_group()
    if dist.get_rank() == 1:
        dist.destroy_process_group(group)
    else:
        dist.all_reduce(torch.zeros(1), group=group)


def test_a_connection_that_breaks_while_all_live_stays_the_error_that_it_is(tmp_path: Path) -> None:
    outcome = live(tmp_path, 2, reduce_beside_a_rank_that_left_the_group, VERDICT_SECONDS=0.1)
    assert outcome.statuses == [1, 0] and not outcome.messages
    assert "RuntimeError" in outcome.stderr and "by peer" in outcome.stderr


def meet_where_a_port_is_shut(folder: Path) -> None:
    if dist.get_rank() == 1:
        meeting._knock = refuse
    meeting.MEET_SECONDS = 0.5
    (folder / str(dist.get_rank())).write_text(str(meeting.meet()))


def refuse(*_: object) -> socket.socket:
    raise OSError("refused")


def test_processes_that_cannot_meet_agree_on_the_reason(tmp_path: Path) -> None:
    assert live(tmp_path, 2, meet_where_a_port_is_shut, tmp_path).statuses == [0, 0]
    first, second = ((tmp_path / str(rank)).read_text() for rank in range(2))
    assert first == second
    assert first.startswith("rank 0 on") and "ranks [1] have not connected" in first


def test_strangers_are_turned_away() -> None:
    secret = bytes(range(meeting.SECRET_BYTES))
    with socket.create_server(("127.0.0.1", 0)) as door:
        address, port = door.getsockname()
        socket.create_connection((address, port)).close()
        stranger = socket.create_connection((address, port))
        stranger.sendall(bytes(meeting.SECRET_BYTES) + (1).to_bytes(meeting.RANK_BYTES))
        seat = meeting._Seat("here", address, port, secret)
        uninvited, guest = meeting._knock(seat, 7), meeting._knock(seat, 1)
        (let_in,) = meeting._let_in(door, {1}, secret).items()
    rank, connection = let_in
    assert rank == 1 and connection.getpeername() == guest.getsockname()
    for each in (stranger, uninvited, guest, connection):
        each.close()
