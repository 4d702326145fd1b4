"""The host that the first bytes of a stream name, judged in the kernel at an address that a name has opened."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import hello
import pytest
from bpf_tree import Tree, allow, errno_of, in_child
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_bpf_names import HOME, HOUR_NS, TCP, UDP, learn

from mcpguard.kernel.cgroup import Leaf
from mcpguard.model.access import Effect
from mcpguard.model.policy import PROTO_NAMED, NameEntry
from mcpguard.model.profile import SniMode
from mcpguard.policy.hosts import host_table
from mcpguard.policy.network import mapped
from mcpguard.wire import encode
from mcpguard.wire.encode import HostRow, LearnedRule
from mcpguard.wire.records import NO_HOST, UNCLEAR

pytestmark = pytest.mark.kernel

OTHER_PORT = 1
CLONE_NEWNET = 0x40000000
NAMES = (
    ("ok.test", Effect.ALLOW, (0, 65535)),
    ("*.wild.test", Effect.ALLOW, (0, 65535)),
    ("shut.wild.test", Effect.DENY, (0, 65535)),
    ("*.deep.wild.test", Effect.DENY, (0, 65535)),
    ("elsewhere.test", Effect.ALLOW, (OTHER_PORT, OTHER_PORT)),
)
RULES = {name: number for number, (name, *_) in enumerate(NAMES, 1)}


def hosts(mode: SniMode) -> tuple[HostRow, ...]:
    entries = [NameEntry(name, *ports, 3, effect, RULES[name]) for name, effect, ports in NAMES]
    return tuple(
        (row.pattern, [(p.port_low, p.port_high, p.protocols, p.effect, p.rule) for p in row.ports])
        for row in host_table(entries, mode)
    )


def is_allowed(name: str) -> bool:
    """The rules above, in words of the tests' own."""
    plain = name.removesuffix(".") if name != "." else name
    if len(plain) > 253:
        return False
    if plain == "shut.wild.test" or plain.endswith(".deep.wild.test"):
        return False
    return plain == "ok.test" or plain.endswith(".wild.test")


@dataclass
class Server:
    """Takes streams and datagrams and remembers what came, by the port of whoever sent it."""

    port: int
    came: dict[int, bytes] = field(default_factory=dict)
    ended: threading.Condition = field(default_factory=threading.Condition)
    over: set[int] = field(default_factory=set)

    def take(self, stream: socket.socket, sender: int) -> None:
        came = b""
        with stream, contextlib.suppress(OSError):
            while data := stream.recv(1 << 16):
                came += data
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        with self.ended:
            self.came[sender] = came
            self.over.add(sender)
            self.ended.notify_all()

    def got(self, sender: int) -> bytes:
        """All that came from there; waits for its end."""
        with self.ended:
            assert self.ended.wait_for(lambda: sender in self.over, 20)
            self.over.discard(sender)  # the port may soon be another stream's
            return self.came.pop(sender)


@pytest.fixture
def server() -> Iterator[Server]:
    with socket.create_server((HOME, 0), backlog=64) as listener, socket.socket(socket.AF_INET, UDP) as datagrams:
        made = Server(listener.getsockname()[1])
        datagrams.bind((HOME, made.port))

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    stream, sender = listener.accept()
                    threading.Thread(target=made.take, args=(stream, sender[1]), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield made
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def tree(leaf: Leaf) -> Iterator[Tree]:
    planted = Tree.plant(leaf)
    yield planted
    planted.close()


def say(port: int, pieces: Sequence[bytes]) -> list[int]:
    """[sender's port, bytes that could not leave] after sending the pieces, one packet each at least."""
    with socket.socket(socket.AF_INET, TCP) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect((HOME, port))
        for piece in pieces:
            sock.sendall(piece)
        result = [sock.getsockname()[1], unsent(sock)]
        if result[1]:  # else the end would wait for what cannot leave
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return result


def unsent(sock: socket.socket) -> int:
    """Bytes that could not leave, when nothing is on its way any more that the peer has yet to acknowledge."""
    while True:
        facts = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        (on_the_way,), (left,) = struct.unpack_from("I", facts, 24), struct.unpack_from("I", facts, 144)
        if not left or not on_the_way:
            return int(left)


@dataclass
class Prober:
    """A process in the tree that sends what it is told to, over and over."""

    server: Server
    inputs: int
    outputs: int

    def refused(self, pieces: Sequence[bytes]) -> bool:
        os.write(self.inputs, json.dumps([piece.hex() for piece in pieces]).encode() + b"\n")
        sender, left = json.loads(os.read(self.outputs, 4096))
        whole = b"".join(pieces)
        came = self.server.got(sender)
        assert came == whole[: len(came)]
        if not left:
            assert came == whole
        return bool(left)


@contextlib.contextmanager
def prober(tree: Tree, server: Server) -> Iterator[Prober]:
    theirs, inputs = os.pipe()
    outputs, answers = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(inputs)
            tree.leaf.enter()
            for line in os.fdopen(theirs):
                pieces = [bytes.fromhex(piece) for piece in json.loads(line)]
                os.write(answers, json.dumps(say(server.port, pieces)).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    os.close(answers)
    try:
        yield Prober(server, inputs, outputs)
    finally:
        os.close(inputs)
        os.waitpid(pid, 0)
        os.close(outputs)


@pytest.fixture
def checked(tree: Tree, server: Server) -> Iterator[Prober]:
    tree.guard(hosts=hosts(SniMode.CHECK))
    learn(tree, server.port)
    with prober(tree, server) as made:
        yield made


@pytest.fixture
def required(tree: Tree, server: Server) -> Iterator[Prober]:
    tree.guard(hosts=hosts(SniMode.REQUIRE))
    learn(tree, server.port)
    with prober(tree, server) as made:
        yield made


def bytewise(stream: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in stream]


def halves(stream: bytes) -> list[bytes]:
    return [stream[: len(stream) // 2], stream[len(stream) // 2 :]]


OK, EVIL = hello.named(b"ok.test"), hello.named(b"evil.test")
CUTS: dict[str, Callable[[bytes], list[bytes]]] = {
    "whole": lambda message: [hello.records(message)],
    "two segments": lambda message: halves(hello.records(message)),
    "byte by byte": lambda message: bytewise(hello.records(message)),
    "two records": lambda message: [hello.records(message, [len(message) // 2])],
    "a record for each byte": lambda message: [hello.records(message, [1] * len(message))],
    "a record for each byte, byte by byte": lambda message: bytewise(hello.records(message, [1] * len(message))),
    "empty records": lambda message: [hello.records(message, [0, 0, 5, 0, 0, 0, 1])],
    "an alert between": lambda message: [
        hello.records(message[:9]) + hello.records(b"\1\0", kind=hello.ALERT) + hello.records(message[9:])
    ],
}
LARGE = {"small": 0, "as large as with keys that stand quantum computers": 1600, "huge": 60000}


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("cut", CUTS)
def test_a_hello_is_judged_by_its_name_however_it_is_cut(checked: Prober, cut: str, size: str) -> None:
    if LARGE[size] > 1600 and "byte" in cut:
        return
    for name, expected in ((b"ok.test", False), (b"evil.test", True)):
        pieces = CUTS[cut](hello.named(name, size=LARGE[size]))
        assert checked.refused(pieces) is expected, name


def test_outside_and_by_a_rule_for_the_address_every_name_goes(tree: Tree, server: Server) -> None:
    pieces = [hello.records(EVIL)]
    assert in_child(lambda: say(server.port, pieces))[1] == 0
    tree.guard(hosts=hosts(SniMode.REQUIRE), connect=(allow(HOME, 32, 9),))
    learn(tree, server.port)
    assert tree.run(lambda: say(server.port, pieces))[1] == 0
    assert tree.net_denials() == []


def test_switched_off_nobody_looks(tree: Tree, server: Server) -> None:
    tree.guard(hosts=hosts(SniMode.OFF))
    learn(tree, server.port)
    for stream in (hello.records(EVIL), b"\x16\x03\x01\0\1\0", hello.request(b"evil.test")):
        assert tree.run(lambda stream=stream: say(server.port, [stream]))[1] == 0


def test_a_name_of_the_hosts_file_is_held_to_it_too(tree: Tree, server: Server) -> None:
    by_name = allow(HOME, 32, 1, ports=(server.port, server.port), protocols=3 | PROTO_NAMED)
    tree.guard(hosts=hosts(SniMode.CHECK), connect=(by_name,))
    assert tree.run(lambda: say(server.port, [hello.records(OK)]))[1] == 0
    assert tree.run(lambda: say(server.port, [hello.records(EVIL)]))[1] > 0


def test_a_refusal_is_on_record_with_the_name_and_the_rule(tree: Tree, checked: Prober, server: Server) -> None:
    assert checked.refused([hello.records(hello.named(b"EVIL.test"))])
    assert checked.refused([hello.records(hello.named(b"Shut.Wild.Test."))])
    assert checked.refused([hello.records(hello.named(b""))])
    told = [(r.host, r.rule, r.detail, r.verdict.value, r.address, r.port) for r in tree.net_denials()]
    here = ("deny", HOME, server.port)
    words = "another host at the address of an allowed one"
    assert told == [
        ("evil.test", 0, words, *here),
        ("shut.wild.test", RULES["shut.wild.test"], words, *here),
        ("", 0, UNCLEAR, *here),
    ]


def test_many_refusals_of_one_name_are_one_series(tree: Tree, checked: Prober) -> None:
    for _ in range(9):
        assert checked.refused([hello.records(EVIL)])
    assert checked.refused([hello.records(hello.named(b"other.test"))])
    told = [r for r in tree.net_denials() if r.host == "evil.test"]
    assert sum(r.count for r in told) == 8
    assert len(told) == 4
    assert len({r.series for r in tree.net_denials()}) == 2
    assert (told[0].series, 1) in tree.session.final_counts()


def test_in_audit_the_name_is_told_and_let_through(tree: Tree, server: Server) -> None:
    tree.guard(hosts=hosts(SniMode.CHECK), audit=True)
    learn(tree, server.port)
    assert tree.run(lambda: say(server.port, [hello.records(EVIL)]))[1] == 0
    assert tree.run(lambda: say(server.port, [hello.records(hello.named(b"shut.wild.test"))]))[1] > 0
    told = [(r.host, r.verdict.value) for r in tree.net_denials()]
    assert told == [("evil.test", "audit"), ("shut.wild.test", "deny")]


NAMED = {
    b"ok.test": True,
    b"OK.Test": True,
    b"ok.test.": True,
    b"ok.test..": False,
    b".ok.test": False,
    b"a.ok.test": False,
    b"notok.test": False,
    b"a.wild.test": True,
    b"a.b.c.wild.test": True,
    b"wild.test": False,
    b".wild.test": False,
    b"a..wild.test": False,
    b"a-b_c.wild.test": True,
    b"evil.test:.wild.test": False,
    b"evil.test:443.wild.test": False,
    b"evil.test/.wild.test": False,
    b"evil.test .wild.test": False,
    b"evil.test%00.wild.test": False,
    b"evil.test,.wild.test": False,
    b"*.wild.test": False,
    b"bad:.wild.test": False,
    b"bad.cafe:1": False,
    b"facade:1": False,
    b"2001:db8::1.wild.test": False,
    b"2001:db8::1": True,
    b"::1": True,
    b"xwild.test": False,
    b"shut.wild.test": False,
    b"a.shut.wild.test": True,
    b"a.deep.wild.test": False,
    b"deep.wild.test": True,
    b"elsewhere.test": False,
    b"ok.test\0": False,
    b"ok.test\0.evil.test": False,
    b"evil.test\0ok.test": False,
    b"\xf6k.test": False,
    b"a" * 63 + b".wild.test": True,
    (b"a." * 130)[: 253 - 10] + b".wild.test": True,
    (b"a." * 130)[: 253 - 10] + b".wild.test.": True,
    (b"a." * 130)[: 254 - 10] + b".wild.test": False,
    b"a" * 5000 + b".wild.test": False,
    b"." * 255: False,
    b".": False,
}


@pytest.mark.parametrize("name", NAMED, ids=lambda name: repr(name[:40]))
def test_names(checked: Prober, name: bytes) -> None:
    assert checked.refused([hello.records(hello.named(name))]) is not NAMED[name]


# Little-endian lengths, and numbers of packets and messages; what follows is as clients send it.
POSTGRES, GSSAPI = b"\0\0\0\x08\x04\xd2\x16\x2f", b"\0\0\0\x08\x04\xd2\x16\x30"
MYSQL_TLS = b"\x20\0\0\1" + b"\x85\xae\xff\1" + b"\0\0\0\1\x2d" + bytes(23)
MYSQL = b"\x16\3\0\1" + b"\x85\xa6\xff\1" + b"\0\0\0\1\x2d" + bytes(23) + b"user\0" + bytes(749)
MONGODB = b"\x16\3\0\0" + b"\2\0\0\0" + bytes(4) + b"\xdd\7\0\0" + bytes(5) + b"\x01\3\0\0\x10hello\0\1" + bytes(757)

NAMELESS = {
    "no extensions": hello.records(hello.hello(None)),
    "other extensions": hello.records(hello.named(size=10)),
    "an address": hello.records(hello.named(b"203.0.113.1")),
    "an IPv6 address": hello.records(hello.named(b"2001:DB8::1")),
    "an IPv4 address in IPv6": hello.records(hello.named(b"::ffff:203.0.113.1")),
    "the hello of old clients": b"\x80\x2e\x01\x03\x01" + bytes(43),
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a mail client": b"EHLO evil.test\r\nhost: evil.test\r\n",
    "numbers first": bytes(8),
    "a length that looks like TLS": b"\x16\x01\0\0\1\0\0\0",
    "a login at MySQL as long as its beginning looks like TLS": MYSQL,
    "a message to MongoDB as long": MONGODB,
    "the same as the five hundredth": MONGODB[:4] + b"\xff\1\0\0" + MONGODB[8:],
    "a handshake that no client begins with": b"\x16\x03\x01\0\4\2\0\0\0",
    "an alert that is too long, and nothing": b"\x15\x03\x01\0\3abc" + bytes(8),
    "a request without a host": hello.request(None),
    "a request by address": hello.request(b"203.0.113.1:80"),
    "a request by IPv6 address": hello.request(b"[2001:db8::1]:80"),
    "a request to a proxy": hello.request(b"evil.test:443", b"evil.test:443", b"CONNECT"),
    "HTTP 2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "empty lines alone": b"\r\n\r\n",
    "many empty lines": b"\r\n" * 99,
    "PostgreSQL without TLS": POSTGRES + b"\0\0\0\x0d\0\3\0\0user\0",
    "zeros": bytes(50),
    "a login at MySQL": b"\x20\0\0\1" + b"\x85\xa6\xff\1" + bytes(28) + b"\x0f\0\0\0\3select 1",
}


@pytest.mark.parametrize("stream", NAMELESS)
def test_what_names_no_host_goes_by_the_address(checked: Prober, stream: str) -> None:
    assert checked.refused([NAMELESS[stream]]) is False
    assert checked.refused(bytewise(NAMELESS[stream])) is False


@pytest.mark.parametrize("stream", NAMELESS)
def test_what_names_no_host_is_refused_where_one_is_required(tree: Tree, required: Prober, stream: str) -> None:
    assert required.refused([NAMELESS[stream]])
    assert [(r.host, r.detail) for r in tree.net_denials()] == [("", NO_HOST)]


def test_where_a_host_is_required_only_tls_names_one(required: Prober) -> None:
    assert required.refused([hello.records(OK)]) is False
    assert required.refused([hello.records(EVIL)])
    assert required.refused([hello.request(b"ok.test")])


ODD = {
    "a list that is too short": hello.records(hello.hello([(0, b"\0\x05\0\0\7ok.test")])),
    "a list that is too long": hello.records(hello.hello([(0, b"\0\x0b\0\0\7ok.test")])),
    "an empty list": hello.records(hello.hello([(0, b"\0\0")])),
    "an empty extension": hello.records(hello.hello([(0, b"")])),
    "an empty name": hello.records(hello.named(b"")),
    "bytes behind the extensions": hello.records(hello.hello([])[:1] + hello.block(hello.hello([])[4:] + b"x", 3)),
    "an extension too long": hello.records(OK.replace(b"\0\0\0\x0c", b"\0\0\0\x7c")),
    "a session too long": hello.records(b"\1\0\0\x24\3\3" + bytes(32) + b"\xff\0"),
    "longer than any": b"\x16\x03\x01\x40\0\1\xff\xff\xff" + bytes(100),
    "many alerts": b"\x15\x03\x01\0\2\1\0" * 33,
    "many empty records": b"\x16\x03\x01\0\0" * 33,
}


@pytest.mark.parametrize("stream", ODD)
def test_what_begins_like_tls_and_is_no_hello_is_refused(checked: Prober, stream: str) -> None:
    assert checked.refused([ODD[stream]])
    assert checked.refused(bytewise(ODD[stream]))


def after(first: bytes, *rest: bytes) -> bytes:
    return hello.records(first) + b"".join(rest)


CHANGED = hello.records(b"\1", kind=hello.CHANGE)
EARLY_DATA = hello.records(bytes(100), kind=hello.DATA)
LATER = {
    "what follows a handshake": (after(OK, CHANGED, hello.records(b"evil.test", kind=hello.DATA)), False),
    "an older handshake": (after(OK, hello.records(b"\x10\0\0\2xx"), CHANGED, hello.records(bytes(40))), False),
    "an older handshake that looks like a hello": (after(OK, CHANGED, hello.records(b"\1" + b"\xff" * 39)), False),
    "a second hello": (after(OK, CHANGED, hello.records(OK)), False),
    "a second hello for another": (after(OK, CHANGED, hello.records(EVIL)), True),
    "the same without the change": (after(OK, hello.records(EVIL)), True),
    "both in one record": (hello.records(OK + EVIL), True),
    "a second one after one without a name": (after(hello.named(), CHANGED, hello.records(EVIL)), True),
    "a second one after an alert": (after(OK, hello.records(b"\1\0", kind=hello.ALERT), hello.records(EVIL)), True),
    "a third one": (after(OK, hello.records(OK), hello.records(EVIL)), True),
    "a second one behind early data": (
        after(hello.hello([(hello.EARLY, b""), hello.server_name(b"ok.test")]), EARLY_DATA, hello.records(EVIL)),
        True,
    ),
    "the same for the same": (
        after(hello.hello([(hello.EARLY, b""), hello.server_name(b"ok.test")]), EARLY_DATA, hello.records(OK)),
        False,
    ),
    "early data, and nothing else": (
        after(hello.hello([(hello.EARLY, b""), hello.server_name(b"ok.test")]), EARLY_DATA * 3),
        False,
    ),
    "a second one behind many empty records": (
        hello.records(OK, [0, 0, 0]) + CHANGED * 31 + hello.records(EVIL),
        True,
    ),
    "two names": (hello.records(hello.named(b"ok.test", b"evil.test")), True),
    "two names, the other way round": (hello.records(hello.named(b"evil.test", b"ok.test")), True),
    "two extensions": (
        hello.records(hello.hello([hello.server_name(b"ok.test"), hello.server_name(b"evil.test")])),
        True,
    ),
    "a name of another kind": (
        hello.records(hello.hello([hello.server_name(b"evil.test", kind=9), hello.server_name(b"ok.test")])),
        False,
    ),
    "an encrypted hello in a permitted one": (
        hello.records(hello.hello([(hello.ECH, bytes(300)), hello.server_name(b"ok.test")])),
        False,
    ),
    "an encrypted hello in another": (
        hello.records(hello.hello([(hello.ECH, bytes(300)), hello.server_name(b"cover.test")])),
        True,
    ),
    "a version that no record has": (hello.records(EVIL, version=b"\1\1"), True),
    "an alert before": (hello.records(b"\1\0", kind=hello.ALERT) + hello.records(EVIL), True),
    "an alert before that is too long": (hello.records(b"\1\0x", kind=hello.ALERT) + hello.records(EVIL), True),
    "the same between": (after(OK, hello.records(b"\1\0x", kind=hello.ALERT), hello.records(EVIL)), True),
    "data between its pieces": (
        hello.records(EVIL[:9]) + hello.records(bytes(9), kind=hello.DATA) + hello.records(EVIL[9:]),
        True,
    ),
    "data before": (hello.records(bytes(9), kind=hello.DATA) + hello.records(EVIL), True),
    "a heartbeat before": (hello.records(bytes(9), kind=hello.HEARTBEAT) + hello.records(EVIL), True),
    "a heartbeat before an allowed one": (hello.records(bytes(9), kind=hello.HEARTBEAT) + hello.records(OK), False),
}


@pytest.mark.parametrize("case", LATER)
def test_every_name_of_every_hello_counts(checked: Prober, case: str) -> None:
    stream, expected = LATER[case]
    for pieces in ([stream], halves(stream), bytewise(stream)):
        assert checked.refused(pieces) is expected


PREAMBLES = {
    "PostgreSQL": POSTGRES,
    "PostgreSQL, the other one first": GSSAPI + POSTGRES,
    "PostgreSQL, longer than it should be": POSTGRES.replace(b"\x08", b"\x0b") + b"xyz",
    "MySQL": MYSQL_TLS,
    "empty lines": b"\r\n\n",
}


@pytest.mark.parametrize("before", PREAMBLES)
def test_a_hello_is_read_behind_what_a_database_is_asked_first(checked: Prober, before: str) -> None:
    for message, expected in ((OK, False), (EVIL, True)):
        stream = PREAMBLES[before] + hello.records(message)
        for pieces in ([stream], [PREAMBLES[before], hello.records(message)], bytewise(stream)):
            assert checked.refused(pieces) is expected


PROXIES = {
    "as a line": b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 443\r\n",
    "of nobody": b"PROXY UNKNOWN\r\n",
    "in binary": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12),
}


@pytest.mark.parametrize("line", PROXIES)
def test_what_only_proxies_say_is_refused(checked: Prober, tree: Tree, line: str) -> None:
    for stream in (PROXIES[line] + hello.records(OK), PROXIES[line] + hello.request(b"ok.test")):
        assert checked.refused([stream])
        assert checked.refused(bytewise(stream))
    assert {r.detail for r in tree.net_denials()} == {UNCLEAR}


# What hides a hello in ways that nobody follows.
HIDDEN = {
    "mail": b"EHLO me\r\nSTARTTLS\r\n",
    "a directory": b"0\x1d\2\1\1w\x18\x80\x161.3.6.1.4.1.1466.20037",
    "text without a version": b"GET /\r\n",
    "HTTP 2 without TLS": NAMELESS["HTTP 2 at once"],
    **PREAMBLES,
    **PROXIES,
}


@pytest.mark.parametrize("before", HIDDEN)
def test_where_a_host_is_required_nothing_stands_before_the_hello(required: Prober, before: str) -> None:
    for message in (OK, EVIL):
        assert required.refused([HIDDEN[before] + hello.records(message)])
        assert required.refused(bytewise(HIDDEN[before] + hello.records(message)))
    assert required.refused([hello.records(OK)]) is False


HTTP = {
    "a host": (hello.request(b"ok.test"), False),
    "a port": (hello.request(b"ok.test:8080"), False),
    "blanks": (hello.request(b"  ok.test \t"), False),
    "another host": (hello.request(b"evil.test"), True),
    "another method": (hello.request(b"evil.test", method=b"M-SEARCH"), True),
    "in small letters": (hello.request(b"evil.test", method=b"get"), True),
    "another case": (hello.request(b"x").replace(b"Host: x", b"hOsT:EVIL.test"), True),
    "a blank before the colon": (hello.request(b"x").replace(b"Host: x", b"Host : evil.test"), True),
    "a blank before the name": (hello.request(b"x").replace(b"Host: x", b" Host: evil.test"), True),
    "two hosts": (hello.request(b"ok.test\r\nHost: evil.test"), True),
    "after a bare return": (hello.request(b"ok.test\rHost: evil.test"), True),
    "lines that end in a feed": (hello.request(b"evil.test").replace(b"\r\n", b"\n"), True),
    "after empty lines": (b"\r\n\r\n" + hello.request(b"evil.test"), True),
    "a user": (hello.request(b"ok.test@evil.test"), True),
    "two words": (hello.request(b"ok.test evil.test"), True),
    "a port that is none": (hello.request(b"ok.test:80@evil.test"), True),
    "the whole address": (hello.request(b"ok.test", b"http://evil.test/"), True),
    "the whole address with a port": (hello.request(b"ok.test", b"HTTP://evil.test:80/"), True),
    "the whole address of an allowed one": (hello.request(b"ok.test", b"http://ok.test:80/a?b"), False),
    "the whole address with a user": (hello.request(b"ok.test", b"http://ok.test@evil.test/"), True),
    "an address in the path": (hello.request(b"ok.test", b"/http://evil.test/"), False),
    "a scheme alone": (hello.request(b"evil.test", b"foo:bar"), True),
    "a header that is longer": (hello.request(b"ok.test").replace(b"Accept", b"Hostess"), False),
    "a body": (hello.request(b"ok.test", method=b"POST") + b"Host: evil.test\r\n", False),
    "versions that are no 1.x": (hello.request(b"evil.test").replace(b"1.1", b"2.0"), True),
    "a version of two digits": (hello.request(b"evil.test").replace(b"1.1", b"1.10"), True),
    "more behind the version": (hello.request(b"evil.test").replace(b"1.1", b"1.1 x"), True),
    "the same of an allowed one": (hello.request(b"ok.test").replace(b"1.1", b"1.10"), False),
    "another protocol's version": (hello.request(b"evil.test").replace(b"HTTP/1.1", b"RTSP/1.0"), True),
    "a blank before the method": (b" " + hello.request(b"evil.test"), True),
    "blanks of other kinds": (hello.request(b"evil.test").replace(b" / ", b"\v/\f"), True),
    "a return in the request": (hello.request(b"evil.test", method=b"G\rT"), True),
    "a name behind an address": (hello.request(b"[::1].evil.test"), True),
    "a name in brackets": (hello.request(b"[evil.test]"), True),
    "a name behind an address and a port": (hello.request(b"[::1]:80 evil.test"), True),
    "an address in the target, a name in the line": (hello.request(b"evil.test", b"http://[::1]:80/"), True),
    "a return behind the version": (hello.request(b"evil.test").replace(b"1.1\r\n", b"1.1\r"), True),
    "a return alone in a line": (hello.request(b"evil.test").replace(b"Accept: */*\r\n", b"\r\r\n"), True),
    "a method of any length": (hello.request(b"evil.test", method=b"M" * 300), True),
    "behind blanks and tabs": (b"  \t" + hello.request(b"evil.test"), True),
    "behind blanks of Python's": (b"\x0b\x1c" + hello.request(b"evil.test"), True),
    "a method before blanks of Python's": (hello.request(b"evil.test").replace(b"GET ", b"GET\x0c"), True),
    "blanks before an allowed one": (b" \t" + hello.request(b"ok.test"), False),
    "behind a hundred empty lines": (b"\r\n" * 100 + hello.request(b"evil.test"), True),
    "the name in the next line": (hello.request(b"\r\n evil.test"), True),
    "more of the name in the next line": (hello.request(b"ok.test\r\n\tevil.test"), True),
    "the name behind a return": (hello.request(b"\revil.test"), True),
    "no name": (hello.request(b""), False),
    "blanks before a later line": (hello.request(b"ok.test").replace(b"\r\n\r\n", b"\r\nx: y\r\n z\r\n\r\n"), False),
    "the version at the end of a path": (hello.request(b"evil.test", b"/HTTP/1.1"), True),
}


@pytest.mark.parametrize("case", HTTP)
def test_requests_in_the_clear(checked: Prober, case: str) -> None:
    stream, expected = HTTP[case]
    for pieces in ([stream], halves(stream), bytewise(stream)):
        assert checked.refused(pieces) is expected


@pytest.mark.parametrize("pieces", [[hello.records(EVIL)], bytewise(hello.records(EVIL))], ids=["at once", "bytewise"])
def test_a_program_hears_of_a_refusal_soon(checked: Prober, tree: Tree, server: Server, pieces: list[bytes]) -> None:
    """Without more, the kernel would try again for a quarter of an hour."""

    def act() -> int:
        with socket.create_connection((HOME, server.port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(30)
            for piece in pieces:
                sock.sendall(piece)
            return errno_of(lambda: sock.recv(1))

    assert tree.run(act) == errno.ETIMEDOUT


# --- ways around the reader ---------------------------------------------------------------------------------------


def test_a_byte_that_the_peer_leaves_out_is_refused(checked: Prober, tree: Tree, server: Server) -> None:
    """Urgent data is no part of the stream that a server reads: the name would be another one there."""
    stream = hello.records(EVIL).replace(b"evil", b"ok")

    def act() -> list[int]:
        with socket.create_connection((HOME, server.port)) as sock:
            sock.sendall(stream[:-6])
            sock.send(stream[-6:-5], socket.MSG_OOB)
            left = unsent(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return [left]

    assert tree.run(act)[0] > 0
    assert [r.detail for r in tree.net_denials()] == [UNCLEAR]


def test_what_was_handed_over_changes_after_it_was_sent() -> None:
    """Why it matters who owns a page: outside, where nobody looks, the peer reads what stands there when it reads."""
    with socket.create_server((HOME, 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        reader, writer = os.pipe()
        memory = vmsplice(writer, hello.records(OK))
        os.splice(reader, sock.fileno(), len(hello.records(OK)))
        assert unsent(sock) == 0
        memory[: len(hello.records(EVIL))] = hello.records(EVIL)
        stream, _ = listener.accept()
        with stream:
            assert stream.recv(4096) == hello.records(EVIL)[: len(hello.records(OK))]


@pytest.mark.parametrize("way", ["splice", "sendfile", "zero copy"])
def test_bytes_that_may_still_change_are_refused(
    checked: Prober, tree: Tree, server: Server, tmp_path: object, way: str
) -> None:
    stream = hello.records(OK)

    def act() -> list[int]:
        with socket.create_connection((HOME, server.port)) as sock:
            if way == "zero copy":
                sock.setsockopt(socket.SOL_SOCKET, 60, 1)
                sock.sendall(stream * 40, 0x4000000)
            else:
                with open(f"{tmp_path}/hello", "w+b") as file:
                    file.write(stream)
                    file.flush()
                    if way == "sendfile":
                        os.sendfile(sock.fileno(), file.fileno(), 0, len(stream))
                    else:
                        reader, writer = os.pipe()
                        os.splice(file.fileno(), writer, len(stream), 0)
                        os.splice(reader, sock.fileno(), len(stream))
            left = unsent(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return [left]

    assert in_child(act)[0] == 0
    assert tree.run(act)[0] > 0
    assert [r.detail for r in tree.net_denials()] == [UNCLEAR]


@pytest.mark.parametrize("way", ["files", "memory"])
@pytest.mark.parametrize(
    ("copied", "handed_over", "expected"),
    [
        (hello.request(b"ok.test", method=b"POST"), b"body" * 99, False),
        (hello.records(OK) + hello.records(bytes(99), kind=hello.DATA), bytes(99), False),
        (hello.request(b"evil.test", method=b"POST"), b"body", True),
        (hello.request(b"ok.test")[:-2], b"\r\nbody", True),
        (hello.records(OK)[:-7], hello.records(OK)[-7:], True),
        (hello.records(EVIL), bytes(99), True),
    ],
    ids=["head", "hello", "another head", "the end of a head", "a name", "another hello"],
)
def test_what_was_copied_is_read_though_more_is_handed_over_in_the_same_packet(
    checked: Prober,
    tree: Tree,
    server: Server,
    tmp_path: Path,
    copied: bytes,
    handed_over: bytes,
    expected: bool,
    way: str,
) -> None:
    """As programs do that send a head and have the kernel send the file."""

    def act() -> list[int]:
        with (tmp_path / "body").open("w+b") as file, socket.create_connection((HOME, server.port)) as sock:
            file.write(handed_over)
            file.flush()
            sock.send(copied, socket.MSG_MORE)
            if way == "files":
                os.sendfile(sock.fileno(), file.fileno(), 0, len(handed_over))
            else:
                reader, writer = os.pipe()
                memory = vmsplice(writer, handed_over)
                os.splice(reader, sock.fileno(), len(handed_over))
                assert memory[:1] == handed_over[:1]  # still there
            left = unsent(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return [left, sock.getsockname()[1]]

    left, sender = in_child(act)
    assert left == 0
    assert server.got(sender) == copied + handed_over
    left, sender = tree.run(act)
    assert (left > 0) is expected
    assert server.got(sender) == (b"" if expected else copied + handed_over)


def vmsplice(writer: int, data: bytes) -> mmap.mmap:
    """Memory of this process, not a copy of it, into a pipe."""
    memory = mmap.mmap(-1, 1 << 16)
    memory.write(data)
    vector = struct.pack("=QQ", ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(data))
    assert ctypes.CDLL(None).vmsplice(writer, vector, 1, 0) == len(data)
    return memory


def test_after_the_hello_they_may_change(checked: Prober, tree: Tree, server: Server, tmp_path: object) -> None:
    def act() -> list[int]:
        with open(f"{tmp_path}/data", "w+b") as file, socket.create_connection((HOME, server.port)) as sock:
            file.write(hello.records(bytes(100), kind=hello.DATA))
            file.flush()
            sock.sendall(hello.records(OK) + hello.records(b"x", kind=hello.DATA))
            os.sendfile(sock.fileno(), file.fileno(), 0, 105)
            return [unsent(sock)]

    assert tree.run(act) == [0]


def test_a_socket_that_connects_anew_is_judged_anew(checked: Prober, tree: Tree, server: Server) -> None:
    def act() -> list[int]:
        found = []
        with socket.socket(socket.AF_INET, TCP) as sock:
            for name in (b"ok.test", b"evil.test", b"ok.test"):
                sock.connect((HOME, server.port))
                sock.sendall(hello.records(hello.named(name)) + hello.records(b"x", kind=hello.DATA))
                found.append(unsent(sock))
                disconnect(sock)
        return found

    first, second, third = tree.run(act)
    assert (first, third) == (0, 0)
    assert second > 0


def disconnect(sock: socket.socket) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(sock.fileno(), bytes(16), 16) == 0


def test_a_hello_in_the_first_packet_of_all_is_judged(tree: Tree) -> None:
    """TCP fast open: data travels with the request to connect."""
    tree.guard(hosts=hosts(SniMode.CHECK), listen=(allow(HOME, 32, 5),))
    learn_every_port(tree)

    def act(name: bytes) -> list[object]:
        """Whether data came with the request, and what the server has got."""
        assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        Path("/proc/sys/net/ipv4/tcp_fastopen").write_text(str(1 | 2 | 4 | 0x200 | 0x400))  # both ends, no cookies
        with socket.create_server((HOME, 0)) as listener, socket.socket(socket.AF_INET, TCP) as sock:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 8)
            listener.setblocking(False)
            sock.sendto(hello.records(hello.named(name)), socket.MSG_FASTOPEN, listener.getsockname())
            stream, _ = listener.accept()
            with stream:
                facts = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                came = b""
                with contextlib.suppress(BlockingIOError):
                    came = stream.recv(4096, socket.MSG_DONTWAIT)
                return [bool(facts[5] & 32), came.hex()]

    def outside() -> object:
        return in_child(lambda: act(b"evil.test"))

    assert outside() == [True, hello.records(EVIL).hex()]
    assert tree.run(lambda: act(b"ok.test")) == [True, hello.records(OK).hex()]
    assert tree.run(lambda: act(b"evil.test")) == [False, ""]
    assert {r.host for r in tree.net_denials()} == {"evil.test"}


def test_a_name_that_is_too_old_holds_what_it_let_begin(checked: Prober, tree: Tree, server: Server) -> None:
    def act(name: bytes) -> list[int]:
        learn(tree, server.port)
        with socket.create_connection((HOME, server.port)) as sock:
            learn(tree, server.port, lasts_ns=-1)
            sock.sendall(hello.records(hello.named(name)))
            left = unsent(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return [left]

    assert tree.run(lambda: act(b"ok.test")) == [0]
    assert tree.run(lambda: act(b"evil.test"))[0] > 0


def test_a_connection_of_its_own_server_is_not_looked_at(tree: Tree, server: Server) -> None:
    """A client's address may have been learned by a name; what goes back to it is no hello."""
    tree.guard(hosts=hosts(SniMode.REQUIRE), listen=(allow(HOME, 32, 5),))
    learn_every_port(tree)
    reader, writer = os.pipe()

    def serve() -> list[str]:
        with socket.create_server((HOME, 0)) as listener:
            os.write(writer, f"{listener.getsockname()[1]}\n".encode())
            stream, _ = listener.accept()
            with stream:
                stream.sendall(b"\x16\x03\x01\0\4\2\0\0\0")
                return [stream.recv(10).decode()]

    def visit() -> None:
        with socket.create_connection((HOME, int(os.read(reader, 100)))) as sock:
            came.append(sock.recv(100))
            sock.sendall(b"thanks")

    came: list[bytes] = []
    visitor = threading.Thread(target=visit)
    visitor.start()
    assert tree.run(serve) == ["thanks"]
    visitor.join()
    assert came == [b"\x16\x03\x01\0\4\2\0\0\0"]


def learn_every_port(tree: Tree) -> None:
    value = encode.learned([LearnedRule(time.monotonic_ns() + HOUR_NS, 7, 0, 65535, 3)])
    tree.session.maps["mg_names"].set(mapped(HOME), value)


# --- datagrams ----------------------------------------------------------------------------------------------------


def send_datagram(port: int, connected: bool) -> None:
    with socket.socket(socket.AF_INET, UDP) as sock:
        if connected:
            sock.connect((HOME, port))
            sock.send(b"x")
        else:
            sock.sendto(b"x", (HOME, port))


QUIC = 443


@pytest.mark.parametrize("connected", [False, True])
def test_datagrams_that_hide_their_host(tree: Tree, connected: bool) -> None:
    def outcomes(mode: SniMode, protocols: int) -> list[int]:
        assert tree.network is not None
        tree.network.prepared(hosts=hosts(mode)).take_over()
        found = []
        for port in (QUIC, QUIC + 1):
            learn(tree, port, protocols=protocols)
            found.append(tree.run(lambda port=port: errno_of(lambda: send_datagram(port, connected))))
        return found

    tree.guard()
    assert in_child(lambda: errno_of(lambda: send_datagram(QUIC, connected))) == 0
    assert outcomes(SniMode.CHECK, 3) == [errno.EPERM, 0]
    assert [(r.port, r.detail) for r in tree.net_denials()] == [(QUIC, NO_HOST)]
    assert outcomes(SniMode.REQUIRE, 3) == [errno.EPERM, errno.EPERM]
    assert outcomes(SniMode.REQUIRE, 2) == [0, 0]
    assert outcomes(SniMode.CHECK, 2) == [0, 0]
    assert outcomes(SniMode.OFF, 3) == [0, 0]


def test_an_address_may_be_tried_out_without_sending(tree: Tree) -> None:
    """The C library connects a datagram socket to each address of a name, to sort them."""
    tree.guard(hosts=hosts(SniMode.REQUIRE))
    learn(tree, QUIC)

    def act() -> None:
        with socket.socket(socket.AF_INET, UDP) as sock:
            sock.connect((HOME, QUIC))

    assert tree.run(lambda: errno_of(act)) == 0
    assert tree.net_denials() == []


# --- against an oracle --------------------------------------------------------------------------------------------

names = st.sampled_from(
    [
        b"ok.test",
        b"OK.test.",
        b"a.wild.test",
        b"evil.test",
        b"shut.wild.test",
        b"1.2.3.4",
        b"fe80::1",
        b"bad.cafe:1",
        b"evil.test:.wild.test",
        b"evil..wild.test",
        b"",
    ]
)
extensions = st.one_of(
    st.builds(
        lambda each, kind: hello.server_name(*each, kind=kind),
        st.lists(names, max_size=2),
        st.sampled_from([0, 0, 0, 1]),
    ),
    st.tuples(st.sampled_from([hello.ECH, hello.KEY_SHARE, hello.PADDING, hello.EARLY]), st.binary(max_size=40)),
    st.tuples(st.just(0), st.binary(max_size=8)),
)
messages = st.one_of(
    st.builds(hello.hello, st.none() | st.lists(extensions, max_size=3), st.binary(max_size=33)),
    st.binary(max_size=12),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Records that hold hellos, or nearly."""
    made = b""
    for message in draw(st.lists(messages, min_size=1, max_size=3)):
        sizes = draw(st.lists(st.integers(0, 60), max_size=4))
        made += hello.records(message, sizes, version=draw(st.sampled_from([b"\3\1", b"\3\3", b"\1\1"])))
        if draw(st.booleans()):
            made += hello.records(draw(st.binary(max_size=3)), kind=draw(st.sampled_from([20, 21, 23, 24])))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(made) - 1))
        change = draw(st.sampled_from(["byte", "cut", "more"]))
        made = (
            made[:at]
            + (b"" if change == "cut" else draw(st.binary(min_size=1, max_size=2)))
            + made[at + (change == "byte") :]
        )
    return bytes([draw(st.sampled_from([22, 22, 22, 21, 20, 23, 24]))]) + made[1:]


@pytest.mark.parametrize("mode", [SniMode.CHECK, SniMode.REQUIRE])
def test_the_kernel_reads_what_an_oracle_reads(tree: Tree, server: Server, mode: SniMode) -> None:
    tree.guard(hosts=hosts(mode))
    learn(tree, server.port)
    with prober(tree, server) as probe:

        @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(streams(), st.lists(st.integers(1, 200), max_size=5))
        @example(hello.records(EVIL), [3])
        def check(stream: bytes, cuts: list[int]) -> None:
            pieces, at = [], 0
            for size in cuts:
                pieces.append(stream[at : at + size])
                at += size
            pieces = [piece for piece in (*pieces, stream[at:]) if piece]
            expected = hello.refused(stream, is_allowed, without=mode is SniMode.CHECK)
            assert probe.refused(pieces) is expected

        check()


heads = st.lists(
    st.sampled_from(
        [
            b"GET",
            b" ",
            b"/",
            b"http://",
            b"ok.test",
            b"evil.test",
            b" HTTP/1.1",
            b"\r\n",
            b"\n",
            b"\r",
            b"Host",
            b":",
            b"x",
            b"@",
            b"80",
        ]
    ),
    max_size=14,
).map(b"".join)


def test_a_head_is_read_the_same_in_whatever_pieces(checked: Prober) -> None:
    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(heads, st.integers(1, 30))
    def check(tail: bytes, size: int) -> None:
        stream = b"GET " + tail
        cut = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert checked.refused(cut) is checked.refused([stream])

    check()
