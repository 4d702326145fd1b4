"""What the guarded tree can do to its gate: forge, lie, flood, hand over odd descriptors. The gate goes on for the others."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gate_help import PYTHON, SERVER, World, call, gate, wait_until

from mcpguard.gate import peers, serving
from mcpguard.gate.admission import Admission
from mcpguard.gate.line import MOST_BYTES, VERSION
from mcpguard.kernel import proc

pytestmark = pytest.mark.timeout(60)
GOOD = {"version": VERSION, "name": "s", "argv": ["/bin/cat"]}
NOTE = b'{"jsonrpc":"2.0","method":"notifications/x"}\n'


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with gate(tmp_path) as made:
        yield made
        # Whatever was done to it: an honest shim is served.
        path = tmp_path / "server.py"
        path.write_text(SERVER)
        process = made.start("honest", [PYTHON, str(path)])
        out, err = process.communicate(call("echo", {"a": 1}), timeout=30)
        assert b'{\\"a\\": 1}' in out, err


def connect(world: World) -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.settimeout(20)
    line.connect(world.address)
    return line


def ask(line: socket.socket, packet: bytes, descriptors: list[int]) -> dict[str, Any]:
    socket.send_fds(line, [packet], descriptors)
    data, found, _flags, _address = socket.recv_fds(line, MOST_BYTES, 2)
    peers.close_all(found)
    answer: dict[str, Any] = json.loads(data) if data else {}
    return answer


@contextlib.contextmanager
def pipes() -> Iterator[list[int]]:
    """The two ends that a shim hands over."""
    reader, their_writer = os.pipe()
    their_reader, writer = os.pipe()
    yield [reader, writer]
    peers.close_all([reader, writer, their_reader, their_writer])


@pytest.mark.parametrize(
    "packet",
    [
        b"\xff\xfe",
        b"[]",
        b"null",
        b"1",
        b"{}",
        json.dumps({**GOOD, "version": 2}).encode(),
        json.dumps({**GOOD, "version": [VERSION]}).encode(),
        json.dumps({**GOOD, "name": ""}).encode(),
        json.dumps({**GOOD, "name": "x" * 1000}).encode(),
        json.dumps({**GOOD, "name": "a\nb"}).encode(),
        json.dumps({**GOOD, "name": ["s"]}).encode(),
        json.dumps({**GOOD, "argv": []}).encode(),
        json.dumps({**GOOD, "argv": "/bin/cat"}).encode(),
        json.dumps({**GOOD, "argv": [1]}).encode(),
        json.dumps({**GOOD, "argv": [""]}).encode(),
        json.dumps({**GOOD, "argv": ["/bin/cat\0"]}).encode(),
        json.dumps({**GOOD, "argv": ["x"] * 1000}).encode(),
        json.dumps({**GOOD, "argv": ["x" * 100_000]}).encode(),
        b'{"version":1,"name":"s","argv":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        json.dumps({**GOOD, "argv": ["\ud800"]}).encode(),
    ],
)
def test_a_packet_that_no_shim_sends_is_refused(packet: bytes, world: World) -> None:
    with connect(world) as line, pipes() as ends:
        answer = ask(line, packet, ends)
        assert "go" not in answer
        assert line.recv(1) == b""


@pytest.mark.parametrize("count", [0, 1, 3, 200])
def test_so_is_one_with_too_few_or_too_many_descriptors(count: int, world: World) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with connect(world) as line, pipes() as ends:
        line.settimeout(20)
        socket.send_fds(line, [json.dumps(GOOD).encode()], (ends * 100)[:count])
        assert line.recv(MOST_BYTES) == b""
    # The gate is a thread of this process, and what it was handed is closed.
    assert len(os.listdir("/proc/self/fd")) < before + 20


@pytest.mark.parametrize("packet", [b"x" * (MOST_BYTES + 10)])
def test_so_is_one_that_is_too_long(packet: bytes, world: World) -> None:
    with connect(world) as line, pipes() as ends:
        socket.send_fds(line, [packet], ends)
        assert line.recv(MOST_BYTES) == b""


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "kind",
    ["directory", "file", "null", "full", "fifo", "place", "gate", "datagram", "listener", "inet", "memory", "poll"],
)
def test_odd_descriptors_are_refused(kind: str, which: int, world: World, tmp_path: Path) -> None:
    """Reading or writing them could wait for ever, or do something; a pipe or a stream of the agent's is all that is meant."""
    with contextlib.ExitStack() as stack, connect(world) as line, pipes() as ends:

        def held(one: socket.socket) -> int:
            return stack.enter_context(one).fileno()

        def opened(path: str, flags: int) -> int:
            number = os.open(path, flags)
            stack.callback(os.close, number)
            return number

        if kind == "fifo":
            os.mkfifo(tmp_path / "fifo")
        elif kind == "listener":
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(tmp_path / "listener"))
            listener.listen()
            held(listener)
        odd = {
            "directory": lambda: opened("/", os.O_RDONLY),
            "file": lambda: opened(__file__, os.O_RDONLY),
            "null": lambda: opened("/dev/null", os.O_RDWR),
            "full": lambda: opened("/dev/full", os.O_RDWR),
            "fifo": lambda: opened(str(tmp_path / "fifo"), os.O_RDWR),
            "place": lambda: opened("/tmp", os.O_PATH),
            "gate": lambda: held(connect(world)),
            "datagram": lambda: held(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]),
            "listener": lambda: listener.fileno(),
            "inet": lambda: held(socket.socket()),
            "memory": lambda: held_number(stack, os.memfd_create("m")),
            "poll": lambda: held_number(stack, os.eventfd(0)),
        }[kind]()
        ends[which] = odd
        answer = ask(line, json.dumps(GOOD).encode(), ends)
        assert answer["refused"][3] == "mcp.bad-question"
    world.wait_for("refuse", "no shim makes")


def held_number(stack: contextlib.ExitStack, number: int) -> int:
    stack.callback(os.close, number)
    return number


def test_a_description_that_is_made_to_wait_again_does_not_hold_the_gate(world: World, tmp_path: Path) -> None:
    """The tree keeps the descriptions it handed over, and O_NONBLOCK belongs to the description."""
    reader, their_writer = os.pipe()
    their_reader, writer = os.pipe()
    ours, theirs = socket.socketpair()
    for stdin, stdout in ((reader, writer), (theirs.fileno(), theirs.fileno())):
        process = world.start("s", ["/bin/cat"], stdin=stdin, stdout=stdout)
        world.wait_for("start")
        for number in (reader, writer, theirs.fileno()):
            os.set_blocking(number, True)
        os.write(their_writer if stdin == reader else ours.fileno(), b"half a line")
        time.sleep(0.2)
        process.kill()
        process.wait()
    peers.close_all([reader, writer, their_reader, their_writer])
    ours.close()
    theirs.close()


def forge(world: World, then: str, argv: list[str], name: str = "s") -> subprocess.Popen[bytes]:
    """A process of the tree that asks as a shim does, and when it is told to go on does something else."""
    code = f"""
import json, os, socket, sys, time
line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
line.connect({world.address!r})
packet = json.dumps({{"version": {VERSION}, "name": {name!r}, "argv": {argv!r}}}).encode()
socket.send_fds(line, [packet], [0, 1])
data, found, _f, _a = socket.recv_fds(line, 1 << 17, 2)
order = json.loads(data)["go"]
{then}
"""
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([PYTHON, "-c", code], **streams)


OTHER = 'os.dup2(found[0], 0); os.dup2(found[1], 1); os.execv("/bin/sleep", ["sleep", "30"])'
ARGUMENTS = 'os.dup2(found[0], 0); os.dup2(found[1], 1); os.execv("/bin/cat", ["cat", "/etc/passwd", "-"])'
VARIABLE = (
    'os.dup2(found[0], 0); os.dup2(found[1], 1); os.execve("/bin/cat", ["/bin/cat", "-"], {"LD_PRELOAD": "/tmp/x.so"})'
)
TITLE = 'os.dup2(found[0], 0); os.dup2(found[1], 1); os.execv("/bin/cat", ["cat"])'
BECOME = 'os.dup2(found[0], 0); os.dup2(found[1], 1); os.execve("/bin/cat", {argv}, {environment})'
ONE_WORD = BECOME.format(argv=["/bin/cat -"], environment='order["environment"]')
DROPPED = BECOME.format(argv=["/bin/cat", "-"], environment='{"PATH": order["environment"]["PATH"]}')
ELSEWHERE = 'os.chdir("/"); ' + BECOME.format(argv=["/bin/cat", "-"], environment='order["environment"]')
HONEST = BECOME.format(argv=["/bin/cat", "-"], environment='order["environment"]')
STAY = "line.close(); time.sleep(30)"
FORKED = "os.fork() or (line.close(), sys.stdin.read()); line.close(); os._exit(0)"


@pytest.mark.parametrize(
    ("then", "why"),
    [
        (OTHER, "another program"),
        (ARGUMENTS, "other arguments"),
        (STAY, "another program"),
        (VARIABLE, "another environment"),
        (TITLE, "other arguments"),
        (ONE_WORD, "other arguments"),
        (DROPPED, "another environment"),
        (ELSEWHERE, "another folder"),
    ],
)
def test_who_becomes_something_else_is_ended_before_a_message_reaches_it(then: str, why: str, world: World) -> None:
    process = forge(world, then, ["/bin/cat", "-"])
    assert process.stdin is not None
    process.stdin.write(call("echo"))
    process.stdin.flush()
    assert process.wait(30) == -9
    out, _err = process.communicate(timeout=30)
    assert out == b""
    assert why in world.wait_for("refuse").detail
    assert not world.events("request") and not world.events("start")


def test_who_becomes_what_was_admitted_by_hand_is_served(world: World) -> None:
    """The control of the others: nothing about a shim matters but what it becomes."""
    process = forge(world, HONEST, ["/bin/cat", "-"])
    process.communicate(timeout=30)
    assert world.wait_for("start").pid == process.pid and not world.events("refuse")


# A program that writes over its arguments as soon as it runs, as npm does.
TITLED = """
import sys
start, end = (int(word) for word in open("/proc/self/stat").read().rpartition(")")[2].split()[45:47])
with open("/proc/self/mem", "r+b", buffering=0) as memory:
    memory.seek(start)
    memory.write(b"a title".ljust(end - start, b"\\0"))
open(sys.argv[1], "w")
sys.stdin.read()
"""


def test_a_title_is_not_taken_for_other_arguments_though_the_gate_is_busy(world: World, tmp_path: Path) -> None:
    """A server does nothing before the gate has come to it."""
    may_execute, busy, titled, go_on = (tmp_path / name for name in ("may", "busy", "titled", "on"))
    judge = world.judge

    def slowly(name: str, admission: Admission, peer: int, client: int) -> Any:
        if name == "slow":
            busy.touch()
            wait_until(go_on.exists)
        return judge(name, admission, peer, client)

    world.judge = slowly  # type: ignore[method-assign]
    words = [PYTHON, "-c", TITLED, str(titled)]
    then = f"""
while not os.path.exists({str(may_execute)!r}):
    time.sleep(0.01)
os.dup2(found[0], 0); os.dup2(found[1], 1)
os.execve({PYTHON!r}, {words!r}, order["environment"])
"""
    process = forge(world, then, words)
    wait_until(lambda: thread_named("look"))
    slow = world.start("slow", ["/bin/cat"])
    wait_until(busy.exists)
    may_execute.touch()
    wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    assert not titled.exists()
    go_on.touch()
    assert world.wait_for("start", "a title").pid == process.pid
    wait_until(titled.exists)
    assert b"a title" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    for one in (process, slow):
        one.communicate(timeout=30)


def test_who_stands_still_when_the_gate_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was executed, and nobody will see what it is."""
    may_look, look = threading.Event(), peers.executed

    def when_it_may(pid: int) -> peers.Executed:
        assert may_look.wait(60)
        return look(pid)

    monkeypatch.setattr(peers, "executed", when_it_may)
    with gate(tmp_path) as world:
        process = forge(world, HONEST, ["/bin/cat", "-"])
        wait_until(lambda: proc.stat_of(process.pid)[proc.STATE] == "T")
    try:
        assert process.wait(30) == -signal.SIGKILL
    finally:
        may_look.set()
        process.kill()
        process.communicate()


class Reading:
    """What a huge server takes to be read: for ever, until it is told to end."""

    def __init__(self, world: World) -> None:
        self.begun: list[str] = []
        self.end = threading.Event()
        self._admit = world.admit
        world.admit = self._slowly  # type: ignore[method-assign]

    def _slowly(self, name: str, argv: list[str], pid: int) -> Admission:
        if name.startswith("huge"):
            self.begun.append(name)
            assert self.end.wait(60)
        return self._admit(name, argv, pid)


@pytest.fixture
def reading(world: World) -> Iterator[Reading]:
    made = Reading(world)
    yield made
    made.end.set()


def test_while_one_server_is_read_others_start_and_answer_and_nothing_reaches_it(
    world: World, reading: Reading
) -> None:
    with world.start("huge", ["/bin/cat"]) as huge, world.start("s", ["/bin/cat"]) as other:
        assert huge.stdin and huge.stdout and other.stdin and other.stdout
        wait_until(lambda: reading.begun)
        huge.stdin.write(NOTE)
        huge.stdin.flush()
        for _ in range(3):
            other.stdin.write(NOTE)
            other.stdin.flush()
            assert other.stdout.readline() == NOTE
        assert [one.mcp.server for one in world.events("start")] == ["s"]
        assert Path(f"/proc/{huge.pid}/exe").resolve() == Path(PYTHON), "not what it asked to become"
        reading.end.set()
        assert huge.stdout.readline() == NOTE
        huge.stdin.close()
        other.stdin.close()


def test_no_more_than_some_are_read_at_once_and_the_next_ones_wait_for_their_turn(
    world: World, reading: Reading
) -> None:
    most = serving.MOST_LOOKED_AT
    started = [world.start(f"huge{number}", ["/bin/cat"]) for number in range(most + 2)]
    wait_until(lambda: len(reading.begun) == most)
    gone = next(one for number, one in enumerate(started) if f"huge{number}" not in reading.begun)
    gone.kill()
    gone.communicate()
    reading.end.set()
    for one in started:
        if one is not gone:
            one.communicate(b"", timeout=60)
            assert one.returncode == 0
    assert len(world.events("start")) == most + 1


def test_who_hangs_up_or_talks_on_while_it_is_read_becomes_nothing(world: World, reading: Reading) -> None:
    with pipes() as ends, connect(world) as leaves, connect(world) as talks:
        for name, line in (("huge1", leaves), ("huge2", talks)):
            socket.send_fds(line, [json.dumps({**GOOD, "name": name}).encode()], ends)
        wait_until(lambda: len(reading.begun) == 2)
        leaves.close()
        socket.send_fds(talks, [json.dumps(GOOD).encode()], ends)
        assert talks.recv(100) == b"", "nobody listens any more"
        world.wait_for("refuse", "went on talking")
        reading.end.set()
        other = world.start("s", ["/bin/cat"])
        other.communicate(b"", timeout=60)
    assert [one.mcp.server for one in world.events("start")] == ["s"]


def thread_named(name: str) -> bool:
    return any(one.name == name for one in threading.enumerate())


def test_who_leaves_its_place_to_a_child_is_not_served(world: World) -> None:
    process = forge(world, FORKED, ["/bin/cat", "-"])
    world.wait_for("refuse")
    process.communicate(timeout=60)
    assert not world.events("start")


def test_who_never_becomes_its_server_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_PATIENCE_S", 0.5)
    process = forge(world, "time.sleep(30)", ["/bin/cat"])
    world.wait_for("refuse", "did not become its server")
    process.kill()
    out, _err = process.communicate(timeout=30)
    assert out == b""


def test_who_goes_on_talking_is_given_up(world: World) -> None:
    process = forge(world, "line.send(b'more'); sys.stdin.read()", ["/bin/cat"])
    world.wait_for("refuse", "a packet that no shim sends")
    process.communicate(timeout=30)


def test_thousands_of_connections_leave_room_for_the_next_one(world: World) -> None:
    lines = []
    for _ in range(3000):
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            line.connect(world.address)
        lines.append(line)
        if len(lines) > 500:
            lines.pop(0).close()
    world.wait_for("refuse", "more shims at once")  # while they are there: a busy gate comes later
    for line in lines:
        line.close()
    assert len(world.events("refuse")) < 100


def test_a_server_in_a_circle_does_not_hold_the_others(world: World, tmp_path: Path) -> None:
    """Its own words come back to it as the agent's."""
    reader, writer = os.pipe()
    process = world.start("loop", ["/bin/cat"], stdin=reader, stdout=writer)
    os.close(reader)
    world.wait_for("start")
    os.write(writer, b'{"jsonrpc":"2.0","method":"notifications/x"}\n')
    time.sleep(0.3)
    other = world.start("s", ["/bin/cat"])
    other.communicate(b"", timeout=30)
    assert other.returncode == 0
    os.close(writer)
    process.kill()
    process.wait()


def test_another_leaf_is_another_session(tmp_path: Path) -> None:
    """A process of another tree of the same user; here the gate's leaf is not ours."""
    with gate(tmp_path, leaf="/mcpguard/elsewhere") as made, connect(made) as line:
        assert line.recv(1) == b""
        made.wait_for("refuse", "no process of this session")


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """So many more descriptors may be opened; the gate is a thread of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(count + 1)]
    peers.close_all(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("room", range(6))
def test_without_room_for_its_descriptors_one_shim_is_refused_and_the_gate_goes_on(room: int, world: World) -> None:
    with contextlib.ExitStack() as stack:
        ends = stack.enter_context(pipes())
        before = len(os.listdir("/proc/self/fd"))
        line = stack.enter_context(connect(world))
        until = time.monotonic() + 20
        while len(os.listdir("/proc/self/fd")) < before + 3 and time.monotonic() < until:
            time.sleep(0.01)
        with room_for(room):
            socket.send_fds(line, [json.dumps(GOOD).encode()], ends)
            answer = b""
            with contextlib.suppress(ConnectionResetError):  # hung up on before it was read
                answer = line.recv(MOST_BYTES)
        assert b'"go"' not in answer


def test_who_cannot_be_accepted_now_is_accepted_later(world: World) -> None:
    with contextlib.ExitStack() as stack:
        line = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        ends = stack.enter_context(pipes())
        line.settimeout(20)
        with room_for(0):
            line.connect(world.address)
            used = time.process_time()
            time.sleep(1)
            assert time.process_time() - used < 0.5, "it turns in a circle"
        # Not admitted: whoever is, and then executes nothing, is ended; and that is the process of this test.
        world.refused.add("s")
        assert "refused" in ask(line, json.dumps(GOOD).encode(), ends)


def test_numbers_beyond_what_select_takes_are_served(world: World) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    held = [os.dup(0) for _ in range(1100)]
    try:
        world.refused.add("s")
        with connect(world) as line, pipes() as ends:
            assert "refused" in ask(line, json.dumps(GOOD).encode(), ends)
    finally:
        peers.close_all(held)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
