"""What a tree receives over loopback from outside: told once, all of it, however it is received; and nothing that was sent
within it, or is no MCP, or that others receive."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from bpf_tree import Tree, allow, engine_on_calls, in_child
from test_bpf_messages import FROM_SOCKETS, MIB, messages

from mcpguard.kernel.cgroup import Leaf
from mcpguard.wire.records import MessageRecord

pytestmark = pytest.mark.kernel

ANYWHERE = (allow("0.0.0.0", 0, 1), allow("::", 0, 2))
ASKED = b"POST /mcp HTTP/1.1\r\nHost: x\r\nAccept: application/json, text/event-stream\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"
ANSWER = HEAD + b'{"jsonrpc":"2.0","id":1,"result":{}}'
MODEL = b'POST /v1/messages HTTP/1.1\r\ncontent-type: application/json\r\n\r\n{"stream":true}'
CHUNK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {}\n\n"
MSG_ERRQUEUE = 0x2000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
LINGER_NOT = struct.pack("ii", 1, 0)

_libc = ctypes.CDLL(None, use_errno=True)
Served = Callable[[socket.socket], object]


@pytest.fixture
def tree(leaf: Leaf) -> Iterator[Tree]:
    planted = Tree.plant(leaf, engine_on_calls()).guard(connect=ANYWHERE, listen=ANYWHERE).trace()
    yield planted
    planted.close()


@contextlib.contextmanager
def outside(serve: Served, family: int = socket.AF_INET, port: int = 0) -> Iterator[int]:
    """A server in no session that takes one connection; its port."""
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.create_server((host, port), family=socket.AddressFamily(family)) as listener:

        def take() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as line:
                serve(line)

        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def answer_once(port: int) -> int:
    """A server in a session that answers one question of MCP; the inode number of its end.

    Args:
        port: descriptor that is told the server's port.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.write(port, str(listener.getsockname()[1]).encode())
        line, _ = listener.accept()
        hear(line, len(ASKED))
        line.sendall(ANSWER)
        line.recv(1)
        return os.fstat(line.fileno()).st_ino


def once(*parts: bytes, asked: int = len(ASKED)) -> Served:
    """Hears so many bytes, and says these before each of which it hears one more byte; waits until the other has read all."""

    def serve(line: socket.socket) -> None:
        hear(line, asked)
        for at, part in enumerate(parts):
            if at:
                hear(line, 1)
            line.sendall(part)
        line.shutdown(socket.SHUT_WR)
        while line.recv(1 << 16):
            pass

    return serve


def hear(line: socket.socket, count: int) -> bytes:
    heard = b""
    while len(heard) < count and (part := line.recv(count - len(heard))):
        heard += part
    return heard


def told(records: list[MessageRecord]) -> dict[tuple[int, bool], bytes]:
    """By the end and whether it was received; offsets must leave nothing out."""
    found: dict[tuple[int, bool], bytes] = {}
    for record in records:
        place = record.own[1], record.heard
        before = found.get(place, b"")
        assert record.offset == len(before)
        found[place] = before + record.data + b"?" * record.lost
    return found


def heard(records: list[MessageRecord]) -> list[bytes]:
    return [data for (_, received), data in told(records).items() if received]


def connected(port: int, family: int = socket.AF_INET) -> socket.socket:
    return socket.create_connection(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))


def to_the_end(line: socket.socket, read: Callable[[int, int], int] | None = None) -> int:
    count = 0
    while got := (read(line.fileno(), 4096) if read else len(line.recv(4096))):
        count += got
    return count


@pytest.mark.parametrize("way", FROM_SOCKETS)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_an_answer_from_outside_is_told_once_however_it_is_received(tree: Tree, way: str, family: int) -> None:
    """In two parts, the first of which is looked at before it is taken."""

    def act() -> list[int]:
        with connected(port, family) as line:
            line.sendall(ASKED)
            line.recv(16, socket.MSG_PEEK | socket.MSG_WAITALL)
            first = FROM_SOCKETS[way](line.fileno(), 16)
            while len(line.recv(4096, socket.MSG_PEEK)) < len(ANSWER) - first:
                pass
            rest = FROM_SOCKETS[way](line.fileno(), 4096)
            return [first + rest, os.fstat(line.fileno()).st_ino, line.getsockname()[1], os.getpid()]

    with outside(once(ANSWER), family) as port:
        count, inode, own, pid = tree.run(act)
    assert count == len(ANSWER)
    records = messages(tree)
    assert told(records) == {(inode, False): ASKED, (inode, True): ANSWER}
    assert {record.ports for record in records if record.heard} == {(port, own)}
    assert {record.head.pid for record in records} == {pid}
    assert {record.channel for record in records} == {"tcp"}


@pytest.mark.parametrize("size", [100_000, MIB])
def test_large_answers_are_told_whole(tree: Tree, size: int) -> None:
    text = HEAD + b"x" * size

    def act() -> int:
        with connected(port) as line:
            line.sendall(ASKED)
            return len(hear(line, len(text)))

    with outside(once(text)) as port:
        assert tree.run(act) == len(text)
    assert heard(messages(tree)) == [text]


def test_an_answer_that_comes_byte_by_byte_to_who_was_not_seen_to_ask_is_told_whole(tree: Tree) -> None:
    def act() -> None:
        with connected(port) as line:
            for _ in ANSWER:
                assert line.recv(1)

    with outside(once(ANSWER, asked=0)) as port:
        tree.run(act)
    assert told(messages(tree)).popitem()[1] == ANSWER


def test_what_is_said_between_two_of_the_tree_is_told_where_it_is_sent_alone(tree: Tree) -> None:
    def act() -> list[int]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
            for _ in range(3):
                client.sendall(ASKED)
                hear(server, len(ASKED))
                server.sendall(ANSWER)
                hear(client, len(ANSWER))
            return [os.fstat(client.fileno()).st_ino, os.fstat(server.fileno()).st_ino]

    client, server = tree.run(act)
    assert told(messages(tree)) == {(client, False): ASKED * 3, (server, False): ANSWER * 3}


def test_who_comes_from_outside_is_told_where_the_tree_receives_it(tree: Tree) -> None:
    reader, writer = os.pipe()

    def act() -> None:
        answer_once(writer)

    def come() -> None:
        with connected(int(os.read(reader, 6))) as line:
            line.sendall(ASKED)
            hear(line, len(ANSWER))

    thread = threading.Thread(target=come)
    thread.start()
    tree.run(act)
    thread.join()
    records = messages(tree)
    assert sorted(told(records).values()) == sorted([ASKED, ANSWER])
    assert heard(records) == [ASKED]


def test_of_two_sessions_each_has_what_its_own_end_sends_and_receives(tree: Tree, other_leaf: Leaf) -> None:
    other = Tree.plant(other_leaf, engine_on_calls()).guard(connect=ANYWHERE, listen=ANYWHERE).trace()
    reader, writer = os.pipe()

    def serve() -> int:
        return answer_once(writer)

    def ask() -> int:
        with connected(int(os.read(reader, 6))) as line:
            line.sendall(ASKED)
            hear(line, len(ANSWER))
            return os.fstat(line.fileno()).st_ino

    inodes: list[int] = []
    thread = threading.Thread(target=lambda: inodes.append(other.run(serve)))
    try:
        thread.start()
        client = tree.run(ask)
        thread.join()
        (server,) = inodes
        assert told(messages(tree)) == {(client, False): ASKED, (client, True): ANSWER}
        assert told(messages(other)) == {(server, True): ASKED, (server, False): ANSWER}
    finally:
        other.close()


def test_what_others_receive_is_nobodys(tree: Tree) -> None:
    def act() -> None:
        with connected(port) as line:
            line.sendall(ASKED)
            to_the_end(line)

    with outside(once(ANSWER)) as port:
        in_child(act)
    assert messages(tree) == []


def test_streams_of_models_and_other_answers_are_not_told(tree: Tree) -> None:
    def act(asked: bytes) -> None:
        with connected(port) as line:
            line.sendall(asked)
            for _ in range(70):
                hear(line, len(CHUNK))
                line.sendall(b"+")

    for asked in (MODEL, b"SELECT 1;", b"GET / HTTP/1.1\r\naccept: text/html\r\n\r\n"):
        with outside(once(*[CHUNK] * 70, asked=len(asked))) as port:
            tree.run(lambda asked=asked: act(asked))  # type: ignore[misc]
        assert messages(tree) == []


@pytest.mark.parametrize("reads", [200, 1], ids=["left alone", "cut where it looks like a request"])
def test_what_came_before_mcp_was_asked_is_no_part_of_its_answer(tree: Tree, reads: int) -> None:
    end = b"Perhaps.</p>"
    page = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n" + b"y" * 100_000 + end

    def serve(line: socket.socket) -> None:
        hear(line, len(MODEL))
        line.sendall(page)
        once(ANSWER)(line)

    def act() -> None:
        with connected(port) as line:
            line.sendall(MODEL)
            left = len(page) - len(end)
            for at in range(reads):
                left -= len(hear(line, left // (reads - at)))
            hear(line, len(end))
            line.sendall(ASKED)
            to_the_end(line)

    with outside(serve) as port:
        tree.run(act)
    assert heard(messages(tree)) == [ANSWER]


@pytest.mark.parametrize("way", ["truncated", "spliced"])
def test_what_is_received_and_never_shown_is_told_as_lost(tree: Tree, way: str) -> None:
    def act() -> None:
        with connected(port) as line:
            line.sendall(ASKED)
            hear(line, len(ANSWER))
            line.sendall(b"+")
            taken = 0
            while taken < 500:
                if way == "truncated":
                    buffer = ctypes.create_string_buffer(b"secret")
                    taken += _libc.recv(line.fileno(), buffer, 500 - taken, socket.MSG_TRUNC)
                    assert buffer.value == b"secret"
                else:
                    reader, writer = os.pipe()
                    taken += os.splice(line.fileno(), writer, 500 - taken)
                    os.close(reader)
                    os.close(writer)
            line.sendall(b"+")
            to_the_end(line)

    with outside(once(ANSWER, b"z" * 500, ANSWER)) as port:
        tree.run(act)
    assert heard(messages(tree)) == [ANSWER + b"?" * 500 + ANSWER]


def test_what_is_beside_the_stream_is_not_in_it(tree: Tree) -> None:
    """An urgent byte, and what was sent as the queue of errors gives it back with its time."""

    def serve(line: socket.socket) -> None:
        hear(line, len(ASKED))
        line.sendall(ANSWER)
        hear(line, 1)
        line.send(b"!", socket.MSG_OOB)
        hear(line, 1)
        line.sendall(ANSWER)

    def act() -> list[int]:
        with connected(port) as line:
            line.sendall(ASKED)
            hear(line, len(ANSWER))
            line.setsockopt(socket.SOL_SOCKET, 37, 1 << 1 | 1 << 4)  # SO_TIMESTAMPING: software, when it is sent
            line.sendall(b"+")
            line.setsockopt(socket.SOL_SOCKET, 37, 0)
            beside = [0, 0]
            while not beside[0]:
                with contextlib.suppress(BlockingIOError, OSError):
                    beside[0] = len(line.recv(1, socket.MSG_OOB))
            with contextlib.suppress(BlockingIOError):
                beside[1] = len(line.recvmsg(100, 100, MSG_ERRQUEUE | socket.MSG_DONTWAIT)[0])
            line.sendall(b"+")
            hear(line, len(ANSWER))
            return beside

    with outside(serve) as port:
        urgent, returned = tree.run(act)
    assert urgent == 1 and returned >= 1, "the control"
    assert heard(messages(tree)) == [ANSWER * 2]


def from_port(port: int, to: int, host: str = "127.0.0.1") -> socket.socket:
    """A connection from a port of choice that leaves it free when it is closed."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    line.bind(("127.0.0.1", port))
    line.connect((host, to))
    return line


def talk_within(own: int, port: int, host: str = "127.0.0.1") -> None:
    with (
        socket.create_server((host, port)) as listener,
        from_port(own, port, host) as line,
        listener.accept()[0] as other,
    ):
        line.sendall(ASKED)
        hear(other, len(ASKED))
        other.sendall(ANSWER)
        hear(line, len(ANSWER))


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return int(one.getsockname()[1]), int(other.getsockname()[1])


def test_ports_that_the_tree_has_used_among_itself_hide_nobody_outside(tree: Tree) -> None:
    own, port = free_ports()
    tree.run(lambda: talk_within(own, port))
    assert heard(messages(tree)) == []

    def act() -> None:
        with from_port(own, port) as line:
            line.sendall(ASKED)
            hear(line, len(ANSWER))

    with outside(once(ANSWER), port=port):
        tree.run(act)
    assert heard(messages(tree)) == [ANSWER]


def test_a_port_that_the_tree_has_asked_from_hides_no_client_outside(tree: Tree) -> None:
    own, port = free_ports()
    tree.run(lambda: talk_within(own, port))
    assert heard(messages(tree)) == []
    reader, writer = os.pipe()

    def act() -> None:
        with socket.create_server(("127.0.0.1", port)) as listener:
            os.write(writer, b"+")
            line, _ = listener.accept()
            hear(line, len(ASKED))
            line.sendall(ANSWER)
            line.recv(1)

    def come() -> None:
        os.read(reader, 1)
        with from_port(own, port) as line:
            line.sendall(ASKED)
            hear(line, len(ANSWER))
            line.shutdown(socket.SHUT_WR)
            line.recv(1)

    thread = threading.Thread(target=come)
    thread.start()
    tree.run(act)
    thread.join()
    assert heard(messages(tree)) == [ASKED]


@pytest.mark.parametrize("elsewhere", ["in another network", "at another address"])
def test_the_same_ports_elsewhere_hide_nobody_outside(tree: Tree, elsewhere: str) -> None:
    own, port = free_ports()

    def act() -> None:
        with from_port(own, port) as line:
            line.sendall(ASKED)
            in_child(in_another_network if elsewhere == "in another network" else at_another_address)
            hear(line, len(ANSWER))

    def in_another_network() -> None:
        assert _libc.unshare(0x40000000) == 0
        with socket.socket() as any_socket:
            fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
        talk_within(own, port)

    def at_another_address() -> None:
        talk_within(own, port, "127.0.0.2")

    with outside(once(ANSWER), port=port):
        tree.run(act)
    records = messages(tree)
    assert heard(records) == [ANSWER]
    assert sum(data == ANSWER for data in told(records).values()) == 2, "the control: they talked"


def test_a_client_at_another_address_of_this_host_hears_on_record(tree: Tree) -> None:
    """Its server is no connection on loopback to whom it answers, so nobody tells it there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing, chooses a route
        address = str(probe.getsockname()[0])

    def act() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as line:
            line.bind((address, 0))
            line.connect(listener.getsockname())
            server, _ = listener.accept()
            line.sendall(ASKED)
            hear(server, len(ASKED))
            server.sendall(ANSWER)
            hear(line, len(ANSWER))

    tree.run(act)
    assert sorted(told(messages(tree)).values()) == sorted([ASKED, ANSWER])


def test_two_that_write_and_read_at_once_leave_no_hole(tree: Tree) -> None:
    """The answer may be read before the call that asked has ended."""

    def act() -> None:
        with connected(port) as line:
            reading = threading.Thread(target=lambda: hear(line, 200 * len(ANSWER)))
            reading.start()
            for _ in range(200):
                line.sendall(ASKED)
            reading.join()

    def serve(line: socket.socket) -> None:
        for _ in range(200):
            hear(line, len(ASKED))
            line.sendall(ANSWER)
        line.recv(1)

    with outside(serve) as port:
        tree.run(act)
    assert heard(messages(tree)) == [ANSWER * 200]
