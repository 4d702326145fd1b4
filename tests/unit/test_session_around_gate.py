"""Which processes are ended for starting around the gate: servers of MCP, of this session, that the agent talks to."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpguard.events.mcp import CLIENT, SERVER, Talk
from mcpguard.model.event import Event, Peer
from mcpguard.session.around_gate import AroundGate
from mcpguard.session.gate import SHIM_WORDS

HERE = Path("/proc/self/cgroup").read_text().rstrip().rpartition("\n")[2].partition("::")[2]


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def message(pid: int, method: str = "tools/list", client: int | None = None, **params: object) -> Event:
    talk = Talk("s", "x", "stdio", Peer(client or os.getpid(), "/agent"), Peer(pid, "/server"))
    return talk.request(time.time_ns(), CLIENT, method, params, id=1, call="c")


def looked(event: Event, *, agent: int | None = None, leaf: str = HERE) -> list[Event]:
    return AroundGate("s", agent or os.getpid(), leaf).look([event])


def test_a_server_is_ended_once_and_told(server: subprocess.Popen[bytes]) -> None:
    around = AroundGate("s", os.getpid(), HERE)
    (told,) = around.look([message(server.pid), message(server.pid)])
    assert server.wait(10) == -9
    assert (told.pid, told.verdict, told.op) == (server.pid, "deny", "end")
    assert around.look([message(server.pid)]) == []


def test_its_answer_tells_it_as_well(server: subprocess.Popen[bytes]) -> None:
    asked = message(server.pid, "initialize", protocolVersion="2025-11-25")
    assert asked.mcp is not None
    answer = Talk("s", "x", "stdio", asked.mcp.client, asked.mcp.peer).response(time.time_ns(), asked, result_bytes=1)
    assert answer.mcp is not None and answer.mcp.sender == SERVER
    assert looked(asked)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_whoever_has_the_other_end_of_a_first_question_is_ended(kind: str, tmp_path: Path) -> None:
    """Not its sender, who may have that end open as well, nor a shim, which is about to ask the gate."""
    theirs, ours = os.pipe() if kind == "pipe" else (one.detach() for one in socket.socketpair())
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdin=theirs) as server,
        subprocess.Popen(["/bin/sleep", "60"], stdin=subprocess.DEVNULL) as other,
        subprocess.Popen(
            [*SHIM_WORDS, "/nowhere/socket", "s", "--", "x"], stdin=theirs, stderr=subprocess.PIPE
        ) as shim,
    ):
        os.kill(shim.pid, signal.SIGSTOP)
        state = os.fstat(theirs)
        end = (os.major(state.st_dev) << 20 | os.minor(state.st_dev), state.st_ino)
        around = AroundGate("s", os.getpid(), HERE)
        around._living = lambda: [int(line) for line in (tmp_path / "procs").read_text().split()]
        (tmp_path / "procs").write_text("".join(f"{pid}\n" for pid in (os.getpid(), server.pid, other.pid, shim.pid)))
        talk = Talk("s", "unknown", "stdio", Peer(os.getpid(), "/agent"), None)
        asked = talk.request(time.time_ns(), CLIENT, "tools/call", {"name": "x"})
        foreign = talk.request(time.time_ns(), CLIENT, "session/new", {})
        assert around.ahead([(foreign, end), (asked, (end[0], end[1] + 1))]) == []
        (told,) = around.ahead([(asked, end), (asked, end)])
        assert server.wait(30) == -9 and told.pid == server.pid and "around the gate" in told.detail
        assert other.poll() is None and shim.poll() is None
        other.kill()
        shim.kill()
    os.close(theirs)
    os.close(ours)


@pytest.mark.parametrize(
    ("method", "params"),
    [("initialize", {"protocolVersion": 1}), ("initialize", {}), ("session/new", {}), ("textDocument/didOpen", {})],
)
def test_other_protocols_are_left_alone(
    server: subprocess.Popen[bytes], method: str, params: dict[str, object]
) -> None:
    assert looked(message(server.pid, method, None, **params)) == []
    assert server.poll() is None


@pytest.mark.parametrize(
    ("agent", "again", "same"),
    [
        (["/a/agent.js"], ["/a/agent.js", "--inner"], True),
        (["/a/agent.js"], ["-e", "1"], False),
        (["/a/agent.js"], ["/a/server.js"], False),
        (["-m", "agent"], ["-m", "agent", "inner"], True),
        (["-m", "agent"], ["-c", "1"], False),
        (["-m", "agent"], ["-m", "server"], False),
        ([], ["/a/folder"], True),
    ],
)
def test_an_agent_that_starts_itself_again_runs_the_same_program(
    agent: list[str], again: list[str], same: bool
) -> None:
    """`sh` stands for whatever interpreter; its own name is what all have in common."""
    inner = shlex.join(["sh", "-c", "echo $$; kill -STOP $$", *again])
    words = ["sh", "-c", 'eval "exec $INNER" & wait', *agent]
    with subprocess.Popen(words, env={**os.environ, "INNER": inner}, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        child = int(first.stdout.readline())
        with subprocess.Popen(["sleep", "60"]) as server:
            told = looked(message(server.pid, client=child), agent=first.pid)
            server.kill()
        os.kill(child, signal.SIGKILL)
    assert bool(told) is same


def test_other_programs_and_other_sessions_are_left_alone(server: subprocess.Popen[bytes]) -> None:
    assert looked(message(server.pid, client=server.pid)) == []
    assert looked(message(server.pid), leaf="/mcpguard/another") == []
    assert looked(message(server.pid), agent=server.pid) == []
    assert server.poll() is None


def test_whom_a_runner_starts_while_it_is_ended_is_ended_too(tmp_path: Path) -> None:
    """It was not there when the gate looked, and has the question to read."""
    theirs, ours = os.pipe()
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        started.append(subprocess.Popen(command, stdin=theirs))
        (tmp_path / "procs").write_text("".join(f"{one.pid}\n" for one in started))

    class WhileItForks(AroundGate):
        def _end(self, pid: int) -> bool:
            if len(started) < 3:
                start()
            return super()._end(pid)

    start()
    state = os.fstat(theirs)
    around = WhileItForks("s", os.getpid(), HERE)
    around._living = lambda: [int(line) for line in (tmp_path / "procs").read_text().split()]
    asked = Talk("s", "unknown", "stdio", Peer(os.getpid(), "/agent"), None).request(
        time.time_ns(), CLIENT, "tools/call", {"name": "x"}
    )
    told = around.ahead([(asked, (os.major(state.st_dev) << 20 | os.minor(state.st_dev), state.st_ino))])
    try:
        assert [event.pid for event in told] == [one.pid for one in started] and len(started) == 3
        assert [one.wait(30) for one in started] == [-9] * 3
    finally:
        for one in started:
            one.kill()
            one.wait()
        os.close(theirs)
        os.close(ours)
