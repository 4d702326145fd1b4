"""Bytes by destination, counted by the kernel: for the tree alone, and all of them where destinations are too many."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from bpf_tree import Tree, allow, in_child

from mcpguard.events.flows import Flows
from mcpguard.kernel.bpf import Map, read_entries
from mcpguard.wire import _abi
from mcpguard.wire.records import FlowRecord

pytestmark = pytest.mark.kernel

SENT, RECEIVED = 200_000, 300_000
# Headers, acknowledgements and what a busy machine sends twice come on top.
ROOM = 2
ANYWHERE = (allow("0.0.0.0", 0, 1), allow("::", 0, 2))


@contextlib.contextmanager
def answering(address: str) -> Iterator[int]:
    """Port of a server outside that reads all of a connection, and answers."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        while connection.recv(1 << 16):
                            pass
                        connection.sendall(bytes(RECEIVED))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def exchange(address: str, port: int) -> int:
    with socket.create_connection((address, port), 30) as connection:
        connection.sendall(bytes(SENT))
        connection.shutdown(socket.SHUT_WR)
        got = 0
        while part := connection.recv(1 << 16):
            got += len(part)
        return got


def flows(tree: Tree) -> Flows:
    return Flows(tree.session.fds["mg_flows"])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_what_went_and_came_is_counted_by_destination(tree: Tree, address: str) -> None:
    tree.guard(connect=ANYWHERE)
    seen = flows(tree)
    with answering(address) as port:
        assert in_child(lambda: exchange(address, port)) == RECEIVED
        assert seen.grown() == [], "nobody else's bytes are counted"
        assert not tree.session.exchanged()
        assert tree.run(lambda: exchange(address, port)) == RECEIVED
        assert tree.session.exchanged()
        (one,) = seen.grown()
        assert (one.address, one.port, one.protocol, one.incoming) == (address, port, "tcp", False)
        assert SENT <= one.sent <= SENT * ROOM and RECEIVED <= one.received <= RECEIVED * ROOM
        assert seen.grown() == []
        assert tree.run(lambda: exchange(address, port)) == RECEIVED
        (more,) = seen.grown()
        assert SENT <= more.sent <= SENT * ROOM, "only what is new"


def test_datagrams_are_counted_and_refused_ones_are_not(tree: Tree) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as no,
    ):
        here.bind(("127.0.0.1", 0))
        no.bind(("127.0.0.2", 0))
        port = here.getsockname()[1]
        tree.guard(connect=(allow("127.0.0.1", 32, 1),))

        def send() -> str:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                one.sendto(bytes(1000), ("127.0.0.1", port))
                try:
                    one.sendto(bytes(1000), no.getsockname())
                except PermissionError:
                    return "refused"
                return "sent"

        assert in_child(send) == "sent"
        assert tree.run(send) == "refused"
    assert [(r.op, r.rule) for r in tree.net_denials()] == [("sendmsg", 0)]
    assert [(one.address, one.port, one.protocol, one.sent, one.received) for one in flows(tree).grown()] == [
        ("127.0.0.1", port, "udp", 1028, 0)
    ]


def test_those_who_come_to_us_are_counted_by_our_own_port(tree: Tree) -> None:
    tree.guard(connect=(), listen=(allow("127.0.0.1", 32, 1),))
    ready_read, ready_write = os.pipe()

    def serve() -> int:
        with socket.create_server(("127.0.0.1", 0)) as server:
            os.write(ready_write, server.getsockname()[1].to_bytes(4, "little"))
            got = 0
            for _ in range(3):
                connection, _ = server.accept()
                with connection:
                    while part := connection.recv(1 << 16):
                        got += len(part)
                    connection.sendall(bytes(RECEIVED))
            return got

    ports: list[int] = []

    def visit() -> None:
        ports.append(int.from_bytes(os.read(ready_read, 4), "little"))
        for _ in range(3):
            exchange("127.0.0.1", ports[0])

    visitor = threading.Thread(target=visit)
    visitor.start()
    assert tree.run(serve) == 3 * SENT
    visitor.join()
    (one,) = flows(tree).grown()
    assert (one.address, one.port, one.incoming) == ("127.0.0.1", ports[0], True)
    assert 3 * RECEIVED <= one.sent <= 3 * RECEIVED * ROOM and 3 * SENT <= one.received <= 3 * SENT * ROOM


def test_destinations_beyond_the_room_are_counted_together(tree: Tree) -> None:
    tree.guard(connect=ANYWHERE)
    number = _abi.MG_FLOWS_LIMIT + 500

    def send() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            for at in range(number):
                one.sendto(b"x" * 72, (f"127.1.{at >> 8}.{at & 255}", 9))
        return number

    assert tree.run(send) == number
    found = flows(tree).grown()
    assert len(found) <= _abi.MG_FLOWS_LIMIT
    (rest,) = [one for one in found if not one.address]
    assert sum(one.sent for one in found) == number * 100 and rest.sent >= 500 * 100
    assert rest == FlowRecord(rest.when_ns, "", 0, "", False, rest.sent, 0)


def test_a_count_that_cannot_be_read_stays_for_the_next_time(tree: Tree) -> None:
    tree.guard(connect=ANYWHERE)
    with answering("127.0.0.1") as port:
        tree.run(lambda: exchange("127.0.0.1", port))
    assert Flows(tree.leaf.fd).grown() == []
    fd = tree.session.fds["mg_flows"]
    assert len(read_entries(fd, _abi.MG_FLOW_KEY.size, _abi.MG_FLOW.size, "mg_flows")) == len(
        Map("mg_flows", fd).keys(_abi.MG_FLOW_KEY.size)
    )
    assert len(flows(tree).grown()) == 1
