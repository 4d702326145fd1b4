"""The broker's order of things around the child: what must be true before it hears the next word."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcpguard.backends import guard
from mcpguard.broker import launch, rehearsal, tiers
from mcpguard.broker.channel import Channel
from mcpguard.broker.protocol import LaunchRequest
from mcpguard.errors import HostError
from mcpguard.kernel.beside import Beside
from mcpguard.model.plan import FilesPlan
from mcpguard.model.policy import User

REQUEST = SimpleNamespace(files=FilesPlan((), ()), user=None)


class NotArmed:
    """Stands for the engine, which must not be asked."""

    tier = 3

    def arm(self, _places: object) -> None:
        raise AssertionError("armed")


@pytest.fixture
def ends() -> Iterator[tuple[launch._Child, socket.socket]]:
    """A child that has confined itself, and its end of the line."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    orders, taken = socket.socketpair()
    theirs.sendall(json.dumps({"confined": True}).encode())
    with ours, theirs, orders, taken:
        yield launch._Child(os.getpid(), Channel(orders), ours), theirs


def test_a_child_that_the_cgroup_did_not_take_hears_nothing_more(ends: tuple[launch._Child, socket.socket]) -> None:
    child, line = ends

    def refuse() -> None:
        raise OSError(16, "the cgroup is busy")

    with pytest.raises(OSError, match="busy"):
        launch._confine(child, REQUEST, NotArmed(), Beside(refuse))  # type: ignore[arg-type]
    line.setblocking(False)
    with pytest.raises(BlockingIOError):
        line.recv(16)


def test_what_is_done_beside_is_waited_for_and_tells_what_went_wrong() -> None:
    read, write = os.pipe()
    heard: list[bytes] = []
    waiting = Beside(lambda: heard.append(os.read(read, 1)))
    os.write(write, b"x")
    waiting.done()
    assert heard == [b"x"]
    os.close(read)
    os.close(write)
    failed = Beside(lambda: os.close(-1))
    failed.join()
    with pytest.raises(OSError, match="Bad file"):
        failed.done()


def test_the_table_of_descriptors_has_grown_before_there_are_threads() -> None:
    code = (
        "from mcpguard.broker import server\n"
        "def size(): return next(int(line[7:]) for line in open('/proc/self/status') if line.startswith('FDSize:'))\n"
        "before = size(); server._DESCRIPTORS = 2 * before; server._make_room(0); print(before, size())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = map(int, told.split())
    assert after >= 2 * before


def test_a_low_limit_of_descriptors_is_no_reason_not_to_start() -> None:
    code = (
        "import os, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "from mcpguard.broker.server import _make_room; _make_room(0); print(sorted(os.listdir('/proc/self/fd')))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "['0', '1', '2', '3']"


@pytest.mark.parametrize(
    ("wide", "tier", "fixed", "guard", "taken"),
    [
        (True, 2, "", object(), True),
        (False, 3, "Landlock cannot be widened", None, True),
        (False, 2, "this kernel asks no program about renaming", object(), True),
        (True, 2, "this kernel asks no program about renaming", object(), False),
        (True, 2, "this kernel preempts at will", object(), False),
        (True, 2, "", None, False),
        (True, 3, "Landlock cannot be widened", None, False),
        (True, 1, "", object(), False),
    ],
)
def test_files_are_left_to_the_hooks_only_where_these_keep_them(
    wide: bool, tier: int, fixed: str, guard: object, taken: bool
) -> None:
    request = SimpleNamespace(files=FilesPlan((), (), wide=wide), guard=guard)
    engine = SimpleNamespace(tier=tier, files_fixed=fixed)
    with contextlib.nullcontext() if taken else pytest.raises(HostError, match="leave files to the kernel's hooks"):
        launch._insist_that_hooks_keep(request, engine)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tier", "preemption", "unasked", "said"),
    [
        (1, "full", [], ""),
        (2, "voluntary", [], ""),
        (2, "none", [], ""),
        (2, "voluntary", ["renaming", "changing a mode"], "asks no program about renaming, changing a mode"),
        (2, "full", [], "preempts at will (full)"),
        (2, "lazy", [], "preempts at will (lazy)"),
        (2, "", [], "does not say how"),
        (3, "voluntary", [], "Landlock cannot be widened"),
    ],
)
def test_why_files_are_fixed_is_said(
    monkeypatch: pytest.MonkeyPatch, tier: int, preemption: str, unasked: list[str], said: str
) -> None:
    monkeypatch.setattr(tiers, "preemption", lambda: preemption)
    nothing: Any = None
    answer = tiers.files_fixed(tiers.Armed(tier, nothing, nothing, unasked=unasked))
    assert (said in answer) if said else answer == ""


def test_the_child_has_its_orders_while_the_tables_are_filled_and_hears_nothing_more_where_they_cannot_be(
    ends: tuple[launch._Child, socket.socket],
) -> None:
    child, line = ends
    orders, taken = socket.socketpair()
    ours, theirs = socket.socketpair()
    account = pwd.getpwuid(os.getuid())
    request = LaunchRequest(
        session="s",
        user=User(account.pw_uid, account.pw_gid, (account.pw_gid,), account.pw_name, account.pw_dir),
        argv=("true",),
        environment={},
        cwd="/",
        umask=0o022,
        files=FilesPlan((), ()),
        guard=None,
        switches=0,
        network={"connect": []},
        seccomp=bytes(8),
    )
    had: list[dict[str, Any]] = []

    class Malformed(NotArmed):
        files_fixed = ""

        def set_rules(self, _network: object, *, keeps: bool) -> None:
            received = Channel(taken).receive()
            assert received is not None and not keeps
            had.append(received[0])
            raise HostError("malformed", why="", do="", code="broker.malformed-request")

    serving = launch.Launch.__new__(launch.Launch)
    serving.channel, serving.caller_uid = Channel(theirs), os.getuid()
    serving.engine, serving.leaf = Malformed(), None  # type: ignore[assignment]
    with orders, taken, ours, theirs:
        Channel(ours).send(request.to_json())
        with pytest.raises(HostError, match="malformed"):
            serving._serve(
                launch._Child(child.pid, Channel(orders), child.line),
                None,  # type: ignore[arg-type]
                Beside(lambda: None),
                ours,
                signals=True,
            )
    assert [LaunchRequest.from_json(told.pop("request")) for told in had] == [request]
    assert had == [{"tier": 3, "signals": True}]
    line.setblocking(False)
    with pytest.raises(BlockingIOError):
        line.recv(16)


@pytest.mark.parametrize(
    ("tier", "done", "holds"),
    [
        (1, [], True),
        (1, ["renaming"], False),
        (2, ["renaming", "removing a file"], True),
        (2, ["renaming", "opening a directory"], False),
        (2, [rehearsal.NOT_TRIED], False),
    ],
)
def test_a_tier_holds_only_where_the_kernel_asks_about_what_nothing_else_keeps(
    monkeypatch: pytest.MonkeyPatch, tier: int, done: list[str], holds: bool
) -> None:
    monkeypatch.setattr(guard, "detach_verify", lambda _engine: [])
    monkeypatch.setattr(rehearsal, "not_refused", lambda _leaf: (done, []))
    leaf: Any = None
    session: Any = SimpleNamespace(engine=None)
    with contextlib.nullcontext() if holds else pytest.raises(HostError, match=f"tier {tier} does not hold"):
        assert tiers._rehearse(leaf, session, tier) == done


@pytest.mark.parametrize(
    ("tier", "calls", "preemption", "fixed", "said"),
    [
        (1, "1", "full", "", ""),
        (2, "1", "voluntary", "", ""),
        (1, "0", "full", "", "ftrace_enabled is 0"),
        (2, "0", "voluntary", "", "ftrace_enabled is 0"),
        (2, "0", "full", "Landlock stays narrow", "ftrace_enabled is 0"),
        (3, "0", "full", "Landlock cannot be widened", ""),
        (2, "1", "full", "", "preempts at will now (full)"),
        (2, "1", "full", "Landlock stays narrow", ""),
        (2, "1", "", "", ""),
        (2, None, "voluntary", "", ""),
    ],
)
def test_what_a_running_session_rests_on_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tier: int,
    calls: str | None,
    preemption: str,
    fixed: str,
    said: str,
) -> None:
    switch = tmp_path / "ftrace_enabled"
    if calls is not None:
        switch.write_text(f"{calls}\n")
    monkeypatch.setattr(tiers, "_CALLS_PROGRAMS", str(switch))
    monkeypatch.setattr(tiers, "preemption", lambda: preemption)
    why = tiers.let_down(tier, fixed=fixed)
    assert (said in why) if said else why == ""


@pytest.mark.parametrize("born", [True, False])
def test_where_the_kernel_lets_nobody_be_born_in_the_leaf_the_child_is_moved(
    born: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork_into(_cgroup: int) -> int:
        if not born:
            raise OSError(38, "a filter of a container's has no such call")
        return os.fork()

    monkeypatch.setattr(launch.syscalls, "fork_into", fork_into)
    monkeypatch.setattr(launch, "become_agent", lambda *_what: os._exit(7))
    child = launch._fork(None, (), SimpleNamespace(fd=-1))  # type: ignore[arg-type]
    child.orders.close()
    child.line.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == 7
    assert child.inside is born


def test_where_hooks_will_be_tried_the_child_waits_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.syscalls, "fork_into", lambda _cgroup: pytest.fail("it would be judged too early"))
    monkeypatch.setattr(launch, "become_agent", lambda *_what: os._exit(7))
    child = launch._fork(None, (), None)  # type: ignore[arg-type]
    child.orders.close()
    child.line.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == 7
    assert not child.inside


@pytest.mark.parametrize(
    ("asked", "refused", "last"),
    [
        (None, {1: "no", 2: "no"}, True),
        (None, {1: "no"}, False),
        (None, {}, False),
        (3, {}, True),
        (2, {1: "no", 2: "no"}, False),
    ],
)
def test_only_where_no_hooks_are_tried_tier_3_is_the_last(
    asked: int | None, refused: dict[int, str], last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "_remembered", lambda: (refused, False))
    assert tiers.is_last(asked) is last
