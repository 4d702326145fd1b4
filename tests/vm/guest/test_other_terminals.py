"""Terminals of others in the tiers of the kernel's own hooks: opened after the launch, by whatever way they are reached."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import arena
import pytest
import terminals
from arena import Duel, Outside, Sandbox, Task, World
from asked import Lane
from terminals import HONEST, NAMELESS, REFUSED, SENT, TYPED

pytestmark = pytest.mark.kernel

PATIENCE_S = 120


@pytest.fixture(scope="module")
def ways(lane: Lane) -> Iterator[Duel]:
    with contextlib.ExitStack() as stack:
        others = stack.enter_context(terminals.Terminals())
        stack.enter_context(terminals.one_open())

        def prepare(world: World, outside: Outside) -> Sequence[Task]:
            return terminals.tasks(world, outside.door)

        parent = Path("/vmtmp/worlds")
        yield stack.enter_context(arena.fight(terminals.PROFILE, prepare, parent, answers=others.answers))


@pytest.mark.parametrize("id", [*NAMELESS, *REFUSED, SENT])
def test_a_terminal_opened_after_the_launch_cannot_be_used(id: str, ways: Duel) -> None:
    assert TYPED in ways.control[id].out, ways.control[id]
    ways.assert_refused(id)
    assert TYPED not in ways.guarded[id].out


@pytest.mark.parametrize("id", NAMELESS)
def test_its_name_does_not_exist_inside(id: str, ways: Duel) -> None:
    assert ways.guarded[id].errno == "ENOENT"


def test_the_attempt_by_its_number_is_on_record(ways: Duel) -> None:
    ways.assert_recorded("number", "terminals of others")


@pytest.mark.parametrize("id", [*REFUSED, SENT])
def test_the_attempt_on_its_holder_is_on_record(id: str, ways: Duel) -> None:
    ways.assert_recorded(id)


def test_the_record_names_the_terminal_that_was_sent(ways: Duel) -> None:
    assert [event for event in ways.denials(SENT) if event.get("path", "").startswith("/dev/pts/")], ways.denials(SENT)


@pytest.mark.parametrize("id", HONEST)
def test_terminals_made_inside_work_and_leave_no_denial(id: str, ways: Duel) -> None:
    ways.assert_allowed(id)


# --- the terminal that it was started on ------------------------------------------------------------------------

NAMED = """
import os, sys
name = os.ttyname(0)
for again in (name, "/dev/stdin", "/dev/fd/1", "/dev/tty"):
    os.close(os.open(again, os.O_RDWR))
print("named", name, flush=True)
sys.stdin.readline()
print("still", os.isatty(0), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def box() -> Iterator[Sandbox]:
    with arena.world_at(Path("/vmtmp/worlds")) as world:
        made = Sandbox(world)
        made.write_profile("matrix", terminals.PROFILE)
        yield made


@contextlib.contextmanager
def run_on_terminal(box: Sandbox, *command: str) -> Iterator[tuple[subprocess.Popen[bytes], int, str]]:
    """A guarded run from a shell on a terminal of its own; yields the shell, the other end and the terminal's name."""
    master, slave = os.openpty()
    words = [sys.executable, "-P", "-m", "mcpguard", "run", "-p", box.profile, "-w", str(box.world.project), "--"]
    # The kernel hangs a terminal up when the first process of its session ends, so that is another one.
    process = subprocess.Popen(
        ["sh", "-c", '"$@"; exec sleep 10000', "sh", *words, *command],
        cwd=box.world.project,
        env=box.world.environment(),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    name = os.ttyname(slave)
    os.close(slave)
    try:
        yield process, master, name
    finally:
        process.kill()
        process.wait()
        os.close(master)


def wait_for(master: int, text: str) -> None:
    seen = b""
    while text.encode() not in seen:
        ready, _, _ = select.select([master], [], [], PATIENCE_S)
        assert ready, (text, seen)
        seen += os.read(master, 10_000)


def wait_until(fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.05)


def allocated() -> int:
    return int(Path("/proc/sys/kernel/pty/nr").read_text())


def test_the_own_terminal_keeps_its_name_and_a_kill_of_the_guard_leaves_nothing(box: Sandbox) -> None:
    before = allocated()
    others = [os.openpty() for _ in range(3)]  # so that its number is not the first
    with run_on_terminal(box, "/usr/bin/python3", "-c", NAMED) as (process, master, name):
        wait_for(master, f"named {name}\r\n")
        (run,) = arena.children(process.pid)
        (broker,) = arena.children(run)
        (agent,) = arena.children(broker)
        # Three terminals outside, the one of this run, and in the session's own instance the one that keeps its number.
        assert allocated() == before + 5
        for pid in (run, broker):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: allocated() == before + 4, "the release of the number")
        os.write(master, b"\n")
        wait_for(master, "still True")
        os.kill(agent, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{agent}").exists(), "the end of the tree")
    for pair in others:
        for fd in pair:
            os.close(fd)
    wait_until(lambda: allocated() == before, "the release of every terminal")
