"""Who has the ends of pipes and sockets: real ones, of real processes."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from mcpguard.events.ends import Ends


def end_of(descriptor: int) -> tuple[int, int]:
    state = os.fstat(descriptor)
    return os.major(state.st_dev) << 20 | os.minor(state.st_dev), state.st_ino


@pytest.fixture
def ends(tmp_path: Path) -> Ends:
    (tmp_path / "procs").write_text("")
    made = Ends(str(tmp_path))
    made.living = lambda: [int(line) for line in (tmp_path / "procs").read_text().split()]
    return made


def test_readers_are_those_of_the_session_that_have_it_as_standard_input(ends: Ends, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with (
        subprocess.Popen(["/bin/cat"], stdin=reader) as one,
        subprocess.Popen(["/bin/sleep", "60"], stdin=subprocess.DEVNULL, pass_fds=[reader]) as other,
    ):
        assert ends.readers(end_of(reader)) == []
        (tmp_path / "procs").write_text(f"{one.pid}\n{other.pid}\n{1 << 30}\n")
        assert ends.readers(end_of(reader)) == [one.pid]
        assert ends.holds(other.pid, end_of(reader)) is True
        other.kill()
        one.kill()
    assert ends.holds(one.pid, end_of(reader)) is None
    os.close(reader)
    assert not ends.is_finished(os.getpid(), end_of(writer), "pipe")
    end = end_of(writer)
    os.close(writer)
    assert ends.is_finished(os.getpid(), end, "pipe")


@pytest.mark.parametrize("how", ["shut", "closed"])
def test_a_socket_is_finished_when_its_other_end_says_so(how: str, ends: Ends) -> None:
    ours, theirs = socket.socketpair()
    end = end_of(theirs.fileno())
    assert not ends.is_finished(os.getpid(), end, "unix")
    if how == "shut":
        ours.shutdown(socket.SHUT_WR)
    else:
        ours.close()
    assert ends.is_finished(os.getpid(), end, "unix")
    ours.close()
    theirs.close()
    assert not ends.is_finished(os.getpid(), end, "unix"), "what is not there is not known"


def test_of_a_pipe_only_who_has_the_end_for_reading_can_read(ends: Ends) -> None:
    reader, writer = os.pipe()
    end = end_of(reader)
    with (
        subprocess.Popen(["/bin/sleep", "60"], pass_fds=[reader]) as reads,
        subprocess.Popen(["/bin/sleep", "60"], pass_fds=[writer]) as writes,
    ):
        assert (ends.holds(reads.pid, end), ends.holds(writes.pid, end)) == (True, True)
        assert (ends.can_read(reads.pid, end), ends.can_read(writes.pid, end)) == (True, False)
        reads.kill()
        writes.kill()
    assert ends.can_read(reads.pid, end) is None
    os.close(reader)
    os.close(writer)


def test_a_socket_is_read_as_long_as_somebody_has_its_end_be_it_on_its_way() -> None:
    with socket.socketpair()[0] as nobodys:
        assert not Ends.carries(os.getpid())
        ours, theirs = socket.socketpair()
        carrier, other = socket.socketpair()
        end = end_of(theirs.fileno())
        socket.send_fds(carrier, [b"x"], [theirs.fileno()])
        theirs.close()
        assert Ends.can_read(os.getpid(), end) is False
        assert Ends.is_read(os.getpid(), end, "unix") and Ends.carries(os.getpid())
        other.close()
        carrier.close()
        assert not Ends.is_read(os.getpid(), end, "unix") and not Ends.carries(os.getpid())
        ours.close()
        assert nobodys
