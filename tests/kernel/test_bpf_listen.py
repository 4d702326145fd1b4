"""Own listeners: where the tree may listen, who may come in, and what it may reach because it listens there itself."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

import pytest
from bpf_tree import Tree, allow, deny, each, errno_of, in_child

from mcpguard.wire.encode import NetRow
from mcpguard.wire.records import NetRecord

pytestmark = pytest.mark.kernel

LOOPBACK = (allow("127.0.0.0", 8, 1), allow("::1", 128, 2))
TCP4, UDP4 = (socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)
TCP6, UDP6 = (socket.AF_INET6, socket.SOCK_STREAM), (socket.AF_INET6, socket.SOCK_DGRAM)


@pytest.fixture
def address() -> str:
    """An address of this host that is not loopback."""
    with socket.socket(*UDP4) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing, chooses a route
        return str(probe.getsockname()[0])


def free_port() -> int:
    with socket.create_server(("", 0)) as probe:
        return int(probe.getsockname()[1])


def bound_to(kind: tuple[int, int], host: str, port: int, *, only6: int | None = None) -> str:
    """Where a socket ends up when it asks for an address."""
    with socket.socket(*kind) as sock:
        if only6 is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only6)
        sock.bind((host, port))
        return str(sock.getsockname()[0])


class Server:
    """A child inside the tree that serves until told to stop."""

    def __init__(self, tree: Tree, serve: Callable[[socket.socket], None], make: Callable[[], socket.socket]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                tree.leaf.enter()
                sock = make()
                os.write(writer, str(sock.getsockname()[1]).encode())
                serve(sock)
            finally:
                os._exit(0)
        os.close(writer)
        said = os.read(reader, 6)
        os.close(reader)
        assert said, "the server could not start"
        self.port = int(said)

    def stop(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


def echo_stream(server: socket.socket) -> None:
    while True:
        sock, _ = server.accept()
        with sock:
            sock.sendall(sock.recv(100))


def echo_datagram(server: socket.socket) -> None:
    while True:
        data, peer = server.recvfrom(100)
        try:
            server.sendto(data, peer)
        except OSError as error:
            print("echo:", error)


def ask_stream(host: str, port: int) -> str:
    with socket.create_connection((host, port), timeout=10) as sock:
        sock.sendall(b"hello")
        return sock.recv(100).decode()


def ask_datagram(host: str, port: int) -> str:
    with socket.socket(*UDP4) as sock:
        sock.settimeout(10)
        sock.sendto(b"hello", (host, port))
        return sock.recvfrom(100)[0].decode()


@pytest.mark.parametrize(
    ("kind", "asked", "got", "only6"),
    [
        (TCP4, "0.0.0.0", "127.0.0.1", None),
        (UDP4, "0.0.0.0", "127.0.0.1", None),
        (TCP6, "::", "::ffff:127.0.0.1", 0),
        (UDP6, "::", "::ffff:127.0.0.1", 0),
        (TCP6, "::", "::1", 1),
        (UDP6, "::", "::1", 1),
    ],
)
def test_a_wildcard_bind_is_narrowed_to_what_is_allowed(
    kind: tuple[int, int], asked: str, got: str, only6: int | None, tree: Tree
) -> None:
    port = free_port()
    tree.guard(listen=LOOPBACK)
    assert in_child(lambda: bound_to(kind, asked, port, only6=only6)) == asked
    assert tree.run(lambda: bound_to(kind, asked, port, only6=only6)) == got
    (record,) = [r for r in tree.activity() if isinstance(r, NetRecord)]
    assert (record.op, record.detail, record.port) == ("bind", "narrowed", port)


def test_a_narrowed_dual_stack_server_is_reached_on_the_ipv4_loopback(tree: Tree) -> None:
    tree.guard(listen=LOOPBACK)
    port = free_port()
    make = lambda: socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)  # noqa: E731
    server = Server(tree, echo_stream, make)
    try:
        assert in_child(lambda: ask_stream("127.0.0.1", port)) == "hello"
    finally:
        server.stop()


@pytest.mark.parametrize(("kind", "host"), [(TCP4, "127.0.0.1"), (UDP4, "127.0.0.1"), (TCP6, "::1"), (UDP6, "::1")])
@pytest.mark.parametrize("rows", [(), (deny("127.0.0.0", 8, 3), deny("::1", 128, 3))])
def test_a_bind_without_a_rule_is_refused(
    kind: tuple[int, int], host: str, rows: tuple[NetRow, ...], tree: Tree
) -> None:
    port = free_port()
    tree.guard(listen=rows)
    assert in_child(lambda: errno_of(lambda: bound_to(kind, host, port))) == 0
    assert tree.run(lambda: errno_of(lambda: bound_to(kind, host, port))) == errno.EPERM
    (record,) = tree.net_denials()
    assert (record.op, record.address, record.port, record.rule) == ("bind", host, port, 3 if rows else 0)


def test_a_wildcard_bind_without_any_rule_is_refused(tree: Tree) -> None:
    port = free_port()
    tree.guard()
    for kind, anywhere in ((TCP4, "0.0.0.0"), (TCP6, "::")):
        act = lambda kind=kind, anywhere=anywhere: bound_to(kind, anywhere, port)  # noqa: E731
        assert dict(each(tree, act)) == {"outside": 0, "inside": errno.EPERM}
    assert [(r.op, r.port, r.rule) for r in tree.net_denials()] == [("bind", port, 0)] * 2


def test_a_client_may_bind_any_address_without_a_port(tree: Tree, address: str) -> None:
    """What many programs do before they connect must not change where their packets come from."""
    tree.guard(connect=(allow(address, 32, 4),))
    with socket.create_server((address, 0)) as server:
        port = server.getsockname()[1]

        def act() -> str:
            with socket.socket(*TCP4) as sock:
                sock.bind(("0.0.0.0", 0))
                sock.connect((address, port))
                return str(sock.getsockname()[0])

        assert tree.run(act) == address
    assert tree.net_denials() == []


def test_an_ephemeral_port_on_an_allowed_address_is_allowed(tree: Tree) -> None:
    tree.guard(listen=(allow("127.0.0.1", 32, 1, ports=(3000, 3999)),))
    assert tree.run(lambda: bound_to(TCP4, "127.0.0.1", 0)) == "127.0.0.1"
    port = free_port()  # of those that the kernel gives out, which begin far above
    assert dict(each(tree, lambda: bound_to(TCP4, "127.0.0.1", port))) == {"outside": 0, "inside": errno.EPERM}
    assert [(r.op, r.port, r.rule) for r in tree.net_denials()] == [("bind", port, 0)]


@pytest.mark.parametrize("bind_first", [False, True])
def test_listening_without_an_address_lets_nobody_in(tree: Tree, address: str, bind_first: bool) -> None:
    """listen() on an unbound socket takes a port on every address without asking any hook."""
    tree.guard(listen=LOOPBACK)

    def make() -> socket.socket:
        sock = socket.socket(*TCP4)
        if bind_first:
            sock.bind(("0.0.0.0", 0))
        sock.listen()
        return sock

    server = Server(tree, echo_stream, make)
    try:
        with socket.socket(*TCP4) as outside:
            outside.setblocking(False)
            outside.connect_ex((address, server.port))
            record = tree.await_denial(lambda r: isinstance(r, NetRecord) and r.op == "accept")
            assert isinstance(record, NetRecord)
            assert (record.address, record.port) == (address, server.port)
            assert record.head.pid == server.pid
        assert in_child(lambda: ask_stream("127.0.0.1", server.port)) == "hello", "loopback is allowed"
    finally:
        server.stop()


def test_a_server_answers_whoever_a_listen_rule_lets_in(tree: Tree, address: str) -> None:
    tree.guard(listen=(allow("0.0.0.0", 0, 1),))
    stream = Server(tree, echo_stream, lambda: socket.create_server(("0.0.0.0", free_port())))
    try:
        assert in_child(lambda: ask_stream(address, stream.port)) == "hello"
    finally:
        stream.stop()
    assert tree.net_denials() == []


def make_datagram(host: str) -> socket.socket:
    sock = socket.socket(*UDP4)
    sock.bind((host, free_port()))
    return sock


def test_a_datagram_server_answers_who_asked_and_nobody_else(tree: Tree, address: str) -> None:
    tree.guard(listen=(allow("0.0.0.0", 0, 1),))
    server = Server(tree, echo_datagram, lambda: make_datagram("0.0.0.0"))
    try:
        assert in_child(lambda: ask_datagram(address, server.port)) == "hello"
    finally:
        server.stop()
    assert tree.net_denials() == []

    def unasked() -> None:
        with make_datagram("0.0.0.0") as sock:
            sock.sendto(b"x", (address, 9))

    assert dict(each(tree, unasked)) == {"outside": 0, "inside": errno.EPERM}
    assert [(r.op, r.address, r.port, r.rule) for r in tree.net_denials()] == [("sendmsg", address, 9, 0)]


@pytest.mark.parametrize("kind", ["stream", "datagram"])
def test_the_tree_reaches_its_own_listeners(kind: str, tree: Tree) -> None:
    tree.guard(listen=LOOPBACK)
    if kind == "stream":
        server = Server(tree, echo_stream, lambda: socket.create_server(("127.0.0.1", 0)))
        ask = ask_stream
    else:
        server = Server(tree, echo_datagram, lambda: make_datagram("127.0.0.1"))
        ask = ask_datagram
    try:
        assert tree.run(lambda: ask("127.0.0.1", server.port)) == "hello"
    finally:
        server.stop()
    assert tree.net_denials() == []
    details = {(r.op, r.detail) for r in tree.activity() if isinstance(r, NetRecord)}
    assert ("connect" if kind == "stream" else "sendmsg", "own") in details


def test_the_tree_reaches_its_own_ipv6_listener(tree: Tree) -> None:
    tree.guard(listen=LOOPBACK)
    server = Server(tree, echo_stream, lambda: socket.create_server(("::1", 0), family=socket.AF_INET6))
    try:
        assert tree.run(lambda: ask_stream("::1", server.port)) == "hello"
    finally:
        server.stop()


def test_a_deny_rule_also_covers_own_listeners(tree: Tree) -> None:
    port = free_port()
    tree.guard(listen=LOOPBACK, connect=(deny("127.0.0.1", 32, 5, ports=(port, port)),))
    server = Server(tree, echo_stream, lambda: socket.create_server(("127.0.0.1", port)))
    try:
        act = lambda: ask_stream("127.0.0.1", port)  # noqa: E731
        assert dict(each(tree, act)) == {"outside": 0, "inside": errno.EPERM}
    finally:
        server.stop()
    assert [(r.op, r.port, r.rule) for r in tree.net_denials()] == [("connect", port, 5)]


def test_an_own_wildcard_listener_opens_no_other_host(tree: Tree, address: str) -> None:
    """A listener on every address must not make the same port of any other address one of ours."""
    port = free_port()
    tree.guard(listen=(allow("0.0.0.0", 0, 1),))
    server = Server(tree, echo_stream, lambda: socket.create_server(("0.0.0.0", port)))
    try:
        assert tree.run(lambda: errno_of(lambda: ask_stream("198.51.100.1", port))) == errno.EPERM
        assert tree.run(lambda: ask_stream("127.0.0.1", port)) == "hello"
    finally:
        server.stop()
    assert [(r.address, r.port, r.rule) for r in tree.net_denials()] == [("198.51.100.1", port, 0)]


def test_a_foreign_listener_on_a_port_that_we_used_is_foreign(tree: Tree) -> None:
    port = free_port()
    tree.guard(listen=LOOPBACK)
    server = Server(tree, echo_stream, lambda: socket.create_server(("127.0.0.1", port)))
    assert tree.run(lambda: ask_stream("127.0.0.1", port)) == "hello"
    server.stop()
    with socket.create_server(("127.0.0.1", port)):
        act = lambda: socket.create_connection(("127.0.0.1", port)).close()  # noqa: E731
        assert dict(each(tree, act)) == {"outside": 0, "inside": errno.EPERM}
    assert [(r.op, r.port, r.rule) for r in tree.net_denials()] == [("connect", port, 0)]
