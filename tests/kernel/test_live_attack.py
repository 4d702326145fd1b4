"""Who may ask a session for more rules: nobody in a guarded tree, by whatever name, and however it pretends."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from harness import Sandbox, need_root, sandbox
from puppet import puppet

from mcpguard.errors import HostError
from mcpguard.kernel import privileges
from mcpguard.kernel.cgroup import Leaf
from mcpguard.profile.amend import Addition
from mcpguard.session import control
from mcpguard.session.approve import HeldCall, Outcome, Question, Scope, Watch, address, approve, decide, leave

pytestmark = pytest.mark.kernel

SESSION = "20261126-010101-test"
# Everything that a careless profile could open.
OPEN = """\
name: puppet
extends: [base]
files:
  read: [/]
  execute: [/]
sockets:
  allow: ["/**", "{workspace}/**", "@*"]
"""


@pytest.fixture
def box() -> Iterator[Sandbox]:
    need_root()
    with sandbox() as made:
        made.write_profile("puppet", OPEN.replace(', "@*"', ""))
        yield made


@pytest.mark.parametrize("tier", ["", "3"])
def test_the_tree_reaches_the_socket_by_no_name_while_its_user_does(box: Sandbox, tier: str) -> None:
    options = ("--tier", tier) if tier else ()
    with puppet(box, options=options) as held:
        held.approve(("network", "allow", "127.0.0.1:1"))  # the control: it is there, and answers
        path, link = held.control(), box.world.project / "link"
        assert path.is_socket()
        assert held.ask("link", path.parent, link) == ""
        names = [
            path,
            f"/proc/self/root{path}",
            f"/proc/{os.getpid()}/root{path}",
            link / path.name,
            f"link/{path.name}",
        ]
        for name in names:
            for kind in ("SEQPACKET", "STREAM", "DGRAM"):
                assert held.ask("unix", name, kind) in ("EPERM", "EACCES", "ENOENT", "ECONNREFUSED"), (name, kind)
        assert held.ask("names", path.parent) in ("EACCES", "EPERM")
        assert held.ask("names", path.parent.parent) == ""
        for act in ("read", "write"):
            assert held.ask(act, path) in ("EACCES", "EPERM")
        assert held.approve(("network", "allow", "127.0.0.1:2")).now
        held.end()
    refused = [event for event in held.events("--verdict", "deny") if event["kind"] == "unix"]
    assert any(str(path.parent) in event["rule"]["text"] for event in refused), refused
    assert not path.exists()


class Decides:
    """Takes everything; remembers who was turned away."""

    def __init__(self) -> None:
        self.taken: list[tuple[Addition, ...]] = []
        self.intruders: list[int] = []

    def approve(self, additions: Sequence[Addition], scope: Scope, who: str) -> Outcome:
        self.taken.append(tuple(additions))
        if additions[0].value == "/bug":
            raise RuntimeError("nobody foresaw it")
        if additions[0].value == "/slow":
            time.sleep(2 * control._PATIENCE_S)
        return Outcome((who,), (), "")

    def intruder(self, pid: int) -> None:
        self.intruders.append(pid)


class Holds:
    """Remembers whether anybody watches, and which names were left."""

    def __init__(self) -> None:
        self.held: socket.socket | None
        self.held, self.tells = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.held.setblocking(False)
        self.watchers: list[bool] = []
        self.left: list[str] = []

    def watched(self, watched: bool) -> None:
        self.watchers.append(watched)

    def leave(self, name: str) -> None:
        self.left.append(name)


class Calls:
    """Holds a call of a tool."""

    def __init__(self) -> None:
        held, self.tells = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        held.setblocking(False)
        self.held: socket.socket | None = held
        self.answers: list[tuple[str, str]] = []
        self.watchers: list[bool] = []

    def watched(self, watched: bool) -> None:
        self.watchers.append(watched)

    def answer(self, call: str, answer: str, who: str) -> None:
        self.answers.append((call, answer))


@pytest.fixture
def calls() -> Iterator[Calls]:
    made = Calls()
    yield made
    made.tells.close()
    if made.held is not None:
        made.held.close()


@pytest.fixture
def holds() -> Iterator[Holds]:
    made = Holds()
    yield made
    made.tells.close()
    if made.held is not None:
        made.held.close()


@pytest.fixture
def unasked(holds: Holds, calls: Calls) -> None:
    """A session that holds nothing; to be asked for before `decides`, whose thread looks from its start."""
    for one in (holds, calls):
        assert one.held is not None
        one.held.close()
        one.held = None


@pytest.fixture
def decides(holds: Holds, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decides]:
    """A socket as a session has it, with nothing between it and the tree but its own look at who asks."""
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    made, stop = Decides(), os.eventfd(0)
    thread = threading.Thread(target=control.serve, args=(SESSION, stop, lambda: made, holds, calls))
    thread.start()
    path = control.control_directory() / SESSION
    while not path.exists():
        assert thread.is_alive()
    yield made
    os.eventfd_write(stop, 1)
    thread.join()
    os.close(stop)
    assert not path.exists()


def ask(path: str = "/x") -> Outcome:
    return approve(SESSION, [Addition("files", "read", path)], Scope.SESSION)


def connected() -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.settimeout(10)
    with address(SESSION) as name:
        line.connect(name)
    return line


def question(hello: bytes, path: str = "/stolen") -> bytes:
    asked = {"version": 1, "scope": "session", "additions": [["files", "read", path]]}
    return json.dumps({**asked, "nonce": json.loads(hello)["nonce"]}).encode()


def within(leaf: Leaf, act: Callable[[], object]) -> bool:
    """Whether an act succeeds in a process of the leaf, which has no capabilities, as nothing guarded has."""
    pid = os.fork()
    if pid == 0:
        try:
            leaf.enter()
            privileges.drop_bounding_set()
            privileges.drop_capabilities()
            os._exit(0 if act() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_user_outside_is_heard(decides: Decides) -> None:
    (who,) = ask().now
    assert who.endswith(f"[{os.getpid()}]")
    assert decides.taken == [(Addition("files", "read", "/x"),)]
    assert decides.intruders == []


def test_who_only_looks_is_no_intruder(decides: Decides, leaf: Leaf) -> None:
    connected().close()
    assert ask().now
    assert decides.intruders == []
    assert not within(leaf, lambda: connected().recv(1))
    assert ask().now
    assert len(decides.intruders) == 1


def test_a_process_of_a_leaf_is_not(decides: Decides, leaf: Leaf) -> None:
    assert not within(leaf, ask)
    assert decides.taken == []
    assert len(decides.intruders) == 1
    assert ask().now


def test_a_line_that_somebody_outside_opened_carries_no_word_from_inside(decides: Decides, leaf: Leaf) -> None:
    def steal(line: socket.socket) -> bool:
        line.send(question(line.recv(1 << 16)))
        return bool(line.recv(1 << 16))

    with connected() as line:
        assert not within(leaf, lambda: steal(line))
    assert decides.taken == []
    with connected() as line:
        assert steal(line)
    assert len(decides.taken) == 1


def test_nor_with_the_credentials_of_another(decides: Decides, leaf: Leaf) -> None:
    def forged(line: socket.socket, pid: int) -> None:
        credentials = struct.pack("iII", pid, os.getuid(), os.getgid())
        ancillary = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]
        line.sendmsg([question(line.recv(1 << 16))], ancillary)

    outside = os.getpid()

    def lie(line: socket.socket) -> bool:
        forged(line, outside)
        return bool(line.recv(1 << 16))

    with connected() as line:
        assert not within(leaf, lambda: lie(line))
    assert decides.taken == []
    with connected() as line:
        forged(line, outside)
        assert line.recv(1 << 16)


def test_a_line_that_was_opened_inside_carries_no_word_from_outside(decides: Decides, leaf: Leaf) -> None:
    ours, theirs = socket.socketpair()

    def hand_over() -> bool:
        with connected() as line:
            socket.send_fds(theirs, [b"x"], [line.fileno()])
            return True

    assert within(leaf, hand_over)
    _data, (fd,), _flags, _address = socket.recv_fds(ours, 1, 1)
    with socket.socket(fileno=fd) as line:
        line.settimeout(10)
        try:
            hello = line.recv(1 << 16)
            if hello:
                line.send(question(hello))
                assert not line.recv(1 << 16)
        except OSError:
            pass
    assert decides.taken == []
    ours.close()
    theirs.close()
    assert ask().now


def test_who_has_ended_is_not_heard(decides: Decides) -> None:
    """Its number may be another's by now."""
    pid = os.fork()
    if pid == 0:
        line = connected()
        line.send(question(b'{"nonce": "guessed"}'))
        os._exit(0)
    os.waitpid(pid, 0)
    assert ask().now
    assert len(decides.taken) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _asked: b"",
        lambda _asked: b"\xff" * 100,
        lambda asked: asked + b"x",
        lambda asked: asked + b" " * (1 << 16),
        lambda asked: asked.replace(b'"version": 1', b'"version": 2'),
        lambda asked: asked.replace(b'"session"', b'"everything"'),
        lambda asked: asked.replace(b'[["files"', b'[[7, "files"'),
        lambda asked: asked.replace(b'[["files", "read", "/stolen"]]', b'[{"files": 1, "read": 1, "/stolen": 1}]'),
        lambda asked: asked.replace(b'[["files", "read", "/stolen"]]', b'["abc"]'),
        lambda asked: asked.replace(b'"/stolen"]', b'"/stolen", "more"]'),
        lambda asked: asked.replace(b'"additions": [', b'"additions": ' + b"[" * 5000),
        lambda asked: asked.replace(b"/stolen", b"/bug"),
        lambda asked: asked.replace(b"/stolen", b"\\u0000"),
        lambda asked: asked.replace(json.loads(asked)["nonce"].encode(), b"0" * 32),
    ],
)
def test_nonsense_gets_an_error_and_ends_nothing(decides: Decides, spoil: Callable[[bytes], bytes]) -> None:
    with connected() as line:
        line.send(spoil(question(line.recv(1 << 16))))
        answer = line.recv(1 << 16)
    assert not answer or "error" in json.loads(answer)
    assert ask().now
    assert [one for taken in decides.taken for one in taken if one.value not in ("/x", "/bug")] == []


def test_who_says_nothing_is_waited_for_by_nobody(decides: Decides) -> None:
    """However many: each is let go after a while, and the oldest when there are more than a few."""
    with contextlib.ExitStack() as silent:
        lines = [silent.enter_context(connected()) for _ in range(40)]
        for line in lines:
            assert json.loads(line.recv(1 << 16))["nonce"]
        began = time.monotonic()
        assert ask().now
        # Each one's patience in turn would be a minute and more.
        assert time.monotonic() - began < control._PATIENCE_S * len(lines) / 2
        assert lines[0].recv(1 << 16) == b"", "hung up"
        assert lines[-1].recv(1 << 16) == b"", "after a while"
    assert not decides.intruders


def test_who_speaks_while_another_is_answered_was_not_silent(decides: Decides, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_PATIENCE_S", 1.5)
    with connected() as first, connected() as second:
        hello = [line.recv(1 << 16) for line in (first, second)]
        first.send(question(hello[0], "/slow"))
        second.send(question(hello[1], "/fine"))
        assert all("now" in json.loads(line.recv(1 << 16)) for line in (first, second))


def test_descriptors_that_come_along_are_not_kept(decides: Decides) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        with connected() as line:
            hello = line.recv(1 << 16)
            descriptors = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))]
            line.sendmsg([question(hello)], descriptors)
            line.recv(1 << 16)
    assert ask().now
    assert len(os.listdir("/proc/self/fd")) < before + 10


# --- who watches, and is asked ------------------------------------------------------------------------------------


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def heard(watch: Watch) -> list[Question]:
    deadline = time.monotonic() + 60
    while (news := watch.news()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return news


ASKED = ["a.test", "A", 7, 1, "tool", 5, 2]


def test_who_watches_hears_what_is_held_and_is_missed_when_the_last_one_goes(decides: Decides, holds: Holds) -> None:
    first = Watch(SESSION)
    assert heard(first) == []
    until(lambda: holds.watchers == [True])
    holds.tells.send(json.dumps([ASKED]).encode())
    assert heard(first) == [Question("a.test", "A", 7, 1, "tool", 5, 2)]
    second = Watch(SESSION)
    assert [one.name for one in heard(second)] == ["a.test"]
    assert ask().now
    first.close()
    holds.tells.send(b"[]")
    assert heard(second) == []
    assert holds.watchers == [True]
    second.close()
    until(lambda: holds.watchers == [True, False])
    assert decides.intruders == []


def test_a_name_is_left_refused_from_outside_and_not_from_a_leaf(decides: Decides, holds: Holds, leaf: Leaf) -> None:
    assert within(leaf, lambda: leave(SESSION, "a.test") is None)
    until(lambda: len(decides.intruders) == 1)
    assert holds.left == []
    leave(SESSION, "a.test")
    assert holds.left == ["a.test"]


HELD = HeldCall("0123456789", "s", "stdio", "write", "{}", "write", "because", 7, "agent", 5)


def test_a_held_call_is_answered_from_outside_and_not_from_a_leaf(
    decides: Decides, holds: Holds, calls: Calls, leaf: Leaf
) -> None:
    watch = Watch(SESSION)
    until(lambda: calls.watchers == holds.watchers == [True])
    calls.tells.send(json.dumps({"calls": [{name: getattr(HELD, name) for name in HeldCall.__slots__}]}).encode())
    until(lambda: watch.news() is not None and watch.calls == [HELD])

    def inside() -> bool:
        decide(SESSION, HELD.call, "once")
        return True

    assert not within(leaf, inside)
    until(lambda: len(decides.intruders) == 1)
    assert calls.answers == []
    for word in ("profile", "", "yes"):
        with pytest.raises(HostError, match="could not read"):
            decide(SESSION, HELD.call, word)
    with pytest.raises(HostError, match="does not wait"):
        decide(SESSION, "another", "once")
    decide(SESSION, HELD.call, "once")
    assert calls.answers == [(HELD.call, "once")]
    watch.close()
    until(lambda: calls.watchers == holds.watchers == [True, False])


def test_nobody_of_a_leaf_watches(decides: Decides, holds: Holds, leaf: Leaf) -> None:
    assert not within(leaf, lambda: heard(Watch(SESSION)) == [])
    assert holds.watchers == [] and len(decides.intruders) == 1


@pytest.mark.usefixtures("unasked", "decides")
def test_a_session_that_does_not_ask_is_not_watched(holds: Holds) -> None:
    with connected() as line:
        line.send(json.dumps({"version": 1, "watch": True, "nonce": json.loads(line.recv(1 << 16))["nonce"]}).encode())
        assert "--ask" in json.loads(line.recv(1 << 16))["error"][1]
    assert holds.watchers == [] and ask().now


def test_who_watches_and_says_more_or_reads_nothing_is_let_go(decides: Decides, holds: Holds) -> None:
    with connected() as line:
        line.send(json.dumps({"version": 1, "watch": True, "nonce": json.loads(line.recv(1 << 16))["nonce"]}).encode())
        assert json.loads(line.recv(1 << 16)) == []
        line.send(b"more")
        until(lambda: holds.watchers == [True, False])
    deaf = Watch(SESSION)
    until(lambda: holds.watchers == [True, False, True])

    def is_let_go() -> bool:
        """Whoever is served late is told the newest only: so news come until the line is full."""
        holds.tells.send(json.dumps([ASKED] * 100).encode())
        return not holds.watchers[-1]

    until(is_let_go)
    assert holds.watchers == [True, False, True, False]
    assert ask().now
    deaf.close()
