"""Addresses that a socket only says it has: none of them makes a destination the tree's own, or somebody who may be answered.

The kernel lets everybody bind an address that the host does not have (IP_FREEBIND), and send from it (IP_PKTINFO).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Callable, Iterator

import netlab
import pytest
from bpf_tree import Tree, allow, errno_of, in_child

from mcpguard.kernel.cgroup import Leaf
from mcpguard.wire.records import NetRecord

pytestmark = pytest.mark.kernel

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
IP_PKTINFO, IP_FREEBIND, IPV6_FREEBIND = 8, 15, 78
CLONE_NEWNET = 0x40000000
PORT = 4433
LOCALHOST = (allow("127.0.0.0", 8, 1), allow("::1", 128, 2))
EVERYWHERE = (allow("0.0.0.0", 0, 1), allow("::", 0, 2))


@pytest.fixture
def tree(leaf: Leaf) -> Iterator[Tree]:
    planted = Tree.plant(leaf)
    yield planted
    planted.close()


@pytest.fixture(scope="module")
def lab() -> Iterator[netlab.Lab]:
    with netlab.lab() as made:
        yield made


def moved(name: str, work: Callable[[], list[int]]) -> Callable[[], list[int]]:
    """The same work, in a network namespace."""

    def act() -> list[int]:
        with open(f"/run/netns/{name}", "rb") as namespace:
            assert ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET) == 0
        return work()

    return act


def sent(sock: socket.socket, data: bytes, to: tuple[str, int], source: str) -> int:
    """The errno of sending a datagram that says it comes from `source`."""
    if ":" in source:
        said = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, socket.inet_pton(socket.AF_INET6, source) + bytes(4))
    else:
        said = (socket.IPPROTO_IP, IP_PKTINFO, struct.pack("i4s4s", 0, socket.inet_aton(source), bytes(4)))
    return errno_of(lambda: sock.sendmsg([data], [said], 0, to))


def to_what_is_bound_here(far: str, family: int, kind: int, patience_s: int) -> list[int]:
    """A socket of ours says that it is the far host; another one connects to that, and speaks."""
    with socket.socket(family, kind) as liar, socket.socket(family, kind) as sock:
        option = (socket.IPPROTO_IPV6, IPV6_FREEBIND) if family == socket.AF_INET6 else (socket.IPPROTO_IP, IP_FREEBIND)
        liar.setsockopt(*option, 1)
        liar.bind((far, PORT))
        if kind == TCP:
            liar.listen()
        sock.settimeout(patience_s)
        return [errno_of(lambda: sock.connect((far, PORT))) or errno_of(lambda: sock.send(b"secret"))]


@pytest.mark.parametrize("kind", [TCP, UDP])
@pytest.mark.parametrize("far", [netlab.FAR, netlab.FAR6])
def test_a_foreign_address_is_not_the_trees_own_because_it_is_bound(
    far: str, kind: int, tree: Tree, lab: netlab.Lab
) -> None:
    family = socket.AF_INET6 if ":" in far else socket.AF_INET
    tree.guard(listen=EVERYWHERE)

    def act(patience_s: int) -> list[int]:
        return moved(lab.near, lambda: to_what_is_bound_here(far, family, kind, patience_s))()

    word = f"{'tcp' if kind == TCP else 'udp'} {PORT}"
    with netlab.listening(netlab.everywhere([PORT]), lab.enter(lab.far)) as listener:
        inside = tree.run(lambda: act(1))
    assert inside != [0]
    assert not listener.has(word, "secret")
    tree.await_denial(lambda record: isinstance(record, NetRecord) and (record.op, record.address) == ("packet", far))
    with netlab.listening(netlab.everywhere([PORT]), lab.enter(lab.far)) as listener:
        assert in_child(lambda: act(60)) == [0]
    assert listener.has(word, "secret")


def to_who_seemed_to_ask(bound: bool) -> list[int]:
    """A server of ours gets a datagram of our own that says it comes from the far host, and answers."""
    with socket.socket(socket.AF_INET6, UDP) as server, socket.socket(socket.AF_INET6, UDP) as liar:
        server.bind(("::1", 0))
        server.settimeout(1)
        if bound:
            liar.bind(("::1", 0))
        liar.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        lie = sent(liar, b"lie", server.getsockname()[:2], netlab.FAR6)
        with contextlib.suppress(TimeoutError):
            assert server.recvfrom(16)[1][:2] == (netlab.FAR6, liar.getsockname()[1])
        return [lie, sent(server, b"secret", (netlab.FAR6, liar.getsockname()[1]), netlab.NEAR6)]


@pytest.mark.parametrize("bound", [True, False])
def test_a_server_answers_nobody_who_only_seemed_to_ask(bound: bool, tree: Tree, lab: netlab.Lab) -> None:
    tree.guard(listen=LOCALHOST)
    act = moved(lab.near, lambda: to_who_seemed_to_ask(bound))
    assert tree.run(act) == [errno.EPERM if bound else 0, errno.EPERM]
    refused = tree.await_denial(lambda record: isinstance(record, NetRecord) and record.address == netlab.FAR6)
    assert isinstance(refused, NetRecord)
    assert refused.op == "sendmsg"
    assert in_child(act) == [0, 0]


def test_nobody_sends_in_the_name_of_another_service_of_this_host(tree: Tree) -> None:
    """A server of the tree would come to speak to it, and a program of the tree take the tree's word for its."""
    tree.guard(listen=LOCALHOST)
    with socket.socket(socket.AF_INET, UDP) as service:
        service.bind(("127.0.0.1", 0))
        service.settimeout(20)
        port = service.getsockname()[1]

        def act() -> list[int]:
            with socket.socket(socket.AF_INET, UDP) as server, socket.socket(socket.AF_INET, UDP) as liar:
                server.bind(("127.0.0.1", 0))
                server.settimeout(1)
                liar.bind(("127.0.0.2", port))
                honest = sent(liar, b"honest", server.getsockname(), "127.0.0.2")
                assert server.recvfrom(16) == (b"honest", ("127.0.0.2", port))
                lie = sent(liar, b"lie", server.getsockname(), "127.0.0.1")
                with contextlib.suppress(TimeoutError):
                    server.recvfrom(16)
                asked = errno_of(lambda: server.sendto(b"x", ("127.0.0.2", port)))
                seemed_to = errno_of(lambda: server.sendto(b"x", ("127.0.0.1", port)))
                return [honest, lie, asked, seemed_to]

        assert tree.run(act) == [0, errno.EPERM, 0, errno.EPERM]
        refused = {(r.op, r.address, r.port) for r in tree.net_denials()}
        assert ("sendmsg", "127.0.0.1", port) in refused, refused
        assert in_child(act) == [0, 0, 0, 0]
        assert service.recv(16) == b"x"
