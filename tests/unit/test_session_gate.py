"""The gate as the supervising process keeps it: what its process says is heard to the last word, however that ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from mcpguard.kernel import cgroup, proc
from mcpguard.model.access import Verdict
from mcpguard.session import gate as keeping
from mcpguard.session.gate import Gate

# Stands in for the gate's process: reads its facts, and says which ends it tells of.
_BEGINNING = """
import os, sys
sys.stdin.buffer.readline()
say = lambda inode: os.write(1, b"[true, [[7, %d]]]\\n" % inode)
say(1)
"""
# When it is told to end, which is after its session has stopped to listen for news.
_SAYS_AT_ITS_END = _BEGINNING + "sys.stdin.buffer.read(); say(2)"
# As it does when it has put on record all that it knew.
_ENDS_WELL = _BEGINNING + "sys.stdin.buffer.read(); os.write(1, b'all\\n')"
# And when it ends by itself while its session is busy.
_SAYS_AND_ENDS = _BEGINNING + "say(2)"


@pytest.fixture
def gate(mcpguard_home: object) -> Iterator[Gate]:
    found = Gate("s")
    found.facts = {"servers": ["one"]}  # then it is started at once
    yield found
    found.close()


class Told:
    """What the record was told to leave out.

    Attributes:
        then: called at the first.
    """

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.inodes: list[int] = []
        self.then = then
        self.first = threading.Event()

    def __call__(self, ends: Sequence[tuple[int, int]], served: bool) -> None:
        assert served
        self.inodes += [inode for _device, inode in ends]
        if not self.first.is_set():
            self.then()
        self.first.set()


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> list[subprocess.Popen[bytes]]:
    started: list[subprocess.Popen[bytes]] = []

    def spawn(line: bytes, listeners: Sequence[int]) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", program]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(line)
        process.stdin.flush()
        started.append(process)
        return process

    monkeypatch.setattr(keeping, "_spawn", spawn)
    return started


def test_what_it_says_when_it_is_told_to_end_is_heard(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, _SAYS_AT_ITS_END)
    told = Told()
    gate.start("/sys/fs/cgroup/x", told)
    assert told.first.wait(60)
    gate.close()
    assert told.inodes == [1, 2]


def test_what_it_said_before_it_was_gone_is_heard(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    started = stand_in(monkeypatch, _SAYS_AND_ENDS)

    def until_it_has_ended() -> None:
        with contextlib.suppress(ChildProcessError):  # it has, and somebody took notice of it
            os.waitid(os.P_PID, started[0].pid, os.WEXITED | os.WNOWAIT)

    # Whoever hears the first word is busy until the process has ended, so its end and its last word are there together.
    told = Told(until_it_has_ended)
    gate.start("/sys/fs/cgroup/x", told)
    assert told.first.wait(60)
    gate.close()
    assert told.inodes[:2] == [1, 2]


@pytest.mark.parametrize(
    ("program", "lost"),
    [(_ENDS_WELL, 0), (_SAYS_AT_ITS_END, 1), (_SAYS_AND_ENDS, 1), (_BEGINNING + "os.kill(os.getpid(), 9)", 1)],
    ids=["the control", "not all", "by itself", "killed"],
)
def test_a_gate_that_ends_without_having_handed_over_all_is_told(
    program: str, lost: int, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, program)
    told, losses = Told(), []
    gate.start("/sys/fs/cgroup/x", told, lambda: losses.append(1))
    assert told.first.wait(60)
    gate.close()
    assert len(losses) == lost


@contextlib.contextmanager
def standing() -> Iterator[subprocess.Popen[bytes]]:
    """A process that was stopped, as the kernel stops a server that was executed."""
    with subprocess.Popen(["/bin/sleep", "100"]) as process:
        process.send_signal(signal.SIGSTOP)
        until = time.monotonic() + 60
        while proc.stat_of(process.pid)[proc.STATE] != "T":
            assert time.monotonic() < until
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("end", ["killed", "by itself"])
def test_who_stands_still_for_a_gate_that_is_gone_is_ended(
    end: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not one that goes on since, nor another process that has the number of one by now."""
    told, losses, found = Told(), threading.Event(), []
    with standing() as stays, standing() as went_on, standing() as another:
        began = {one.pid: proc.stat_of(one.pid)[proc.START] for one in (stays, went_on)} | {another.pid: "1"}
        lines = [{"stands": pid, "began": since, "name": "s"} for pid, since in began.items()] + [
            {"goes": went_on.pid, "began": began[went_on.pid], "name": "s"},
            # One that had the number before, and of whose end the gate hears late.
            {"goes": stays.pid, "began": "1", "name": "s"},
        ]
        says = "".join(json.dumps(line) + "\n" for line in lines)
        program = (
            _BEGINNING + f"os.write(1, {says.encode()!r})\n" + ("os.kill(os.getpid(), 9)" if end == "killed" else "")
        )
        stand_in(monkeypatch, program)
        gate.start(cgroup.place_of(os.getpid()), told, losses.set, found.extend)
        assert told.first.wait(60) and losses.wait(60)
        assert stays.wait(60) == -signal.SIGKILL
        gate.close()
        assert [proc.stat_of(one.pid)[proc.STATE] for one in (went_on, another)] == ["T", "T"]
    events = {(event.pid, event.verdict, event.op) for event in found}
    assert events == {(stays.pid, Verdict.DENY, "refuse")}
    assert "mcp.gate-ended" in str(found[0].detail)
