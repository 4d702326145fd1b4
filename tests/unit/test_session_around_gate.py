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
from dataclasses import replace
from pathlib import Path

import pytest

from mcpguard.events.mcp import CLIENT, SERVER, Talk
from mcpguard.events.observer import Asked
from mcpguard.kernel import cgroup
from mcpguard.model.event import Event, Peer
from mcpguard.session.around_gate import STARTS_NS, UNKNOWN_NS, AroundGate
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


TALK = Talk("s", "unknown", "stdio", Peer(os.getpid(), "/agent"), None)


def a_call(end: tuple[int, int], kind: str = "pipe", age_ns: int = 0) -> Asked:
    """A first question of this process, whose other end is `end`."""
    event = TALK.request(time.time_ns(), CLIENT, "tools/call", {"name": "x"})
    return Asked(event, end, "unix" if kind == "socket" else kind, age_ns, alone=True)


def end_of(descriptor: int) -> tuple[int, int]:
    state = os.fstat(descriptor)
    return os.major(state.st_dev) << 20 | os.minor(state.st_dev), state.st_ino


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


def test_who_asks_counts_and_not_who_is_taken_for_the_client(server: subprocess.Popen[bytes]) -> None:
    """An agent whose first words are what only servers ask is taken for one, and what it talks to for a client."""
    talk = Talk("s", "x", "stdio", Peer(server.pid, "/bin/server"), Peer(os.getpid(), "/agent"))
    call = {"name": "x"}
    other = talk.request(time.time_ns(), CLIENT, "tools/call", call, id=1, call="c")
    assert looked(other) == [] and server.poll() is None, "who asks the agent is another's client"
    (told,) = looked(talk.request(time.time_ns(), SERVER, "tools/call", call, id=1, call="c"))
    assert server.wait(60) == -9 and told.pid == server.pid and "MCP server server" in told.detail


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
        end = end_of(theirs)
        around = AroundGate("s", os.getpid(), HERE)
        around._ends._living = lambda: [int(line) for line in (tmp_path / "procs").read_text().split()]
        (tmp_path / "procs").write_text("".join(f"{pid}\n" for pid in (os.getpid(), server.pid, other.pid, shim.pid)))
        asked = a_call(end, kind)
        foreign = replace(asked, event=TALK.request(time.time_ns(), CLIENT, "session/new", {}))
        more = replace(asked, alone=False)
        assert around.ahead([foreign, more, replace(asked, end=(end[0], end[1] + 1))]) == []
        (told,) = around.ahead([asked, asked])
        assert server.wait(30) == -9 and told.pid == server.pid and "around the gate" in told.detail
        assert other.poll() is None and shim.poll() is None
        other.kill()
        shim.kill()
    os.close(theirs)
    os.close(ours)


def test_a_shim_that_becomes_its_server_while_it_is_looked_at_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was seen to read there as a shim, and is no shim any more when that is looked at: nor does it read there."""
    asked_at, ours = os.pipe()
    gates_own, gate = os.pipe()
    with subprocess.Popen(["/bin/sleep", "60"], stdin=gates_own) as server:
        around = AroundGate("s", os.getpid(), HERE)
        monkeypatch.setattr(around._ends, "readers", lambda _end: [server.pid])
        monkeypatch.setattr(around._ends, "inputs", lambda: {end_of(asked_at), end_of(gates_own)})
        assert around.ahead([a_call(end_of(asked_at))]) == [] and server.poll() is None
        (told,) = around.ahead([a_call(end_of(gates_own))])
        assert server.wait(30) == -9 and told.pid == server.pid, "who still reads there is ended"
    for one in (asked_at, ours, gates_own, gate):
        os.close(one)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_who_is_given_data_to_read_is_left_alone(kind: str, tmp_path: Path) -> None:
    """A file may hold a call; whoever hands it to a program closes its end behind it, and a client waits for the answer."""
    sockets = socket.socketpair()
    theirs, ours = os.pipe() if kind == "pipe" else (sockets[0].fileno(), sockets[1].fileno())
    end = end_of(theirs)
    with subprocess.Popen(["/bin/sleep", "60"], stdin=theirs) as reader:
        around = AroundGate("s", os.getpid(), HERE)
        around._ends._living = lambda: [int(line) for line in (tmp_path / "procs").read_text().split()]
        (tmp_path / "procs").write_text(f"{reader.pid}\n")
        if kind == "pipe":
            os.close(theirs)
            os.close(ours)
        else:
            sockets[1].shutdown(socket.SHUT_WR)
        asked = a_call(end, kind)
        assert around.ahead([asked, replace(asked, age_ns=UNKNOWN_NS)]) == []
        assert reader.poll() is None
        reader.kill()
    for one in sockets:
        one.close()


def test_an_agent_that_asks_where_nobody_reads_keeps_nobody_from_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked again many times a second, for a minute: what it has open is not gone through for each question."""
    theirs, ours = os.pipe()
    nobodys, held = os.pipe()
    with subprocess.Popen(["/bin/sleep", "60"], stdin=theirs) as server:
        around = AroundGate("s", os.getpid(), HERE)
        around._ends._living = lambda: [server.pid]
        looked: list[tuple[int, int]] = []
        finished = around._ends.is_finished

        def counted(pid: int, end: tuple[int, int], channel: str) -> bool:
            looked.append(end)
            return finished(pid, end, channel)

        monkeypatch.setattr(around._ends, "is_finished", counted)
        other = replace(a_call(end_of(nobodys)), age_ns=UNKNOWN_NS)
        (told,) = around.ahead([other, other, *[a_call(end_of(theirs))] * 3, other])
        assert server.wait(30) == -9 and told.pid == server.pid
        assert looked == [end_of(theirs)]
    for one in (theirs, ours, nobodys, held):
        os.close(one)


def test_a_copy_of_the_agent_is_about_to_become_something(tmp_path: Path) -> None:
    """It has the question to read, and may execute a shim in a moment; or not, and then it is a server as any other."""
    theirs, ours = os.pipe()
    code = "import os, time; os.dup2(int(os.sys.argv[1]), 0); pid = os.fork(); pid and print(pid, flush=True); time.sleep(60)"
    agent = subprocess.Popen([sys.executable, "-c", code, str(theirs)], pass_fds=[theirs], stdout=subprocess.PIPE)
    with agent:
        assert agent.stdout is not None
        child = int(agent.stdout.readline())
        around = AroundGate("s", agent.pid, HERE)
        around._ends._living = lambda: [int(line) for line in (tmp_path / "procs").read_text().split()]
        (tmp_path / "procs").write_text(f"{child}\n")
        asked = a_call(end_of(theirs))
        event = Talk("s", "unknown", "stdio", Peer(agent.pid, "/agent"), None).request(1, CLIENT, "tools/list", {})
        asked = replace(asked, event=event)
        assert around.ahead([asked]) == []
        assert around.ahead([replace(asked, age_ns=UNKNOWN_NS)]) == [], "the host may be busy"
        (told,) = around.ahead([replace(asked, age_ns=STARTS_NS)])
        assert told.pid == child
        agent.kill()
    os.close(theirs)
    os.close(ours)


def test_what_starts_a_shim_is_given_a_moment(tmp_path: Path) -> None:
    theirs, ours = os.pipe()
    words = ["/bin/sh", "-c", f"sleep 60; exec {shlex.join(SHIM_WORDS)} /nowhere s -- x"]
    with subprocess.Popen(words, stdin=theirs) as wrapper:
        around = AroundGate("s", os.getpid(), HERE)
        around._ends._living = lambda: [int(line) for line in (tmp_path / "procs").read_text().split()]
        (tmp_path / "procs").write_text(f"{wrapper.pid}\n")
        asked = a_call(end_of(theirs))
        assert around.ahead([asked]) == [] and wrapper.poll() is None
        assert [one.pid for one in around.ahead([replace(asked, age_ns=STARTS_NS)])] == [wrapper.pid]
    os.close(theirs)
    os.close(ours)


def test_what_an_agent_forked_is_not_what_it_launched_in_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is a copy of the agent, with the same standard input and output, and may execute a server in a moment."""
    agent = tmp_path / "codex"
    agent.write_text(
        "import os, sys\n"
        "if sys.argv[1:] or not os.fork():\n"
        "    print(os.getpid(), flush=True)\n"
        "    sys.stdin.readline()\n"
        "    sys.argv[1:] or os.execv(sys.executable, [sys.executable, __file__, 'again'])\n"
        "    sys.exit()\n"
        "os.wait()\n"
    )
    with subprocess.Popen([sys.executable, agent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdin is not None and launcher.stdout is not None
        copy = int(launcher.stdout.readline())
        monkeypatch.setattr(cgroup, "processes", lambda _leaf: [launcher.pid, copy])
        around = AroundGate("s", launcher.pid, HERE)
        assert around.agents.has(copy) and around._launched_by(launcher.pid) is None
        launcher.stdin.write(b"\n")
        launcher.stdin.flush()
        launcher.stdout.readline()
        assert around._launched_by(launcher.pid) == copy, "it has executed an agent"
        launcher.kill()
        os.kill(copy, signal.SIGKILL)


def test_what_the_kernel_ended_is_told_once_and_what_started_it_is_ended_too(tmp_path: Path) -> None:
    theirs, ours = os.pipe()
    with subprocess.Popen(["/bin/sleep", "60"], stdin=theirs) as runner:
        around = AroundGate("s", os.getpid(), HERE)
        around._ends._living = lambda: [int(line) for line in (tmp_path / "procs").read_text().split()]
        (tmp_path / "procs").write_text(f"{runner.pid}\n{os.getpid()}\n")
        gone, other = around.ended(1 << 30, "/usr/bin/node", end_of(theirs))
        assert (gone.pid, gone.comm) == (1 << 30, "node") and other.pid == runner.pid
        assert runner.wait(60) == -9
        assert around.ended(1 << 30, "/usr/bin/node", end_of(theirs)) == []
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
        def _end(self, pid: int, end: tuple[int, int] | None = None) -> bool:
            if len(started) < 3:
                start()
            return super()._end(pid, end)

    start()
    around = WhileItForks("s", os.getpid(), HERE)
    around._ends._living = lambda: [int(line) for line in (tmp_path / "procs").read_text().split()]
    told = around.ahead([a_call(end_of(theirs))])
    try:
        assert [event.pid for event in told] == [one.pid for one in started] and len(started) == 3
        assert [one.wait(30) for one in started] == [-9] * 3
    finally:
        for one in started:
            one.kill()
            one.wait()
        os.close(theirs)
        os.close(ours)
