"""A leaf below the session's that is kept to tables of its own: there what both allow is left, and nothing else.

The control of every refusal is the same act in the session's own leaf.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hello
import pytest
from bpf_tree import WAIT_S, Tree, allow, deny, errno_of, in_child
from test_bpf_hosts import say

from mcpguard.backends.cgroup_bpf import Settings
from mcpguard.backends.engine import Engine
from mcpguard.kernel import cgroup
from mcpguard.kernel.cgroup import Leaf
from mcpguard.model.access import Verdict
from mcpguard.policy.network import mapped
from mcpguard.wire import _abi, encode
from mcpguard.wire.encode import LearnedRule

pytestmark = pytest.mark.kernel

V4, V6, MAPPED = "127.0.0.1", "::1", "::ffff:127.0.0.1"
# Rules of the session, of what is kept, and the one that keeps it.
OURS, OURS_DENIED, THEIRS, THEIRS_DENIED, KEEPER = 1, 2, 8, 9, 7
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM


@dataclass
class Ports:
    """Listeners outside the tree, on every address of both families, each with a datagram socket on the same port."""

    both: int = 0
    ours: int = 0
    theirs: int = 0
    denied: int = 0
    open: list[socket.socket] = field(default_factory=list)


@pytest.fixture
def ports() -> Iterator[Ports]:
    made = Ports()
    with contextlib.ExitStack() as stack:
        for name in ("both", "ours", "theirs", "denied"):
            server = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
            stack.enter_context(server)
            port = server.getsockname()[1]
            datagrams = stack.enter_context(socket.socket(socket.AF_INET6, UDP))
            datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            datagrams.bind(("::", port))
            setattr(made, name, port)
            made.open += [server, datagrams]
        yield made


@dataclass
class Kept:
    """The tree, and the leaf below."""

    tree: Tree
    below: Leaf

    def run(self, act: Callable[[], object]) -> object:
        return in_child(act, self.below.enter)

    def errno(self, act: Callable[[], object]) -> int:
        return in_child(lambda: errno_of(act), self.below.enter)

    def refusals(self) -> list[tuple[int, int]]:
        return [(one.port, one.rule) for one in self.tree.net_denials() if one.verdict is Verdict.DENY]


def keep(tree: Tree, **left: object) -> Kept:
    below = tree.leaf.below(str(KEEPER))
    assert tree.network is not None
    tree.network.keep([(below.id, KEEPER, Settings(**left))])  # type: ignore[arg-type]
    return Kept(tree, below)


def everywhere(port: int, rule: int, row: Callable[..., object] = allow) -> list[object]:
    return [row("127.0.0.0", 8, rule, ports=(port, port)), row("::1", 128, rule, ports=(port, port))]


def rows(*given: tuple[int, int, Callable[..., object]]) -> list[object]:
    """Rows that name one address carry all of its rules."""
    found: dict[tuple[bytes, int], list[object]] = {}
    for port, rule, row in given:
        for address, prefix, port_rules in everywhere(port, rule, row):  # type: ignore[misc]
            found.setdefault((address, prefix), []).extend(port_rules)
    return [(address, prefix, port_rules) for (address, prefix), port_rules in found.items()]


@pytest.fixture
def kept(tree: Tree, ports: Ports) -> Kept:
    """The session may reach `both`, `ours` and `denied`; what is kept `both` and `theirs`, and it is denied `denied`."""
    tree.guard(connect=rows((ports.both, OURS, allow), (ports.ours, OURS, allow), (ports.denied, OURS, allow)))
    left = rows((ports.both, THEIRS, allow), (ports.theirs, THEIRS, allow), (ports.denied, THEIRS_DENIED, deny))
    return keep(tree, connect=left)


def connect(family: int, kind: int, host: str, port: int) -> None:
    with socket.socket(family, kind) as sock:
        sock.connect((host, port))
        sock.send(b"x")


def send_to(family: int, _kind: int, host: str, port: int) -> None:
    with socket.socket(family, UDP) as sock:
        sock.sendto(b"x", (host, port))


def connect_at_once(family: int, kind: int, host: str, port: int) -> None:
    with socket.socket(family, kind) as sock:
        sock.sendto(b"x", socket.MSG_FASTOPEN, (host, port))


WAYS = {
    "tcp4": (connect, socket.AF_INET, TCP, V4),
    "tcp6": (connect, socket.AF_INET6, TCP, V6),
    "tcp-mapped": (connect, socket.AF_INET6, TCP, MAPPED),
    "fast-open": (connect_at_once, socket.AF_INET, TCP, V4),
    "udp4": (send_to, socket.AF_INET, UDP, V4),
    "udp6": (send_to, socket.AF_INET6, UDP, V6),
    "udp-mapped": (send_to, socket.AF_INET6, UDP, MAPPED),
    "udp4-connected": (connect, socket.AF_INET, UDP, V4),
    "udp6-connected": (connect, socket.AF_INET6, UDP, V6),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_both_allow_is_left_and_each_refusal_names_its_rule(kept: Kept, ports: Ports, way: str) -> None:
    act, family, kind, host = WAYS[way]

    def tried(port: int) -> Callable[[], object]:
        return lambda: act(family, kind, host, port)

    every = {"both": ports.both, "ours": ports.ours, "theirs": ports.theirs, "denied": ports.denied}
    control = {name: kept.tree.run(lambda port=port: errno_of(tried(port))) for name, port in every.items()}
    assert control == {"both": 0, "ours": 0, "theirs": errno.EPERM, "denied": 0}
    before = len(kept.refusals())
    inside = {name: kept.errno(tried(port)) for name, port in every.items()}
    assert inside == {"both": 0, "ours": errno.EPERM, "theirs": errno.EPERM, "denied": errno.EPERM}
    found = kept.refusals()[before:]
    assert set(found) == {(ports.ours, KEEPER), (ports.theirs, 0), (ports.denied, THEIRS_DENIED)}


def test_a_denied_connect_leaves_no_way_for_what_is_sent_next(kept: Kept, ports: Ports) -> None:
    def insist() -> list[int]:
        with socket.socket(socket.AF_INET, UDP) as sock:
            refused = errno_of(lambda: sock.connect((V4, ports.ours)))
            return [refused, errno_of(lambda: sock.send(b"x")), errno_of(lambda: sock.sendto(b"x", (V4, ports.ours)))]

    assert kept.tree.run(insist) == [0, 0, 0]
    assert kept.run(insist) == [errno.EPERM, errno.EDESTADDRREQ, errno.EPERM]
    assert kept.refusals() == [(ports.ours, KEEPER)] * 2


def test_it_stays_kept_whatever_it_becomes(kept: Kept, ports: Ports) -> None:
    """A child, a session of its own, and a grandchild whose parents have ended; the control is the last of them outside."""

    def deep() -> dict[str, int]:
        def one() -> int:
            return errno_of(lambda: connect(socket.AF_INET, TCP, V4, ports.ours))

        def orphan() -> int:
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.setsid()
                if os.fork() == 0:
                    while os.getppid() == child:
                        time.sleep(0.001)
                    os.write(writer, b"%d" % one())
                os._exit(0)
            os.waitpid(child, 0)
            os.close(writer)
            with os.fdopen(reader) as pipe:
                return int(pipe.read())

        return {"itself": one(), "child": in_child(one), "session": in_child(one, os.setsid), "orphan": orphan()}

    assert kept.tree.run(deep) == dict.fromkeys(("itself", "child", "session", "orphan"), 0)
    assert kept.run(deep) == dict.fromkeys(("itself", "child", "session", "orphan"), errno.EPERM)
    assert set(kept.refusals()) == {(ports.ours, KEEPER)}
    assert len({one.head.pid for one in kept.tree.net_denials()}) == 4


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_a_socket_that_the_agent_made_is_kept_with_who_uses_it(kept: Kept, ports: Ports, kind: int) -> None:
    def handed_down(enter: Callable[[], None]) -> list[int]:
        with socket.socket(socket.AF_INET, kind) as sock:
            return [
                in_child(lambda: errno_of(lambda: sock.connect((V4, ports.ours))), enter),
                errno_of(lambda: sock.connect((V4, ports.both))),
                errno_of(lambda: sock.send(b"x")),
            ]

    assert in_child(lambda: handed_down(lambda: None), kept.tree.leaf.enter)[0] == 0
    first, second, third = in_child(lambda: handed_down(kept.below.enter), kept.tree.leaf.enter)
    assert (first, second, third) == (errno.EPERM, 0, 0)
    assert kept.refusals() == [(ports.ours, KEEPER)]


def test_what_was_let_through_for_the_agent_is_not_for_who_is_kept(kept: Kept, ports: Ports) -> None:
    """An unconnected datagram socket, connected by the agent, and used by name from below."""

    def hand_down(enter: Callable[[], None]) -> int:
        with socket.socket(socket.AF_INET6, UDP) as sock:
            sock.connect((MAPPED, ports.ours))
            return in_child(lambda: errno_of(lambda: sock.sendto(b"x", (MAPPED, ports.ours))), enter)

    assert in_child(lambda: hand_down(lambda: None), kept.tree.leaf.enter) == 0
    assert in_child(lambda: hand_down(kept.below.enter), kept.tree.leaf.enter) == errno.EPERM
    assert kept.refusals() == [(ports.ours, KEEPER)]


def test_a_conversation_of_the_agent_is_not_for_who_is_kept(tree: Tree, ports: Ports) -> None:
    """Peers at the address of a name are remembered for a socket; those of the agent not for who gets it."""
    tree.guard()
    kept = keep(tree)
    tree.session.maps["mg_names"].set(mapped(V4), learned(OURS, ports.both))

    def hand_down() -> list[int]:
        with socket.socket(socket.AF_INET, UDP) as sock:
            sock.sendto(b"x", (V4, ports.both))
            again = in_child(lambda: errno_of(lambda: sock.sendto(b"x", (V4, ports.both))))
            return [again, in_child(lambda: errno_of(lambda: sock.sendto(b"x", (V4, ports.both))), kept.below.enter)]

    assert tree.run(hand_down) == [0, errno.EPERM]
    assert kept.refusals() == [(ports.both, KEEPER)]


def test_listeners_of_its_own_and_of_the_agent(kept: Kept, ports: Ports) -> None:
    """It reaches its own, and so does the agent; those of the agent it does not."""

    def meet(listening: Callable[[], None], calling: Callable[[], None]) -> int:
        ready, told = os.pipe()
        over, end = os.pipe()
        server = os.fork()
        if server == 0:
            os.close(end)
            listening()
            with socket.socket(socket.AF_INET, TCP) as sock:
                sock.listen()
                os.write(told, b"%d" % sock.getsockname()[1])
                os.read(over, 1)
            os._exit(0)
        port = int(os.read(ready, 16))
        found = in_child(lambda: errno_of(lambda: _connect_soon(port)), calling)
        os.close(end)
        os.waitpid(server, 0)
        return found

    agent, below = kept.tree.leaf.enter, kept.below.enter
    assert meet(agent, agent) == 0
    assert meet(below, below) == 0
    assert meet(below, agent) == 0
    before = kept.refusals()
    assert meet(agent, below) == errno.EPERM
    assert [rule for _, rule in kept.refusals()[len(before) :]] == [KEEPER]


def _connect_soon(port: int) -> None:
    with socket.socket(socket.AF_INET, TCP) as sock:
        sock.settimeout(WAIT_S)
        sock.connect((V4, port))


def test_listening_needs_both(tree: Tree) -> None:
    with socket.create_server((V4, 0)) as free, socket.create_server((V4, 0)) as another:
        port, other = free.getsockname()[1], another.getsockname()[1]
    tree.guard(listen=[allow("127.0.0.0", 8, OURS), allow("::1", 128, OURS)])
    kept = keep(tree, listen=[allow(V4, 32, THEIRS, ports=(port, port))])

    def listen(family: int, host: str, at: int) -> str:
        with socket.socket(family, TCP) as sock:
            sock.bind((host, at))
            return str(sock.getsockname()[0])

    assert [tree.run(lambda at=at: errno_of(lambda: listen(socket.AF_INET, V4, at))) for at in (port, other)] == [0, 0]
    assert kept.errno(lambda: listen(socket.AF_INET, V4, port)) == 0
    assert kept.errno(lambda: listen(socket.AF_INET, V4, other)) == errno.EPERM
    assert kept.errno(lambda: listen(socket.AF_INET6, V6, port)) == errno.EPERM
    assert (other, KEEPER) in kept.refusals()
    assert tree.run(lambda: listen(socket.AF_INET, "0.0.0.0", port)) == V4
    assert kept.run(lambda: listen(socket.AF_INET, "0.0.0.0", port)) == V4, "narrowed as for the agent"


def learned(rule: int, port: int) -> bytes:
    return encode.learned([LearnedRule(time.monotonic_ns() + 10**12, rule, port, port, 3)])


def test_a_name_opens_an_address_to_whom_it_opened_it(tree: Tree, ports: Ports) -> None:
    """An address that a name opened for the agent is closed below, one that it opened below is closed there still, and one
    that both have is open; names of the agent that come later change nothing."""
    tree.guard()
    kept = keep(tree)
    ours, theirs = tree.session.maps["mg_names"], tree.session.kept[0].maps["mg_names"]
    port = ports.both

    def reach() -> tuple[int, int]:
        act = lambda: connect(socket.AF_INET, TCP, V4, port)  # noqa: E731
        return tree.run(lambda: errno_of(act)), kept.errno(act)

    assert reach() == (errno.EPERM, errno.EPERM)
    theirs.set(mapped(V4), learned(THEIRS, port))
    assert reach() == (errno.EPERM, errno.EPERM)
    ours.set(mapped(V4), learned(OURS, port))
    assert reach() == (0, 0)
    theirs.delete(mapped(V4))
    assert reach() == (0, errno.EPERM)
    assert kept.refusals()[-1] == (port, KEEPER)


def test_rules_that_the_agent_gets_while_it_runs(kept: Kept, ports: Ports) -> None:
    assert kept.tree.network is not None
    kept.tree.network.update_connect([allow("127.0.0.0", 8, OURS)])
    every = (ports.both, ports.ours, ports.theirs, ports.denied)
    tried = [kept.errno(lambda port=port: connect(socket.AF_INET, TCP, V4, port)) for port in every]
    assert tried == [0, errno.EPERM, 0, errno.EPERM]
    assert kept.refusals() == [(ports.ours, KEEPER), (ports.denied, THEIRS_DENIED)]
    kept.tree.network.update_connect([])
    assert kept.errno(lambda: connect(socket.AF_INET, TCP, V4, ports.both)) == errno.EPERM
    assert kept.refusals()[-1] == (ports.both, 0)


NAMED = {"hosts": [("", [(0, 65535, 3, "allow", 0)]), ("ok.test", [(0, 65535, 3, "allow", THEIRS)])]}


@pytest.mark.parametrize("ours", ["by address", "by another name"])
def test_a_host_must_be_named_that_its_own_rules_allow(tree: Tree, ports: Ports, ours: str) -> None:
    """The agent may go there by address and say what it likes, or by names of its own; what is kept by a name."""
    if ours == "by address":
        tree.guard(connect=rows((ports.both, OURS, allow)))
    else:
        every = [("", [(0, 65535, 3, "allow", 0)])]
        tree.guard(hosts=[*every, *((name, [(0, 65535, 3, "allow", OURS)]) for name in ("ok.test", "evil.test"))])
        tree.session.maps["mg_names"].set(mapped(V4), learned(OURS, ports.both))
    kept = keep(tree, **NAMED)
    tree.session.kept[0].maps["mg_names"].set(mapped(V4), learned(THEIRS, ports.both))

    def refused(name: bytes) -> bool:
        return bool(say(ports.both, [hello.records(hello.named(name))])[1])

    named = (b"ok.test", b"evil.test", b"third.test")
    assert tree.run(lambda: [refused(name) for name in named]) == [False, False, ours != "by address"]
    before = len(tree.net_denials())
    assert kept.run(lambda: [refused(name) for name in named]) == [False, True, True]
    told = [(one.host, one.rule) for one in tree.net_denials()[before:]]
    assert told == [("evil.test", KEEPER), ("third.test", KEEPER if ours == "by address" else 0)]


def test_in_audit_its_own_default_lets_go_and_says_so(tree: Tree, ports: Ports) -> None:
    tree.guard(connect=rows((ports.both, OURS, allow)), audit=True)
    kept = keep(tree, connect=rows((ports.denied, THEIRS_DENIED, deny)))
    assert kept.errno(lambda: connect(socket.AF_INET, TCP, V4, ports.both)) == 0
    assert kept.errno(lambda: connect(socket.AF_INET, TCP, V4, ports.denied)) == errno.EPERM
    told = {(one.port, one.rule, one.verdict) for one in tree.net_denials()}
    assert told >= {(ports.both, KEEPER, Verdict.AUDIT), (ports.denied, THEIRS_DENIED, Verdict.DENY)}


def test_a_question_says_who_is_kept(tree: Tree) -> None:
    with socket.socket(socket.AF_INET, UDP) as resolver:
        resolver.bind((V4, 0))
        port = resolver.getsockname()[1]
        tree.guard(resolver=port)
        kept = keep(tree)

        def ask() -> int:
            with socket.socket(socket.AF_INET, UDP) as sock:
                sock.sendto(b"?", ("192.0.2.1", 53))
                return int(sock.getsockname()[1])

        def slot_of(sender: int) -> int:
            key = encode.question_key(mapped(V4), sender, socket.IPPROTO_UDP)
            found = tree.session.maps["mg_questions"].get(key, _abi.MG_QUESTION.size)
            assert found is not None
            return int(_abi.MG_QUESTION.unpack(found)[3])

        assert slot_of(tree.run(ask)) == 0
        assert slot_of(int(str(kept.run(ask)))) == tree.session.kept[0].slot != tree.session.slot


def test_its_slot_is_free_when_the_session_has_ended(kept: Kept, ports: Ports) -> None:
    tree, slot, below = kept.tree, kept.tree.session.kept[0].slot, kept.below.id.to_bytes(8, "little")
    sessions = tree.engine.map("mg_sessions")
    assert below in sessions.keys(8)
    # By its place programs tell without a call who may be in a session: a leaf without one would not be guarded.
    places, place = tree.engine.map("mg_leaf_places"), (kept.below.id % _abi.MG_PLACES).to_bytes(4, "little")
    assert any(places.get(place, 4) or b"")
    assert tree.engine._free_slot() not in (slot, tree.session.slot)
    tree.leaf.kill()
    tree.leaf.await_empty()
    assert tree.session.remove()
    assert below not in sessions.keys(8)
    assert not any(places.get(place, 4) or b"")
    assert tree.engine.map("mg_connect").get(slot.to_bytes(4, "little"), 4) is None


def test_what_a_killed_run_left_is_swept(kept: Kept) -> None:
    tree, slot, below = kept.tree, kept.tree.session.kept[0].slot, kept.below.id.to_bytes(8, "little")
    tree.leaf.kill()
    tree.leaf.await_empty()
    assert tree.leaf.remove()
    Engine.open().close()
    assert below not in tree.engine.map("mg_sessions").keys(8)
    assert tree.engine.map("mg_connect").get(slot.to_bytes(4, "little"), 4) is None


def test_leaves_below_outlive_a_killed_broker_as_long_as_the_tree(tree: Tree) -> None:
    """Without them their slots would be given to others, while sockets that were made there live on."""
    mount = cgroup.unified_mount()
    left = Path(tree.leaf.path).with_name(f"left-{os.getpid()}")
    below = left / "below"
    below.mkdir(parents=True)
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        (left / "cgroup.procs").write_text(str(sleeper.pid))
        cgroup.remove_stale(str(mount))
        assert below.is_dir()
        assert sleeper.poll() is None
        (left / "cgroup.freeze").write_text("1")  # nobody is left who would wake it
        cgroup.remove_stale(str(mount))
        assert sleeper.wait(WAIT_S) == -signal.SIGKILL
    finally:
        sleeper.kill()
        sleeper.wait()
    deadline = time.monotonic() + WAIT_S
    while left.exists() and time.monotonic() < deadline:
        cgroup.remove_stale(str(mount))
    assert not left.exists()
