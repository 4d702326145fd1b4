"""What the kernel tells of JSON-RPC between processes of a tree: every way to send, all bytes, in order, and nothing else."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator

import pytest
from bpf_tree import Tree, engine_on_calls

from mcpguard.backends import engine as engines
from mcpguard.backends import tracing
from mcpguard.kernel import bpf
from mcpguard.kernel.cgroup import Leaf
from mcpguard.kernel.ring import Counters
from mcpguard.model.values import replace
from mcpguard.wire import _abi, decode
from mcpguard.wire.records import MessageRecord

pytestmark = pytest.mark.kernel

_libc = ctypes.CDLL(None, use_errno=True)
ASK = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}\n'
MIB = 1 << 20
SOCKET_FILTER = 1


@pytest.fixture
def tree(leaf: Leaf) -> Iterator[Tree]:
    planted = Tree.plant(leaf, engine_on_calls()).trace()
    yield planted
    planted.close()


def messages(tree: Tree) -> list[MessageRecord]:
    found = []
    while samples := tree.rings["mg_messages"].drain():
        found += [decode.message(sample) for sample in samples]
    # What a child tells the test is JSON, too, and begins with a word of JSON-RPC.
    return [record for record in found if not record.data.startswith((b'{"result": ', b'{"failure": '))]


def streams(records: list[MessageRecord]) -> dict[tuple[int, int], bytes]:
    """What was told of each connection; offsets must leave nothing out."""
    told: dict[tuple[int, int], bytes] = {}
    for record in records:
        before = told.get(record.own, b"")
        assert record.offset == len(before)
        told[record.own] = before + record.data + b"?" * record.lost
    return told


def drained(read: Callable[[int], bytes]) -> threading.Thread:
    """Reads to the end beside the test, so that large writes do not wait."""

    def all_of_it() -> None:
        while read(1 << 16):
            pass

    thread = threading.Thread(target=all_of_it, daemon=True)
    thread.start()
    return thread


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Several(ctypes.Structure):
    _fields_ = (("header", _Header), ("sent", ctypes.c_uint32))


def _vectors(parts: list[bytes]) -> ctypes.Array[_Vector]:
    kept = [ctypes.create_string_buffer(part, len(part)) for part in parts]
    made = (_Vector * len(parts))(*[_Vector(ctypes.addressof(one), len(one)) for one in kept])
    made.kept = kept  # type: ignore[attr-defined]
    return made


def _sendmmsg(fd: int, groups: list[list[bytes]]) -> None:
    vectors = [_vectors(parts) for parts in groups]
    several = (_Several * len(groups))()
    for one, made in zip(several, vectors, strict=True):
        one.header.vectors = ctypes.cast(made, ctypes.POINTER(_Vector))
        one.header.vector_count = len(made)
    assert _libc.sendmmsg(fd, several, len(groups), 0) == len(groups)


def thirds(data: bytes) -> list[bytes]:
    cut = len(data) // 3
    return [data[:cut], data[cut : 2 * cut], b"", data[2 * cut :]]


ON_PIPES: dict[str, Callable[[int, bytes], object]] = {
    "write": os.write,
    "writev": lambda fd, data: os.writev(fd, thirds(data)),
    "pwritev2": lambda fd, data: _libc.pwritev2(fd, _vectors(thirds(data)), 4, ctypes.c_long(-1), 0),
}
ON_SOCKETS: dict[str, Callable[[int, bytes], object]] = {
    **ON_PIPES,
    "send": lambda fd, data: _libc.send(fd, data, len(data), 0),
    "sendto": lambda fd, data: _libc.sendto(fd, data, len(data), 0, None, 0),
    "sendmsg": lambda fd, data: _over(fd).sendmsg(thirds(data)),
    "sendmmsg": lambda fd, data: _sendmmsg(fd, [thirds(data[: len(data) // 2]), [data[len(data) // 2 :]]]),
}


def _over(fd: int) -> socket.socket:
    return socket.socket(fileno=os.dup(fd))


@pytest.mark.parametrize("way", ON_PIPES)
def test_whatever_is_written_to_a_pipe_is_told(tree: Tree, way: str) -> None:
    def act() -> int:
        _reader, writer = os.pipe()
        ON_PIPES[way](writer, ASK)
        ON_PIPES[way](writer, ASK * 3)
        return os.fstat(writer).st_ino

    inode = tree.run(act)
    records = messages(tree)
    assert {record.own[1]: record.channel for record in records} == {inode: "pipe"}
    assert list(streams(records).values()) == [ASK * 4]
    assert all(record.far == record.own for record in records)


@pytest.mark.parametrize("way", ON_SOCKETS)
def test_whatever_is_sent_over_a_socketpair_is_told_with_both_ends(tree: Tree, way: str) -> None:
    def act() -> list[int]:
        one, other = socket.socketpair()
        ON_SOCKETS[way](one.fileno(), ASK)
        ON_SOCKETS[way](other.fileno(), ASK * 2)
        return [os.fstat(end.fileno()).st_ino for end in (one, other)]

    one, other = tree.run(act)
    records = messages(tree)
    assert {(record.own[1], record.far and record.far[1]) for record in records} == {(one, other), (other, one)}
    told = {own[1]: data for own, data in streams(records).items()}
    assert told == {one: ASK, other: ASK * 2}


def _into(size: int) -> ctypes.Array[_Vector]:
    return _vectors([bytes(size // 2), bytes(size - size // 2)])


def _recvmmsg(fd: int, size: int) -> int:
    several = (_Several * 1)()
    several[0].header.vectors = ctypes.cast(made := _into(size), ctypes.POINTER(_Vector))
    several[0].header.vector_count = len(made)
    assert _libc.recvmmsg(fd, several, 1, 0, None) == 1
    return int(several[0].sent)


# Each gives how much it read.
FROM_PIPES: dict[str, Callable[[int, int], int]] = {
    "read": lambda fd, size: len(os.read(fd, size)),
    "readv": lambda fd, size: os.readv(fd, [bytearray(size // 2), bytearray(size - size // 2)]),
    "preadv2": lambda fd, size: _libc.preadv2(fd, _into(size), 2, ctypes.c_long(-1), 0),
}
FROM_SOCKETS: dict[str, Callable[[int, int], int]] = {
    **FROM_PIPES,
    "recv": lambda fd, size: _libc.recv(fd, ctypes.create_string_buffer(size), size, 0),
    "recvfrom": lambda fd, size: _libc.recvfrom(fd, ctypes.create_string_buffer(size), size, 0, None, None),
    "recvmsg": lambda fd, size: len(_over(fd).recvmsg(size)[0]),
    "recvmmsg": _recvmmsg,
}


@pytest.mark.parametrize(
    ("ends", "way"), [*(("pipe", way) for way in FROM_PIPES), *(("socket", way) for way in FROM_SOCKETS)]
)
def test_however_it_is_read_it_is_told_once(tree: Tree, ends: str, way: str) -> None:
    """Also in two parts, one of which ends in the middle of a message."""

    def act() -> list[int]:
        if ends == "pipe":
            reader, writer = os.pipe()
        else:
            one, other = socket.socketpair()
            reader, writer = one.detach(), other.detach()
        os.write(writer, ASK * 3)
        read = (FROM_PIPES if ends == "pipe" else FROM_SOCKETS)[way]
        return [read(reader, len(ASK) + 9), read(reader, len(ASK) * 3), os.fstat(writer).st_ino]

    first, rest, inode = tree.run(act)
    assert (first, rest) == (len(ASK) + 9, 2 * len(ASK) - 9)
    assert {own[1]: data for own, data in streams(messages(tree)).items()} == {inode: ASK * 3}


@pytest.mark.parametrize("way", ON_SOCKETS)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_http_over_loopback_is_told_with_its_ports(tree: Tree, way: str, family: socket.AddressFamily) -> None:
    asked = b"POST /mcp HTTP/1.1\r\nHost: x\r\nAccept: application/json, text/event-stream\r\n\r\n"
    answer = b"HTTP/1.1 202 Accepted\r\n\r\n"

    def act() -> list[int]:
        listener = socket.create_server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), family=family)
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
        ON_SOCKETS[way](client.fileno(), asked)
        ON_SOCKETS[way](server.fileno(), answer)
        return [client.getsockname()[1], server.getsockname()[1]]

    one, other = tree.run(act)
    records = messages(tree)
    assert {record.ports for record in records} == {(one, other), (other, one)}
    assert sorted(streams(records).values()) == sorted([asked, answer])


def test_a_message_that_comes_byte_by_byte_is_told_whole(tree: Tree) -> None:
    for text in (ASK, b" \n [ {\t" + ASK[1:], b'{"method":"x","jsonrpc":"2.0"}\n', b'{"extra":1,"jsonrpc":"2.0"}\n'):

        def act(text: bytes = text) -> None:
            _reader, writer = os.pipe()
            for byte in text:
                os.write(writer, bytes([byte]))

        tree.run(act)
        assert list(streams(messages(tree)).values()) == [text]


@pytest.mark.parametrize("size", [100_000, MIB])
def test_large_messages_are_told_whole(tree: Tree, size: int) -> None:
    text = ASK[:-2] + b',"params":"' + b"x" * (size - len(ASK) - 12) + b'"}\n'

    def act() -> None:
        reader, writer = os.pipe()
        drained(lambda count: os.read(reader, count))
        os.write(writer, text)

    tree.run(act)
    assert list(streams(messages(tree)).values()) == [text]


def test_what_is_beyond_the_bound_of_one_call_is_told_as_lost(tree: Tree) -> None:
    text = ASK[:-2] + b',"params":"' + b"x" * MIB + b'"}\n'

    def act() -> None:
        one, other = socket.socketpair()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        drained(other.recv)
        one.sendall(text)
        one.sendall(ASK)

    tree.run(act)
    records = messages(tree)
    assert len(next(iter(streams(records).values()))) == len(text) + len(ASK)
    gaps = [record for record in records if record.lost]
    assert sum(gap.lost for gap in gaps) <= len(text) - MIB + decode._abi.MG_PIECE_BYTES
    assert gaps and gaps[-1].ends_line
    assert records[-1].data == ASK


def test_what_the_kernel_moves_into_a_connection_is_told_as_lost(tree: Tree) -> None:
    def act() -> None:
        source, into = os.pipe()
        _reader, writer = os.pipe()
        os.write(writer, ASK)
        os.write(into, b"y" * 100)
        os.splice(source, writer, 60)
        with tempfile.TemporaryFile() as file:
            file.write(b"z" * 50)
            file.flush()
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            os.sendfile(writer, file.fileno(), None, 50)
        memory = ctypes.create_string_buffer(b"v" * 30, 30)
        vector = _Vector(ctypes.addressof(memory), 30)
        assert _libc.vmsplice(writer, ctypes.byref(vector), 1, 0) == 30
        os.write(writer, ASK)

    tree.run(act)
    assert list(streams(messages(tree)).values()) == [ASK + b"?" * 140 + ASK]


@pytest.mark.parametrize(
    "text",
    [
        b"hello\n" * 3,
        b'{"type":"user","message":{"role":"user"}}\n',
        b"[1,2,3]\n",
        b'"jsonrpc"\n',
        b"{" * 2000,
        os.urandom(3000),
        b"POST /mcp HTTP/1.1\r\nAccept: text/event-stream\r\n\r\n",
    ],
)
def test_what_is_no_json_rpc_is_not_told(tree: Tree, text: bytes) -> None:
    def act() -> None:
        _reader, writer = os.pipe()
        one, _other = socket.socketpair()
        for _ in range(3):
            os.write(writer, text)
            one.send(text)

    tree.run(act)
    assert messages(tree) == []


def test_a_connection_that_says_much_else_first_is_ignored_then(tree: Tree) -> None:
    def act(before: int) -> None:
        _reader, writer = os.pipe()
        for _ in range(before):
            os.write(writer, b"starting ...\n")
        os.write(writer, ASK)

    tree.run(lambda: act(20))
    assert list(streams(messages(tree)).values()) == [ASK]
    tree.run(lambda: act(64))
    assert messages(tree) == []


def test_other_http_and_other_hosts_are_not_told(tree: Tree) -> None:
    page = b"GET / HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n"
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n" + b"<p>" * 1000

    def act() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        client.sendall(page + b" " * 1000)
        server.sendall(answer)

    tree.run(act)
    assert messages(tree) == []


def test_who_sends_and_with_which_standard_streams(tree: Tree) -> None:
    def act() -> list[int]:
        asks, asked = os.pipe()
        answers, answered = os.pipe()
        server = os.fork()
        if server == 0:
            os.dup2(asks, 0)
            os.dup2(answered, 1)
            os.read(0, 4096)
            os.write(1, b'{"jsonrpc":"2.0","id":1,"result":{}}\n')
            os._exit(0)
        os.write(asked, ASK)
        os.read(answers, 4096)
        os.waitpid(server, 0)
        return [os.getpid(), server, os.fstat(asked).st_ino, os.fstat(answers).st_ino]

    client, server, asked, answered = tree.run(act)
    question, answer = messages(tree)
    assert (question.head.pid, question.own[1], question.output) == (client, asked, False)
    assert (answer.head.pid, answer.own[1], answer.output) == (server, answered, True)
    assert answer.input == question.far


def said(**members: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, **members}).encode() + b"\n"


def close(text: bytes) -> bytes:
    return json.dumps(json.loads(text), separators=(",", ":")).encode() + b"\n"


BEGIN = said(method="initialize", params={"protocolVersion": "2025-11-25", "capabilities": {}})
ANSWER = said(result={"a": '"method"'})
QUOTED = said(method="session/prompt", params={"text": '"method":"tools/list"', "protocolVersion": "2"})
NESTED = said(method="relay", params={"method": "tools/call"})
# What the agent says to a process, what that says to it, and whether it is ended.
AROUND: dict[str, tuple[bytes, bytes, bool]] = {
    "first": (BEGIN, ANSWER, True),
    "close": (close(BEGIN), close(ANSWER), True),
    "call": (said(method="tools/call"), said(error={"code": 1, "message": ""}), True),
    "server": (said(method="server/discover"), ANSWER, True),
    "late-method": (
        json.dumps({"params": {"x": {}}, "jsonrpc": "2.0", "method": "prompts/get"}).encode(),
        ANSWER,
        True,
    ),
    "no-mcp": (said(method="initialize", params={"protocolVersion": 1}), ANSWER, False),
    "no-mcp-of-a-client-2.1": (
        said(method="initialize", params={"protocolVersion": 1, "clientInfo": {"version": "2.1"}}),
        ANSWER,
        False,
    ),
    "other-method": (said(method="session/new"), ANSWER, False),
    "quoted": (QUOTED, ANSWER, False),
    "nested": (NESTED, ANSWER, False),
    "echo": (ASK, ASK, False),
    "echo-of-both": (ASK + ANSWER, ASK + ANSWER, False),
    "note": (ASK, b'{"jsonrpc":"2.0","method":"notifications/message","params":{"result":1}}\n', False),
    "no-json": (ASK, b"result\n", False),
}


def conversation(tree: Tree, ends: str, question: bytes, answer: bytes, *, is_agent: bool = True) -> tuple[int, int]:
    """A process asks its child, which answers once; the child's PID, and how it ended (7: by itself)."""
    counters = Counters(tree.session.fds["mg_counters"], _abi.MG_COUNTERS.size)

    def act() -> tuple[int, int]:
        counters.write(_abi.MG_COUNTERS.size - 8, os.getpid() if is_agent else os.getppid())
        if ends == "pipes":
            (asks, asked), (answers, answered) = os.pipe(), os.pipe()
        else:
            asks, asked = (one.detach() for one in socket.socketpair())
            answered, answers = (asks, asked) if ends == "socket" else (one.detach() for one in socket.socketpair())
        server = os.fork()
        if server == 0:
            os.dup2(asks, 0)
            os.dup2(answered, 1)
            os.read(0, 4096)
            os.write(1, answer)
            os._exit(7)
        os.write(asked, question)
        assert os.read(answers, 4096) == answer
        return server, os.waitstatus_to_exitcode(os.waitpid(server, 0)[1])

    return tuple(tree.run(act))


@pytest.mark.parametrize("ends", ["pipes", "socket", "sockets"])
def test_who_answers_what_the_agent_asks_within_its_tree_is_ended_before_its_next_step(tree: Tree, ends: str) -> None:
    server, code = conversation(tree, ends, BEGIN, ANSWER)
    assert code == -9
    assert [record.head.pid for record in messages(tree) if record.ended] == [server]


@pytest.mark.parametrize("case", AROUND)
def test_only_who_answers_a_question_of_mcp_is_ended(tree: Tree, case: str) -> None:
    question, answer, ended = AROUND[case]
    assert conversation(tree, "pipes", question, answer)[1] == (-9 if ended else 7)
    assert any(record.ended for record in messages(tree)) is ended


def test_where_another_asks_nobody_is_ended(tree: Tree) -> None:
    assert conversation(tree, "pipes", BEGIN, ANSWER, is_agent=False)[1] == 7


def test_nobody_outside_the_tree_is_told(tree: Tree) -> None:
    reader, writer = os.pipe()
    os.write(writer, ASK)
    os.close(reader)
    os.close(writer)
    assert messages(tree) == []


def test_a_full_ring_is_counted_and_leaves_a_hole_that_can_be_seen(leaf: Leaf) -> None:
    tree = Tree.plant(leaf, engine_on_calls(), messages=1 << 16).trace()

    def act(count: int) -> None:
        reader, writer = os.pipe()
        drained(lambda size: os.read(reader, size))
        for _ in range(count):
            os.write(writer, ASK * 80)
        os.write(writer, ASK)

    try:
        tree.run(lambda: act(100))
        first = messages(tree)
        tree.run(lambda: act(0))
        (late,) = messages(tree)
        counters = tree.session.maps["mg_counters"].get(bytes(4), decode._abi.MG_COUNTERS.size) or b""
        lost = decode._abi.MG_COUNTERS.unpack(counters)[6]
        assert any(one.offset + len(one.data) < next_one.offset for one, next_one in itertools.pairwise(first))
        assert lost > 0 and sum(one.head.lost_before for one in [*first, late]) == lost
    finally:
        tree.close()


def test_a_kernel_that_refuses_the_program_has_sessions_without_messages(
    leaf: Leaf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(opened: bpf.Object) -> None:
        opened.set_kind(engines.ANY_SEND, SOCKET_FILTER, 0)

    refused = [replace(spec, prepare=spoil) if spec.name == "messages" else spec for spec in engines.OBJECTS]
    monkeypatch.setattr(engines, "OBJECTS", tuple(refused))
    engine = engines.Engine.open(kind="-refused")
    try:
        assert "messages" in engine.absent
        session = engine.add_session(leaf.fd, leaf.id)
        assert engines.MESSAGES not in session.fds and engines.ACTIVITY in session.fds
        assert tracing.detach_verify(engine) == []
        leaf.kill()
        assert leaf.await_empty() and session.remove()
        session.close()
    finally:
        engine.close()


def test_sizes_of_the_contract() -> None:
    assert struct.calcsize("=48sQQQQIIIIHHBBBB") == decode._abi.MG_MESSAGE.size
