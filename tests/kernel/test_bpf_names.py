"""Questions for names go to the session's resolver, whomever a program asks; what it has learned is open, for its time."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from bpf_tree import Tree, allow, deny, errno_of, in_child

from mcpguard.backends.engine import Engine
from mcpguard.kernel import bpf, cgroup
from mcpguard.kernel.bpf import Map
from mcpguard.kernel.cgroup import Leaf
from mcpguard.model.access import Verdict
from mcpguard.policy.network import mapped
from mcpguard.session.resolver import _bind
from mcpguard.wire import _abi, encode
from mcpguard.wire.encode import LearnedRule
from mcpguard.wire.records import NetRecord

pytestmark = pytest.mark.kernel

V4, V6, MAPPED = "192.0.2.53", "2001:db8::53", "::ffff:192.0.2.53"
HOME = "127.0.0.1"
UDP, TCP = socket.SOCK_DGRAM, socket.SOCK_STREAM
HOUR_NS = 3600 * 10**9


@dataclass
class Answerer:
    """Stands for the resolver: answers whatever comes with the same bytes, and remembers who sent it."""

    sockets: list[socket.socket]
    port: int
    came: list[tuple[bytes, int]] = field(default_factory=list)

    def serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                if sock.type == UDP:
                    data, sender = sock.recvfrom(512)
                    if sender is None:
                        return
                    self.came.append((data, sender[1]))
                    sock.sendto(data, sender)
                else:
                    stream, sender = sock.accept()
                    with stream:
                        self.came.append((data := stream.recv(512), sender[1]))
                        stream.sendall(data)


@pytest.fixture
def answerer() -> Iterator[Answerer]:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(sock) for sock in _bind()]
        answers = Answerer(made, made[0].getsockname()[1])
        for sock in made:
            threading.Thread(target=answers.serve, args=(sock,), daemon=True).start()
        yield answers
        for sock in made:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def ask_connected(family: int, kind: int, host: str, token: bytes) -> list[object]:
    with socket.socket(family, kind) as sock:
        sock.settimeout(5)
        sock.connect((host, 53))
        sock.sendall(token)
        answer, sender = sock.recvfrom(512)
        shown = sender or sock.getpeername()  # a stream says no sender
        return [answer.decode(), *shown[:2], *sock.getpeername()[:2], sock.getsockname()[1], os.getpid()]


def ask_once(family: int, kind: int, host: str, token: bytes) -> list[object]:
    with socket.socket(family, kind) as sock:
        sock.settimeout(5)
        sock.sendto(token, (host, 53))
        answer, sender = sock.recvfrom(512)
        return [answer.decode(), *sender[:2], *sender[:2], sock.getsockname()[1], os.getpid()]


WAYS: dict[str, tuple[Callable[..., list[object]], int, int, str]] = {
    "udp4": (ask_once, socket.AF_INET, UDP, V4),
    "udp4-connected": (ask_connected, socket.AF_INET, UDP, V4),
    "tcp4": (ask_connected, socket.AF_INET, TCP, V4),
    "udp6": (ask_once, socket.AF_INET6, UDP, V6),
    "udp6-connected": (ask_connected, socket.AF_INET6, UDP, V6),
    "tcp6": (ask_connected, socket.AF_INET6, TCP, V6),
    "udp-mapped": (ask_once, socket.AF_INET6, UDP, MAPPED),
    "udp-mapped-connected": (ask_connected, socket.AF_INET6, UDP, MAPPED),
    "tcp-mapped": (ask_connected, socket.AF_INET6, TCP, MAPPED),
    "udp4-stub": (ask_once, socket.AF_INET, UDP, "127.0.0.53"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_question_reaches_the_resolver_and_its_answer_looks_as_asked(
    tree: Tree, answerer: Answerer, way: str
) -> None:
    act, family, kind, host = WAYS[way]
    tree.guard(resolver=answerer.port)
    answer, sender, sender_port, peer, peer_port, port, pid = tree.run(lambda: act(family, kind, host, b"inside"))
    assert answer == "inside"
    assert (sender, sender_port, peer, peer_port) == (host, 53, host, 53)
    assert (b"inside", port) in answerer.came
    source = mapped("::1" if host == V6 else HOME)
    key = encode.question_key(source, int(str(port)), socket.IPPROTO_UDP if kind == UDP else socket.IPPROTO_TCP)
    found = tree.session.maps["mg_questions"].get(key, _abi.MG_QUESTION.size)
    assert found is not None
    who, _tid, _ppid, _kept, _comm, server = _abi.MG_QUESTION.unpack(found)
    assert (who, server) == (pid, mapped(host))
    # The same act outside goes where it says, and nobody is there.
    in_child(lambda: errno_of(lambda: _send_only(family, kind, host)))
    assert all(data != b"outside" for data, _ in answerer.came)


def _send_only(family: int, kind: int, host: str) -> None:
    with socket.socket(family, kind) as sock:
        sock.setblocking(False)
        sock.connect((host, 53))
        sock.send(b"outside")


@pytest.mark.parametrize("way", WAYS)
def test_without_a_resolver_a_question_is_judged_as_anything_else(tree: Tree, way: str) -> None:
    act, family, kind, host = WAYS[way]
    tree.guard()
    # Outside it goes where it says, and nobody answers.
    assert in_child(lambda: errno_of(lambda: _send_only(family, kind, host))) != errno.EPERM
    assert tree.run(lambda: errno_of(lambda: act(family, kind, host, b"x"))) == errno.EPERM
    tree.await_denial(lambda record: isinstance(record, NetRecord) and record.port == 53)


def test_the_resolver_itself_is_no_way_out_for_other_traffic(tree: Tree, answerer: Answerer) -> None:
    """Only a question gets there: a program that connects to its port is judged by the rules."""
    tree.guard(resolver=answerer.port)

    def straight() -> None:
        with socket.create_connection((HOME, answerer.port), timeout=5):
            pass

    assert in_child(lambda: errno_of(straight)) == 0
    assert tree.run(lambda: errno_of(straight)) == errno.EPERM
    assert [(r.op, r.port, r.rule) for r in tree.net_denials()] == [("connect", answerer.port, 0)]


def test_a_socket_that_goes_elsewhere_after_a_question_shows_where_it_is(
    tree: Tree, answerer: Answerer, served: int
) -> None:
    tree.guard(resolver=answerer.port, connect=(allow(HOME, 32, 5, ports=(served, served)),))

    def act() -> list[object]:
        with socket.socket(socket.AF_INET, UDP) as sock:
            sock.connect((V4, 53))
            sock.connect((HOME, served))
            return list(sock.getpeername())

    assert tree.run(act) == [HOME, served]


# --- two sessions -----------------------------------------------------------------------------------------------


@pytest.fixture
def neighbour(other_leaf: Leaf) -> Iterator[Tree]:
    """A second session, which may reach all of loopback."""
    planted = Tree.plant(other_leaf)
    yield planted
    planted.close()


LOOPBACK = (allow("127.0.0.0", 8, 1), allow("::1", 128, 2))
DOORS = {
    "udp4": (socket.AF_INET, UDP, HOME),
    "tcp4": (socket.AF_INET, TCP, HOME),
    "udp4-any": (socket.AF_INET, UDP, "0.0.0.0"),
    "tcp4-any": (socket.AF_INET, TCP, "0.0.0.0"),
    "udp6": (socket.AF_INET6, UDP, "::1"),
    "tcp6": (socket.AF_INET6, TCP, "::1"),
    "udp6-any": (socket.AF_INET6, UDP, "::"),
    "udp-mapped": (socket.AF_INET6, UDP, f"::ffff:{HOME}"),
    "tcp-mapped": (socket.AF_INET6, TCP, f"::ffff:{HOME}"),
}


def _speak(family: int, kind: int, host: str, port: int, *, connected: bool) -> None:
    with socket.socket(family, kind) as sock:
        sock.settimeout(5)
        if connected:
            sock.connect((host, port))
            sock.sendall(b"stolen")
        else:
            sock.sendto(b"stolen", (host, port))
        assert sock.recv(16) == b"stolen"


@pytest.mark.parametrize("audit", [False, True])
@pytest.mark.parametrize("door", DOORS)
def test_nobody_speaks_to_the_resolver_of_another_session(
    tree: Tree, neighbour: Tree, answerer: Answerer, door: str, audit: bool
) -> None:
    family, kind, host = DOORS[door]
    neighbour.guard(connect=LOOPBACK, audit=audit)

    def each() -> list[int]:
        ways = [True] if kind == TCP else [True, False]
        return [errno_of(lambda way=way: _speak(family, kind, host, answerer.port, connected=way)) for way in ways]

    assert not any(neighbour.run(each))  # nobody's resolver is there yet
    tree.guard(resolver=answerer.port, connect=LOOPBACK)
    before = len(answerer.came)
    assert set(neighbour.run(each)) == {errno.EPERM}
    assert len(answerer.came) == before
    refused = neighbour.await_denial(lambda one: isinstance(one, NetRecord) and one.port == answerer.port)
    assert isinstance(refused, NetRecord)
    assert (refused.verdict, refused.detail) == (Verdict.DENY, "it answers names of another session")
    # Its own session may, where a rule allows loopback: it is answered as always.
    assert not any(tree.run(each))


def test_a_socket_that_was_connected_before_the_resolver_began_is_cut_off(
    tree: Tree, neighbour: Tree, answerer: Answerer
) -> None:
    neighbour.guard(connect=LOOPBACK)

    def act() -> list[int]:
        with socket.socket(socket.AF_INET, UDP) as sock:
            sock.settimeout(5)
            sock.connect((HOME, answerer.port))
            sock.send(b"early")
            assert sock.recv(16) == b"early"
            tree.guard(resolver=answerer.port)
            return [errno_of(lambda: sock.send(b"late"))]

    assert neighbour.run(act) == [errno.EPERM]
    refused = neighbour.await_denial(lambda one: isinstance(one, NetRecord) and one.port == answerer.port)
    assert isinstance(refused, NetRecord) and refused.verdict is Verdict.DENY
    assert all(data != b"late" for data, _ in answerer.came)


@pytest.fixture
def soon_gone() -> Iterator[Leaf]:
    """A leaf that the test itself may remove."""
    mount = cgroup.unified_mount()
    assert mount is not None
    made = cgroup.make_leaf(mount, f"test-names-{os.getpid()}")
    yield made
    os.close(made.fd)
    made.remove()


@pytest.mark.parametrize("killed", [False, True])
def test_a_port_is_free_when_the_next_session_begins_and_the_leaf_is_gone(
    neighbour: Tree, soon_gone: Leaf, answerer: Answerer, killed: bool
) -> None:
    """Not earlier: a resolver ends a moment later than its tree."""
    ports, key = neighbour.engine.map("mg_resolvers"), answerer.port.to_bytes(4, sys.byteorder)
    neighbour.guard(connect=LOOPBACK)
    tree = Tree.plant(soon_gone).guard(resolver=answerer.port)
    if killed:
        tree.let_go()
    else:
        tree.close()
    Engine.open().close()
    assert ports.get(key, 8) is not None
    assert soon_gone.remove()
    assert neighbour.run(lambda: errno_of(lambda: _speak(*DOORS["udp4"], answerer.port, connected=True))) == errno.EPERM
    assert [r.detail for r in neighbour.net_denials()] == ["it answers names of another session"]
    Engine.open().close()
    assert ports.get(key, 8) is None
    assert neighbour.run(lambda: errno_of(lambda: _speak(*DOORS["udp4"], answerer.port, connected=True))) == 0


def test_two_sessions_may_have_the_same_port_in_namespaces_of_their_own(
    tree: Tree, soon_gone: Leaf, answerer: Answerer
) -> None:
    ports, key = tree.engine.map("mg_resolvers"), answerer.port.to_bytes(4, sys.byteorder)
    tree.guard(resolver=answerer.port)
    other = Tree.plant(soon_gone).guard(resolver=answerer.port)
    other.close()
    assert soon_gone.remove()
    Engine.open().close()
    assert ports.get(key, 8) is not None  # the first one's


def test_sessions_of_another_build_or_tier_have_no_use_of_it_either(
    tree: Tree, other_leaf: Leaf, answerer: Answerer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They have engines of their own, and one table of resolvers in common."""
    tree.guard(resolver=answerer.port)
    shutil.copytree(bpf.OBJECTS, tmp_path / "objects")
    (tmp_path / "objects/more.bpf.o").write_bytes(os.urandom(16))
    with monkeypatch.context() as patched:
        patched.setattr(bpf, "OBJECTS", tmp_path / "objects")
        newer = Tree.plant(other_leaf)
    try:
        newer.guard(connect=LOOPBACK)
        assert newer.engine.map("mg_sessions").get(tree.leaf.id.to_bytes(8, sys.byteorder), 24) is None
        assert newer.run(lambda: errno_of(lambda: _speak(*DOORS["udp4"], answerer.port, connected=True))) == errno.EPERM
        assert [r.detail for r in newer.net_denials()] == ["it answers names of another session"]
        newer.session.set_state(newer.flags, resolver=1)
        assert tree.engine.map("mg_resolvers").get((1).to_bytes(4, sys.byteorder), 8) is not None
    finally:
        newer.close()


# --- what was learned --------------------------------------------------------------------------------------------


@pytest.fixture
def served() -> Iterator[int]:
    """A port where streams and datagrams are answered with `ok`, outside of the tree."""
    with socket.create_server((HOME, 0)) as server, socket.socket(socket.AF_INET, UDP) as datagrams:
        port = int(server.getsockname()[1])
        datagrams.bind((HOME, port))

        def streams() -> None:
            with contextlib.suppress(OSError):
                while True:
                    stream, _ = server.accept()
                    threading.Thread(target=echo, args=(stream,), daemon=True).start()

        def echo(stream: socket.socket) -> None:
            with stream, contextlib.suppress(OSError):
                while data := stream.recv(512):
                    stream.sendall(data)

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    data, sender = datagrams.recvfrom(512)
                    datagrams.sendto(data, sender)

        for work in (streams, answer):
            threading.Thread(target=work, daemon=True).start()
        yield port


def learn(tree: Tree, port: int, lasts_ns: int = HOUR_NS, rule: int = 7, protocols: int = 3) -> None:
    value = encode.learned([LearnedRule(time.monotonic_ns() + lasts_ns, rule, port, port, protocols)])
    tree.session.maps["mg_names"].set(mapped(HOME), value)


def reach(port: int, kind: int = TCP) -> None:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.settimeout(5)
        if kind == TCP:
            sock.connect((HOME, port))
            sock.sendall(b"ok")
        else:
            sock.sendto(b"ok", (HOME, port))
        assert sock.recv(16) == b"ok"


@pytest.mark.parametrize("kind", [TCP, UDP])
def test_a_learned_address_is_open_on_its_ports(tree: Tree, served: int, kind: int) -> None:
    tree.guard()
    assert tree.run(lambda: errno_of(lambda: reach(served, kind))) == errno.EPERM
    learn(tree, served)
    assert tree.run(lambda: errno_of(lambda: reach(served, kind))) == 0
    record = next(r for r in tree.activity() if isinstance(r, NetRecord))
    assert (record.rule, record.port) == (7, served)
    learn(tree, served + 1)
    assert tree.run(lambda: errno_of(lambda: reach(served, kind))) == errno.EPERM


def test_a_learned_address_is_open_for_its_protocols_only(tree: Tree, served: int) -> None:
    tree.guard()
    learn(tree, served, protocols=1)
    assert tree.run(lambda: errno_of(lambda: reach(served, TCP))) == 0
    assert tree.run(lambda: errno_of(lambda: reach(served, UDP))) == errno.EPERM
    assert [(r.protocol, r.port, r.rule) for r in tree.net_denials()] == [("udp", served, 0)]


def test_a_rule_that_denies_the_address_wins(tree: Tree, served: int) -> None:
    tree.guard(connect=(deny(HOME, 32, 9),))
    learn(tree, served)
    assert tree.run(lambda: errno_of(lambda: reach(served))) == errno.EPERM
    refused = tree.await_denial(lambda record: isinstance(record, NetRecord) and record.port == served)
    assert isinstance(refused, NetRecord)
    assert refused.rule == 9


def test_what_is_too_old_opens_nothing_and_says_so(tree: Tree, served: int) -> None:
    tree.guard()
    learn(tree, served, lasts_ns=-1)
    assert tree.run(lambda: errno_of(lambda: reach(served))) == errno.EPERM
    refused = tree.await_denial(lambda record: isinstance(record, NetRecord) and record.port == served)
    assert isinstance(refused, NetRecord)
    assert refused.detail == "looked up too long ago"


@pytest.mark.parametrize("host", [HOME, f"::ffff:{HOME}"])
@pytest.mark.parametrize(("kind", "connected"), [(TCP, True), (UDP, True), (UDP, False)])
def test_what_began_in_time_goes_on(tree: Tree, served: int, kind: int, connected: bool, host: str) -> None:
    tree.guard()
    learn(tree, served)

    def act() -> list[int]:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as sock:
            sock.settimeout(5)

            def say() -> None:
                if connected:
                    sock.sendall(b"more")
                else:
                    sock.sendto(b"more", (host, served))
                assert sock.recv(16) == b"more"

            if connected:
                sock.connect((host, served))
            say()
            learn(tree, served, lasts_ns=-1)
            return [errno_of(say), errno_of(lambda: reach(served, kind))]

    assert tree.run(act) == [0, errno.EPERM]
    refused = tree.await_denial(lambda one: isinstance(one, NetRecord) and one.port == served)
    assert isinstance(refused, NetRecord) and refused.detail == "looked up too long ago"


def test_a_datagram_socket_that_chooses_the_way_to_a_learned_address_may(tree: Tree, served: int) -> None:
    """Resolvers connect one to port 0 of each address, to sort them."""
    tree.guard()
    learn(tree, served)

    def act() -> None:
        with socket.socket(socket.AF_INET, UDP) as sock:
            sock.connect((HOME, 0))

    assert tree.run(lambda: errno_of(act)) == 0


def test_an_ordinary_user_writes_what_was_learned_by_the_descriptor_alone(tree: Tree) -> None:
    names = tree.session.maps["mg_names"]
    value = encode.learned([LearnedRule(1, 2, 3, 4, 1)])

    def act() -> list[str]:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        mine = Map("mg_names", names.fd)
        mine.set(mapped(V4), value)
        seen = [(mine.get(mapped(V4), len(value)) or b"").hex(), str(len(mine.keys(16)))]
        mine.delete(mapped(V4))
        return [*seen, str(len(mine.keys(16)))]

    assert in_child(act) == [value.hex(), "1", "0"]
    assert struct.calcsize("=QIHHB7x") == _abi.MG_LEARNED_RULE.size
