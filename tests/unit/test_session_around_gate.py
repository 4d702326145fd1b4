"""Which processes are ended for starting around the gate: servers of MCP, of this session, that the agent talks to."""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mcpguard.events.ends import Ends
from mcpguard.events.mcp import CLIENT, SERVER, Talk
from mcpguard.events.observer import Asked, Sender
from mcpguard.events.processes import Process
from mcpguard.kernel import cgroup, proc
from mcpguard.model.event import Event, Peer
from mcpguard.model.rule import Origin
from mcpguard.session.around_gate import GIVEN_BYTES, GIVEN_NS, AroundGate, _Member
from mcpguard.session.gate import SHIM_WORDS
from mcpguard.session.text_tools import is_text_tool
from mcpguard.wire.records import Head, MessageRecord

HERE = Path("/proc/self/cgroup").read_text().rstrip().rpartition("\n")[2].partition("::")[2]


@pytest.fixture
def server() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def message(pid: int, method: str = "tools/list", client: int | None = None, **params: object) -> Event:
    talk = Talk("s", "x", "stdio", Peer(client or os.getpid(), "/agent"), Peer(pid, "/server"))
    return talk.request(time.time_ns(), CLIENT, method, params, id=1, call="c")


CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}\n'
AGENT = Sender(Peer(os.getpid(), "/agent"), len(CALL))


def read_by(
    pid: int,
    end: tuple[int, int],
    *,
    text: bytes = CALL,
    age_ns: int = 0,
    channel: str = "pipe",
    unseen: bool = False,
) -> MessageRecord:
    """The kernel has stopped a process that read this there."""
    os.kill(pid, signal.SIGSTOP)
    until(pid, "T")
    head = Head(time.monotonic_ns() - age_ns, pid, pid, 1, "server", 0)
    return MessageRecord(head, 0, end, end, end, text, 0, (0, 0), channel, False, False, held=True, unseen=unseen)


def until(pid: int, state: str) -> None:
    while proc.stat_of(pid)[proc.STATE] != state:
        time.sleep(0.01)


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


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    theirs, ours = os.pipe()
    yield theirs, ours
    for one in (theirs, ours):
        with contextlib.suppress(OSError):
            os.close(one)


@contextlib.contextmanager
def reading(*descriptors: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes with these as their standard input."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(subprocess.Popen(["/bin/sleep", "60"], stdin=one)) for one in descriptors]
        for one in found:
            stack.callback(one.kill)
        yield found


def around_of(tmp_path: Path, *pids: int, agent: int | None = None) -> AroundGate:
    """Of a session of these processes."""
    around = AroundGate("s", agent or os.getpid(), HERE)
    around._ends.living = lambda: [int(line) for line in (tmp_path / "procs").read_text().split()]
    around.agents.who = executed
    (tmp_path / "procs").write_text("".join(f"{pid}\n" for pid in pids))
    return around


def executed(pid: int, *argv: str, times: int = 1) -> Process:
    return Process(pid, proc.parent_of(pid), argv=argv, executed=times)


def test_who_has_read_the_question_of_an_agent_that_waits_is_ended_with_all_that_read_there(
    pipe: tuple[int, int], tmp_path: Path
) -> None:
    """And who asks is not, nor another program."""
    nobodys, other = os.pipe()
    with reading(pipe[0], pipe[0], nobodys) as (server, runner, stranger):
        around = around_of(tmp_path, os.getpid(), server.pid, runner.pid, stranger.pid)
        assert around.hold(read_by(server.pid, end_of(pipe[0])), "/bin/server") == [] and around.holds
        assert around.judge(lambda _end: AGENT) == [] and around.holds, "it may be data, whose end is not closed yet"
        around.judge(lambda _end: AGENT, last=True)
        assert (server.wait(30), runner.wait(30)) == (-9, -9) and stranger.poll() is None and not around.holds
    os.close(nobodys)
    os.close(other)


@pytest.mark.parametrize("then", ["ended", "goes on"])
def test_a_family_larger_than_the_descriptors_that_we_may_have_stands_still_whole(
    then: str, pipe: tuple[int, int], tmp_path: Path
) -> None:
    with reading(*[pipe[0]] * 40) as family:
        pids, end = [one.pid for one in family], end_of(pipe[0])
        sender = AGENT if then == "ended" else Sender(Peer(1 << 30, "/usr/bin/pytest"), len(CALL))

        def judge() -> None:
            around = around_of(tmp_path, *pids, agent=AGENT.peer.pid)
            around.hold(read_by(pids[0], end), "/bin/server")
            assert around.judge(lambda _end: AGENT) == [] and around.holds
            for pid in pids:
                until(pid, "T")
            assert len(around.judge(lambda _end: sender, last=True)) == (40 if then == "ended" else 0)

        with_few_descriptors(judge, 20)
        if then == "ended":
            assert [one.wait(30) for one in family] == [-9] * 40
        else:
            for pid in pids:
                until(pid, "S")


def with_few_descriptors(act: Callable[[], None], most: int) -> None:
    """In a process of its own: what else was run in this one may have thousands open, in threads that come and go."""
    child = os.fork()
    if child == 0:
        try:
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_who_is_woken_meanwhile_is_ended_at_once(pipe: tuple[int, int], tmp_path: Path) -> None:
    """Somebody of the tree had it go on, and it may answer. One that stands still has its time."""
    with reading(pipe[0], pipe[0]) as (woken, still):
        for server, waits in ((still, True), (woken, False)):
            around = around_of(tmp_path, server.pid)
            around.hold(read_by(server.pid, end_of(pipe[0])), "/bin/server")
            begun, told = time.monotonic_ns(), around.judge(lambda _end: AGENT)
            assert told == [] and around.holds
            if not waits:
                os.kill(server.pid, signal.SIGCONT)
                until(server.pid, "S")
            while around.holds and time.monotonic_ns() - begun < GIVEN_NS // 2:
                told = around.judge(lambda _end: AGENT)
            assert bool(told) is not waits and around.holds is waits
        assert woken.wait(30) == -9 and still.poll() is None


def test_it_is_told_with_what_had_its_input(pipe: tuple[int, int], tmp_path: Path) -> None:
    with reading(pipe[0], pipe[0]) as (server, runner):
        around = around_of(tmp_path, server.pid, runner.pid)
        around.hold(read_by(server.pid, end_of(pipe[0]), age_ns=GIVEN_NS), "/bin/server")
        first, second = around.judge(lambda _end: AGENT)
        assert (first.pid, first.exe, first.verdict, first.op) == (server.pid, "/bin/server", "deny", "end")
        assert second.pid == runner.pid and "around the gate" in first.detail


OTHERS = {
    "another program asks": {"sender": Sender(Peer(1 << 30, "/usr/bin/pytest"), len(CALL))},
    "another protocol": {"text": b'{"jsonrpc":"2.0","method":"initialize","params":{"version":"2025-01-01"}}\n'},
    "its beginning shows another": {"text": b'{"method":"initialize","params":{"clientInfo":{"version":"2025-01-01'},
    "no method of MCP": {"text": b'{"jsonrpc":"2.0","method":"resource","params":{}}\n'},
    "more than a question": {"sender": Sender(AGENT.peer, GIVEN_BYTES)},
    "nobody was seen to ask, and no agent has it open": {"sender": None},
}


@pytest.mark.parametrize("case", OTHERS)
def test_who_is_no_server_of_an_agent_goes_on(case: str, pipe: tuple[int, int], tmp_path: Path) -> None:
    """The control: with a question of an agent's the same process is ended."""
    given = OTHERS[case]
    with reading(pipe[0]) as (server,):
        around = around_of(tmp_path, server.pid)
        record = read_by(server.pid, end_of(pipe[0]), text=given.get("text", CALL), age_ns=GIVEN_NS)
        around.hold(record, None)
        assert around.judge(lambda _end: given.get("sender", AGENT)) == []
        until(server.pid, "S")
        around.hold(read_by(server.pid, end_of(pipe[0]), age_ns=GIVEN_NS), None)
        assert len(around.judge(lambda _end: AGENT)) == 1 and server.wait(30) == -9


def test_a_first_question_of_which_the_beginning_is_seen_is_one(pipe: tuple[int, int], tmp_path: Path) -> None:
    texts = (
        b'{"method":"initialize","params":{"protocolVersion": "2025-11-25","capa',
        b'{"method":"tools/call","par',
        b"",
    )
    for text in texts:
        with reading(pipe[0]) as (server,):
            around = around_of(tmp_path, server.pid)
            around.hold(read_by(server.pid, end_of(pipe[0]), text=text, age_ns=GIVEN_NS), None)
            assert len(around.judge(lambda _end: AGENT)) == 1 and server.wait(30) == -9


def test_where_nobody_was_seen_to_ask_an_agent_that_has_it_open_counts(pipe: tuple[int, int], tmp_path: Path) -> None:
    """A call that sends may end late; and there are ways of sending that nobody sees."""
    with reading(pipe[0]) as (server,):
        around = around_of(tmp_path, os.getpid(), server.pid)
        around.hold(read_by(server.pid, end_of(pipe[0])), None)
        assert around.judge(lambda _end: None) == [] and around.holds
        assert len(around.judge(lambda _end: None, last=True)) == 1 and server.wait(30) == -9


SETTLED_NS, ASKED = 200_000_000, Sender(AGENT.peer, len(CALL), asks=True)
ANSWERED = replace(ASKED, answered=True)
# What of the sender is known when a process was stopped of which nobody saw what it has read, and for how long it was; and
# whether it is ended, waits, or goes on.
UNSEEN = {
    "an agent has asked": (ASKED, GIVEN_NS, "ended"),
    "an agent has asked, and may close its end": (ASKED, 0, "waits"),
    "an agent has sent something else": (AGENT, SETTLED_NS, "goes on"),
    "an agent has sent something else, or is not told yet": (AGENT, 0, "waits"),
    "an agent is in the midst of a message": (Sender(AGENT.peer, 9, unfinished=True), SETTLED_NS, "waits"),
    "an agent does not end its message": (Sender(AGENT.peer, 9, unfinished=True), GIVEN_NS, "goes on"),
    "another program has asked": (Sender(Peer(1 << 30, "/usr/bin/pytest"), len(CALL), asks=True), GIVEN_NS, "goes on"),
    "an agent's call has not ended": (None, SETTLED_NS, "waits"),
    "an agent's call does not end": (None, GIVEN_NS, "goes on"),
}


@pytest.mark.parametrize("case", UNSEEN)
def test_of_what_nobody_saw_who_sent_it_tells_whether_it_asks(case: str, pipe: tuple[int, int], tmp_path: Path) -> None:
    sender, age_ns, then = UNSEEN[case]
    with reading(pipe[0]) as (server,):
        around = around_of(tmp_path, os.getpid(), server.pid)
        around.hold(read_by(server.pid, end_of(pipe[0]), text=b"", age_ns=age_ns, unseen=True), None)
        assert len(around.judge(lambda _end: sender)) == (then == "ended")
        assert around.holds == (then == "waits")
        if then == "goes on":
            until(server.pid, "S")


def test_where_no_agent_has_the_end_open_nobody_waits_for_what_nobody_saw(
    pipe: tuple[int, int], tmp_path: Path
) -> None:
    """As in a pipeline of a shell."""
    with reading(pipe[0]) as (server,):
        around = around_of(tmp_path, server.pid)
        around.hold(read_by(server.pid, end_of(pipe[0]), text=b"", unseen=True), None)
        assert around.judge(lambda _end: None) == [] and not around.holds
        until(server.pid, "S")


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        (b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n' + CALL, True),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}\n{"jsonrpc":"2.0","method":"tools/ca', True),
        (b"[" + CALL.strip() + b"]\n", True),
        (b'[{"jsonrpc":"2.0","method":"notifications/initialized"},' + CALL.strip() + b"]", True),
        (b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n', False),
        (b'[{"jsonrpc":"2.0","method":"resource"}]\n[]\n1\n', False),
    ],
)
def test_a_question_may_stand_behind_other_messages_and_in_a_batch(
    text: bytes, asks: bool, pipe: tuple[int, int], tmp_path: Path
) -> None:
    with reading(pipe[0]) as (server,):
        around = around_of(tmp_path, server.pid)
        around.hold(read_by(server.pid, end_of(pipe[0]), text=text, age_ns=GIVEN_NS), None)
        assert len(around.judge(lambda _end: AGENT)) == asks
        if not asks:
            until(server.pid, "S")


SHIM_SAYS = (*SHIM_WORDS, "s", "--", "server")
# What was executed last by who has the end where an agent asks, how often it executed something, for how many seconds the agent
# has asked, and what comes of it.
SOUGHT = {
    "a program": (("sleep",), 1, 6, "stands still"),
    "what may start a shim by now": (("sleep",), 1, 4, "goes on"),
    "a shim that an agent has executed": (SHIM_SAYS, 1, 30, "goes on"),
    "a shim that waits longer than one does": (SHIM_SAYS, 1, 36, "stands still"),
    "what was something else before": (SHIM_SAYS, 2, 6, "stands still"),
    "what is about to start a shim": (("sh", "-c", " ".join(SHIM_SAYS)), 1, 4, "goes on"),
    "what does not start a shim": (("sh", "-c", " ".join(SHIM_SAYS)), 1, 6, "stands still"),
    "nobody told yet what it is": ((), 0, 4, "goes on"),
    "nobody tells what it is": ((), 0, 6, "stands still"),
}


@pytest.mark.parametrize("case", SOUGHT)
def test_who_has_the_end_where_an_agent_asks_is_stopped_unless_it_asks_the_gate(
    case: str, pipe: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv, times, seconds, then = SOUGHT[case]
    with reading(pipe[0]) as (server,):
        until(server.pid, "S")
        around = around_of(tmp_path, os.getpid(), server.pid)
        around.agents.who = lambda pid: executed(pid, *argv, times=times)
        asked = [Asked(end_of(pipe[0]), "pipe", ASKED)]
        now_ns = time.monotonic_ns()
        for age_s in (0, seconds):
            monkeypatch.setattr(time, "monotonic_ns", lambda age_s=age_s: now_ns + age_s * 10**9)
            around.seek(asked)
        monkeypatch.undo()
        if then == "stands still":
            until(server.pid, "T")
            assert len(around.judge(lambda _end: ASKED, last=True)) == 1 and server.wait(30) == -9
        else:
            assert proc.stat_of(server.pid)[proc.STATE] == "S" and around.judge(lambda _end: ASKED, last=True) == []


def test_who_was_stopped_goes_on_when_the_gate_serves_that_end(pipe: tuple[int, int], tmp_path: Path) -> None:
    with reading(pipe[0]) as (server,):
        around = around_of(tmp_path, os.getpid(), server.pid)
        around.seek([Asked(end_of(pipe[0]), "pipe", ANSWERED)])
        until(server.pid, "T")
        assert around.judge(lambda _end: None) == [] and not around.holds
        until(server.pid, "S")


@pytest.mark.parametrize("reader", [True, False])
def test_who_hides_what_it_has_is_stopped_only_where_somebody_reads(
    reader: bool, pipe: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may have ended before it answered; agents of keys hide what they have, too."""
    nobodys, other = os.pipe()
    with reading(pipe[0] if reader else nobodys) as (hidden,):
        until(hidden.pid, "S")
        around, end = around_of(tmp_path, os.getpid(), hidden.pid), end_of(pipe[1])
        os.close(pipe[0])
        can_read = around._ends.can_read
        monkeypatch.setattr(
            Ends, "can_read", staticmethod(lambda pid, end: None if pid == hidden.pid else can_read(pid, end))
        )
        assert around._ends.is_read(os.getpid(), end, "pipe") is reader
        for passed_ns in (0, 2 * SETTLED_NS):
            now_ns = time.monotonic_ns() + passed_ns
            with monkeypatch.context() as later:
                later.setattr(time, "monotonic_ns", lambda now_ns=now_ns: now_ns)
                around.seek([Asked(end, "pipe", ANSWERED)])
            assert [one.pid for one in around._held] == [hidden.pid] * (reader and passed_ns > 0)
        around.judge(lambda _end: ASKED, last=True)
        assert (hidden.wait(30) == -9) if reader else (hidden.poll() is None)
    os.close(nobodys)
    os.close(other)


@pytest.mark.parametrize("who", ["a child of what was executed", "a shim", "one called as an agent"])
def test_nothing_spares_who_has_the_end_where_an_agent_was_answered(
    who: str, pipe: tuple[int, int], tmp_path: Path
) -> None:
    """What others have forked has executed what these have; a shim does not answer; agents have other names, too."""
    program = tmp_path / "claude"
    shutil.copy("/bin/sleep", program)
    words = [str(program) if who == "one called as an agent" else "/bin/sleep", "60"]
    with subprocess.Popen(words, stdin=pipe[0]) as server:
        until(server.pid, "S")
        around = around_of(tmp_path, os.getpid(), server.pid)
        if who == "a shim":
            around.agents.who = lambda pid: executed(pid, *SHIM_SAYS)
            around.seek([Asked(end_of(pipe[0]), "pipe", ASKED)])
            assert proc.stat_of(server.pid)[proc.STATE] == "S"
        elif who == "a child of what was executed":
            around.agents.who = lambda pid: Process(pid, 1 << 30, argv=("server",))
        around.seek([Asked(end_of(pipe[0]), "pipe", ANSWERED)])
        until(server.pid, "T")
        assert len(around.judge(lambda _end: ANSWERED, last=True)) == 1 and server.wait(30) == -9


def test_what_much_data_is_given_to_is_not_ended_for_the_questions_in_it(pipe: tuple[int, int], tmp_path: Path) -> None:
    """While it is not known what it is, and when it was judged; an answer tells a server all the same."""
    with reading(pipe[0]) as (reader,):
        around = around_of(tmp_path, os.getpid(), reader.pid)
        end, much = end_of(pipe[0]), replace(ASKED, sent=GIVEN_BYTES)
        around.hold(read_by(reader.pid, end, age_ns=GIVEN_NS), None)
        around.seek([Asked(end, "pipe", much)])
        assert around.look([message(reader.pid)]) == []
        assert around.judge(lambda _end: much) == [] and not around.holds
        around.seek([Asked(end, "pipe", much)])
        assert around.look([message(reader.pid)]) == [] and reader.poll() is None
        around.seek([])
        assert len(around.look([message(reader.pid)])) == 1 and reader.wait(30) == -9


def test_who_has_only_the_other_end_of_an_agents_pipe_goes_on(pipe: tuple[int, int], tmp_path: Path) -> None:
    """Agents leak descriptors into what they start."""
    with reading(pipe[0]) as (server,), subprocess.Popen(["/bin/sleep", "60"], pass_fds=[pipe[1]]) as other:
        until(other.pid, "S")
        around = around_of(tmp_path, os.getpid(), server.pid, other.pid)
        around.seek([Asked(end_of(pipe[0]), "pipe", ANSWERED)])
        until(server.pid, "T")
        assert len(around.judge(lambda _end: ANSWERED, last=True)) == 1
        assert server.wait(30) == -9 and other.poll() is None
        other.kill()


@pytest.mark.parametrize("how", ["after it", "with much before it"])
def test_what_others_send_where_an_agent_asks_spares_nobody(how: str, pipe: tuple[int, int], tmp_path: Path) -> None:
    other = Sender(Peer(1 << 30, "/bin/server"), 2 * GIVEN_BYTES)
    last = replace(other, others=(ASKED,)) if how == "after it" else replace(ASKED, others=(other,))
    with reading(pipe[0]) as (server,):
        around = around_of(tmp_path, os.getpid(), server.pid)
        around.hold(read_by(server.pid, end_of(pipe[0]), age_ns=GIVEN_NS), None)
        assert len(around.judge(lambda _end: last)) == 1 and server.wait(30) == -9


def test_who_has_descriptors_on_their_way_to_it_is_taken_for_who_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, socket, time; one, other = socket.socketpair(); "
    code += "socket.send_fds(one, [b'x'], [0]); os.dup2(1, 0); print(flush=True); time.sleep(60)"
    theirs, ours = os.pipe()
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE) as server, reading(ours) as (stranger,):
        os.close(theirs)
        assert server.stdout is not None and server.stdout.readline()
        around, end = around_of(tmp_path, os.getpid(), server.pid, stranger.pid), end_of(ours)
        for passed_ns in (0, 2 * SETTLED_NS):
            now_ns = time.monotonic_ns() + passed_ns
            with monkeypatch.context() as later:
                later.setattr(time, "monotonic_ns", lambda now_ns=now_ns: now_ns)
                around.seek([Asked(end, "pipe", ANSWERED)])
            assert [one.pid for one in around._held] == [server.pid] * (passed_ns > 0)
        assert around.judge(lambda _end: ASKED, last=True) and server.wait(30) == -9 and stranger.poll() is None
    os.close(ours)


@pytest.mark.parametrize("why", ["another program asks", "an agent has closed its end", "it was judged"])
def test_nobody_is_stopped_where_no_agent_waits(why: str, pipe: tuple[int, int], tmp_path: Path) -> None:
    with reading(pipe[0]) as (server,):
        until(server.pid, "S")
        around = around_of(tmp_path, os.getpid(), server.pid)
        end, sender = end_of(pipe[0]), ANSWERED
        if why == "another program asks":
            sender = replace(ANSWERED, peer=Peer(1 << 30, "/usr/bin/pytest"))
        elif why == "an agent has closed its end":
            os.close(pipe[0])
            os.close(pipe[1])
        else:
            around.hold(read_by(server.pid, end, age_ns=GIVEN_NS), None)
            assert around.judge(lambda _end: Sender(AGENT.peer, GIVEN_BYTES)) == []
            until(server.pid, "S")
        around.seek([Asked(end, "pipe", sender)])
        assert proc.stat_of(server.pid)[proc.STATE] == "S" and not around.holds


@pytest.mark.parametrize("kind", ["pipe", "unix"])
def test_who_is_given_data_to_read_goes_on(kind: str, tmp_path: Path) -> None:
    """A file may hold a call; whoever hands it to a program closes its end behind it, and a client waits for the answer."""
    theirs, ours = os.pipe() if kind == "pipe" else (one.detach() for one in socket.socketpair())
    end = end_of(theirs)
    with reading(theirs) as (reader,):
        around = around_of(tmp_path, os.getpid(), reader.pid)
        around.hold(read_by(reader.pid, end, channel=kind, age_ns=GIVEN_NS // 2), None)
        assert around.judge(lambda _end: AGENT) == [] and around.holds
        if kind == "pipe":
            os.close(theirs)
            os.close(ours)
        else:
            with socket.socket(fileno=ours) as one:
                one.shutdown(socket.SHUT_WR)
                assert around.judge(lambda _end: AGENT) == [] and not around.holds
            os.close(theirs)
        assert around.judge(lambda _end: AGENT) == [] and not around.holds
        until(reader.pid, "S")


def test_nobody_of_another_session_is_ended_or_woken(pipe: tuple[int, int], tmp_path: Path) -> None:
    with reading(pipe[0]) as (stranger,):
        around = AroundGate("s", os.getpid(), "/mcpguard/another")
        around._ends.living = list
        for sender in (AGENT, Sender(Peer(1 << 30), 1)):
            around.hold(read_by(stranger.pid, end_of(pipe[0]), age_ns=GIVEN_NS), None)
            assert around.judge(lambda _end, sender=sender: sender) == [] and not around.holds
            assert proc.stat_of(stranger.pid)[proc.STATE] == "T"


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
        around = around_of(tmp_path, runner.pid, os.getpid())
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
        def _signal(self, pid: int, what: signal.Signals, began: str | None = None) -> _Member | None:
            if len(started) < 4:
                start()
            return super()._signal(pid, what, began)

    start()
    start()
    around = WhileItForks("s", os.getpid(), HERE)
    around.agents.who = executed
    around._ends.living = lambda: [int(line) for line in (tmp_path / "procs").read_text().split()]
    around.hold(read_by(started[0].pid, end_of(theirs), age_ns=GIVEN_NS), None)
    told = around.judge(lambda _end: AGENT)
    try:
        assert [event.pid for event in told] == [one.pid for one in started] and len(started) == 4
        assert [one.wait(30) for one in started] == [-9] * 4
    finally:
        for one in started:
            one.kill()
            one.wait()
        os.close(theirs)
        os.close(ours)


OF_ALL = Origin("strict", "/p/strict.yaml", 7, "mcp clients all")
OTHER, TOOL = 1 << 30, "/usr/bin/cat"
# Where a program asks that is no agent and every program counts: whom the reader of its question comes from, what that executes
# and how often it has executed something; and what comes of it.
READERS = {
    "a server": ("above", "/opt/server", 1, "ended"),
    "a text tool in the pipeline": ("above", TOOL, 1, "goes on"),
    "what became a text tool": ("above", TOOL, 2, "ended"),
    "what is called as one": ("above", "/home/ada/cat", 1, "ended"),
    "a text tool that another has started": ("elsewhere", TOOL, 1, "ended"),
    "who has started the one that asks": ("asks", "/usr/bin/make", 1, "goes on"),
    "what is not known to have executed anything yet": ("above", "/opt/server", 0, "waits"),
}


def around_all(tmp_path: Path, processes: list[Process], *pids: int) -> AroundGate:
    around = around_of(tmp_path, os.getpid(), *pids, agent=os.getppid())
    around.told, around.all_clients = False, OF_ALL
    around.agents.who = {one.pid: one for one in processes}.get
    return around


@pytest.mark.parametrize("case", READERS)
def test_where_every_program_counts_who_reads_its_question_is_ended_at_once(
    case: str, pipe: tuple[int, int], tmp_path: Path
) -> None:
    where, exe, times, then = READERS[case]
    with reading(pipe[0]) as (reader,):
        shell = Process(os.getpid(), os.getppid(), executed=1)
        asks = Process(OTHER, reader.pid if where == "asks" else shell.pid, "/usr/bin/pytest", executed=1)
        is_below = where in ("above", "asks")
        known = Process(reader.pid, shell.pid if is_below else OTHER + 1, exe, argv=("cat",), executed=times)
        around = around_all(tmp_path, [shell, asks, known], reader.pid)
        around.hold(read_by(reader.pid, end_of(pipe[0])), exe)
        # It has closed its end, and gives much: both say nothing here.
        told = around.judge(lambda _end: Sender(Peer(OTHER, "/usr/bin/pytest"), GIVEN_BYTES, asks=True))
        assert [event.pid for event in told] == ([reader.pid] if then == "ended" else [])
        assert around.holds is (then == "waits")
        if then == "ended":
            assert reader.wait(30) == -9 and told[0].rule == OF_ALL
            assert "pytest, which is no agent, started" in told[0].detail and "/p/strict.yaml:7" in told[0].detail
        elif then == "goes on":
            until(reader.pid, "S")
        else:
            assert around.judge(lambda _end: Sender(Peer(OTHER), 1, asks=True), last=True)


@pytest.mark.parametrize("every", [True, False])
def test_whom_a_program_asks_is_looked_for_only_where_every_program_counts(
    every: bool, pipe: tuple[int, int], tmp_path: Path
) -> None:
    shell = Process(os.getpid(), os.getppid(), executed=1)
    sender = Sender(Peer(OTHER), len(CALL), asks=True, answered=True)
    with reading(pipe[0]) as (server,):
        until(server.pid, "S")
        known = [shell, Process(OTHER, shell.pid, executed=1), Process(server.pid, shell.pid, "/opt/x", executed=1)]
        around = around_all(tmp_path, known, server.pid)
        around.all_clients = OF_ALL if every else None
        around.seek([Asked(end_of(pipe[0]), "pipe", sender)])
        assert [one.pid for one in around._held] == [server.pid] * every
        assert len(around.judge(lambda _end: sender)) == every
        assert (server.wait(30) == -9) if every else (server.poll() is None)


@pytest.mark.parametrize("by", ["a program", "an agent"])
def test_a_text_tool_that_read_first_vouches_for_nobody_who_reads_after_it(
    by: str, pipe: tuple[int, int], tmp_path: Path
) -> None:
    """`{ head -n1; exec server; }`: the next question is for another. Where an agent closes its end none comes."""
    with reading(pipe[0], pipe[0]) as (tool, server):
        shell = Process(os.getpid(), os.getppid(), executed=1)
        known = [
            *(shell, Process(OTHER, shell.pid, "/usr/bin/pytest", executed=1)),
            Process(tool.pid, shell.pid, TOOL, argv=("head",), executed=1),
            Process(server.pid, shell.pid, "/opt/server", executed=1),
        ]
        around = around_all(tmp_path, known, tool.pid, server.pid)
        sender = Sender(Peer(OTHER, "/usr/bin/pytest"), len(CALL), asks=True, answered=True)
        if by == "an agent":
            around._is_agent = lambda pid, _exe: pid == OTHER  # type: ignore[method-assign]
            around._ends.is_finished = lambda *_who: True  # type: ignore[method-assign]
        around.hold(read_by(tool.pid, end_of(pipe[0])), TOOL)
        assert around.judge(lambda _end: sender) == []
        until(tool.pid, "S")
        (tmp_path / "procs").write_text(f"{server.pid}\n")
        around.seek([Asked(end_of(pipe[0]), "pipe", sender)])
        assert [one.pid for one in around._held] == [server.pid] * (by == "a program")
        assert len(around.judge(lambda _end: sender)) == (by == "a program")
        assert (server.wait(30) == -9) if by == "a program" else (server.poll() is None)


@pytest.mark.parametrize(("exe", "is_one"), [("/usr/bin/head", True), ("/usr/bin/curl", False), ("/usr/bin/nc", False)])
def test_who_answers_with_what_another_says_is_no_text_tool(exe: str, is_one: bool) -> None:
    assert is_text_tool(exe, [exe]) is is_one


def test_with_a_server_goes_what_it_has_started_and_not_the_shell_of_both(
    pipe: tuple[int, int], tmp_path: Path
) -> None:
    """Also where another process sends each question, and is gone."""
    nobodys, other = os.pipe()
    with reading(pipe[0], nobodys, nobodys) as (server, helper, sibling):
        shell = Process(os.getpid(), os.getppid(), executed=1)
        known = [shell, Process(OTHER, shell.pid, "/usr/bin/jq", executed=1)]
        known += [Process(server.pid, shell.pid, "/opt/x", executed=1), Process(helper.pid, server.pid, executed=1)]
        known += [Process(sibling.pid, shell.pid, "/usr/bin/sleep", executed=1)]
        around = around_all(tmp_path, known, server.pid, helper.pid, sibling.pid)
        around.hold(read_by(server.pid, end_of(pipe[0])), "/opt/x")
        told = around.judge(lambda _end: Sender(Peer(OTHER), len(CALL), asks=True))
        assert {event.pid for event in told} == {server.pid, helper.pid}
        assert (server.wait(30), helper.wait(30), sibling.poll()) == (-9, -9, None)
    os.close(nobodys)
    os.close(other)
