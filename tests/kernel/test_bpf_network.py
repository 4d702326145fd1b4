"""Every way to a destination: what no rule allows is refused with EPERM and on record, and works outside the tree."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from bpf_tree import Tree, allow, deny, each, errno_of, in_child

from mcpguard.model.access import Verdict
from mcpguard.wire.records import NetRecord

pytestmark = pytest.mark.kernel

IPPROTO_MPTCP = 262
MSG_FASTOPEN = 0x20000000
AF_UNSPEC = 0
V4, V6, MAPPED = "127.0.0.1", "::1", "::ffff:127.0.0.1"
ANYWHERE = (allow("0.0.0.0", 0, 90), allow("::", 0, 91))


@pytest.fixture
def tcp() -> Iterator[int]:
    """Port of a listener outside the tree, on every address of both families."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64) as server:
        yield int(server.getsockname()[1])


@pytest.fixture
def udp() -> Iterator[int]:
    """Port of a datagram socket outside the tree, on every address of both families."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", 0))
        yield int(server.getsockname()[1])


def connect(family: int, kind: int, host: str, port: int, protocol: int = 0) -> None:
    with socket.socket(family, kind, protocol) as sock:
        sock.connect((host, port))


def send_to(family: int, host: str, port: int) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (host, port))


def send_fast_open(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.sendto(b"x", MSG_FASTOPEN, (host, port))


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def send_unspecified(host: str, port: int) -> None:
    """An IPv4 send whose address claims no family: the kernel takes it as IPv4."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("=H", AF_UNSPEC) + struct.pack("!H4s8x", port, socket.inet_aton(host))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _checked(libc.sendto(sock.fileno(), b"x", 1, 0, address, len(address)))


def send_ipv4_address_on_ipv6_socket(host: str, port: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(host))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        _checked(libc.sendto(sock.fileno(), b"x", 1, 0, address, len(address)))


def send_many(host: str, port: int) -> None:
    """sendmmsg(2) with one message."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.create_string_buffer(
        struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(host)), 16
    )
    byte = ctypes.create_string_buffer(b"x")
    vector = struct.pack("=QQ", ctypes.addressof(byte), 1)
    held = ctypes.create_string_buffer(vector, 16)
    header = struct.pack("=QI4xQQQQi4xI4x", ctypes.addressof(address), 16, ctypes.addressof(held), 1, 0, 0, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _checked(libc.sendmmsg(sock.fileno(), ctypes.create_string_buffer(header, 64), 1, 0))


# name: (act on host and port, is it TCP, the address in the record)
WAYS: dict[str, tuple[Callable[[int], None], bool, str, str]] = {
    "tcp4": (lambda p: connect(socket.AF_INET, socket.SOCK_STREAM, V4, p), True, V4, "connect"),
    "tcp6": (lambda p: connect(socket.AF_INET6, socket.SOCK_STREAM, V6, p), True, V6, "connect"),
    "tcp-mapped": (lambda p: connect(socket.AF_INET6, socket.SOCK_STREAM, MAPPED, p), True, V4, "connect"),
    "tcp4-wildcard": (lambda p: connect(socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0", p), True, V4, "connect"),
    "tcp6-wildcard": (lambda p: connect(socket.AF_INET6, socket.SOCK_STREAM, "::", p), True, V6, "connect"),
    "tcp-fast-open": (lambda p: send_fast_open(V4, p), True, V4, "connect"),
    "udp4-connected": (lambda p: connect(socket.AF_INET, socket.SOCK_DGRAM, V4, p), False, V4, "connect"),
    "udp6-connected": (lambda p: connect(socket.AF_INET6, socket.SOCK_DGRAM, V6, p), False, V6, "connect"),
    "udp4": (lambda p: send_to(socket.AF_INET, V4, p), False, V4, "sendmsg"),
    "udp6": (lambda p: send_to(socket.AF_INET6, V6, p), False, V6, "sendmsg"),
    "udp-mapped": (lambda p: send_to(socket.AF_INET6, MAPPED, p), False, V4, "sendmsg"),
    "udp4-wildcard": (lambda p: send_to(socket.AF_INET, "0.0.0.0", p), False, V4, "sendmsg"),
    "udp-unspecified": (lambda p: send_unspecified(V4, p), False, V4, "sendmsg"),
    "udp-v4-on-v6": (lambda p: send_ipv4_address_on_ipv6_socket(V4, p), False, V4, "sendmsg"),
    "udp-sendmmsg": (lambda p: send_many(V4, p), False, V4, "sendmsg"),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_leads_to_a_destination_without_a_rule(way: str, tree: Tree, tcp: int, udp: int) -> None:
    act, stream, address, op = WAYS[way]
    port = tcp if stream else udp
    tree.guard()
    assert in_child(lambda: errno_of(lambda: act(port))) == 0, "the control must work"
    assert tree.net_denials() == [], "a task outside the tree is no concern of ours"
    assert tree.run(lambda: errno_of(lambda: act(port))) == errno.EPERM
    (record,) = tree.net_denials()
    assert (record.op, record.verdict, record.address, record.port) == (op, Verdict.DENY, address, port)
    assert record.rule == 0
    assert record.head.pid > 0
    assert record.head.ppid == os.getpid()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_works_where_a_rule_allows_it(way: str, tree: Tree, tcp: int, udp: int) -> None:
    act, stream, address, _ = WAYS[way]
    port = tcp if stream else udp
    tree.guard(connect=(allow(address, 32 if "." in address else 128, 7, ports=(port, port)),))
    assert tree.run(lambda: errno_of(lambda: act(port))) == 0
    assert tree.net_denials() == []
    rules = {r.rule for r in tree.activity() if isinstance(r, NetRecord)}
    assert rules == {7}


@pytest.mark.parametrize("way", WAYS)
def test_a_deny_inside_an_allow_names_its_rule(way: str, tree: Tree, tcp: int, udp: int) -> None:
    act, stream, address, _ = WAYS[way]
    port = tcp if stream else udp
    wide = (90 if "." in address else 91, ANYWHERE[0 if "." in address else 1])
    narrow = deny(address, 32 if "." in address else 128, 8)
    # As the policy's table does it: the exact prefix repeats what the wide one says, the deny first.
    both = (narrow[0], narrow[1], [*narrow[2], *wide[1][2]])
    tree.guard(connect=(wide[1], both))
    assert in_child(lambda: errno_of(lambda: act(port))) == 0, "the control must work"
    assert tree.run(lambda: errno_of(lambda: act(port))) == errno.EPERM
    assert [r.rule for r in tree.net_denials()] == [8]


def test_ports_and_protocols_of_a_rule_are_kept(tree: Tree, tcp: int, udp: int) -> None:
    tree.guard(connect=(allow(V4, 32, 5, ports=(tcp, tcp), protocols=1),))
    assert tree.run(lambda: errno_of(lambda: connect(socket.AF_INET, socket.SOCK_STREAM, V4, tcp))) == 0
    assert tree.run(lambda: errno_of(lambda: connect(socket.AF_INET, socket.SOCK_STREAM, V4, tcp - 1))) == errno.EPERM
    assert tree.run(lambda: errno_of(lambda: send_to(socket.AF_INET, V4, tcp))) == errno.EPERM
    refused = [(r.op, r.port, r.rule) for r in tree.net_denials()]
    assert refused == [("connect", tcp - 1, 0), ("sendmsg", tcp, 0)]


@contextlib.contextmanager
def _ping_for_everybody() -> Iterator[None]:
    path = "/proc/sys/net/ipv4/ping_group_range"
    with open(path) as setting:
        before = setting.read()
    try:
        with open(path, "w") as setting:
            setting.write("0 2147483647")
        yield
    finally:
        with open(path, "w") as setting:
            setting.write(before)


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "name"),
    [
        (socket.AF_INET, socket.SOCK_DGRAM, 1, "icmp"),
        (socket.AF_INET6, socket.SOCK_DGRAM, 58, "icmpv6"),
        (socket.AF_INET, socket.SOCK_RAW, 1, "icmp"),
        (socket.AF_INET, socket.SOCK_RAW, 255, "raw"),
        (socket.AF_INET6, socket.SOCK_RAW, 17, "udp"),
        (socket.AF_INET, socket.SOCK_DGRAM, 136, "udplite"),
    ],
)
def test_a_socket_without_destination_hooks_cannot_be_made(
    family: int, kind: int, protocol: int, name: str, tree: Tree
) -> None:
    tree.guard(connect=ANYWHERE)
    with _ping_for_everybody():
        made = lambda: socket.socket(family, kind, protocol).close()  # noqa: E731
        assert in_child(lambda: errno_of(made)) == 0, "the control must work"
        assert tree.run(lambda: errno_of(made)) == errno.EPERM
    (record,) = tree.net_denials()
    assert (record.op, record.protocol) == ("socket", name)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_mptcp_is_told_to_be_missing(family: int, tree: Tree) -> None:
    """It shares a stream out over several ways, each of which would show a part of a hello. Programs go on with TCP."""
    tree.guard(connect=ANYWHERE)
    made = lambda: socket.socket(family, socket.SOCK_STREAM, IPPROTO_MPTCP).close()  # noqa: E731
    assert in_child(lambda: errno_of(made)) == 0, "the control must work"
    assert tree.run(lambda: errno_of(made)) == errno.EPROTONOSUPPORT
    (record,) = tree.net_denials()
    assert (record.op, record.protocol) == ("socket", "mptcp")


def test_a_connected_datagram_socket_may_send_with_a_control_message(tree: Tree, udp: int) -> None:
    tree.guard(connect=(allow(V4, 32, 3),))

    def act() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((V4, udp))
            sock.sendmsg([b"x"], [(socket.IPPROTO_IP, socket.IP_TTL, struct.pack("=i", 9))])

    assert tree.run(lambda: errno_of(act)) == 0
    assert tree.net_denials() == []


def test_an_address_option_is_stopped_at_the_packet(tree: Tree, udp: int) -> None:
    """Source routes name another destination than the one that was judged; packets with IP options never leave."""
    tree.guard(connect=(allow(V4, 32, 3),))

    def act() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([7, 7, 4, 0, 0, 0, 0, 0]))
            sock.sendto(b"x", (V4, udp))

    assert in_child(lambda: errno_of(act)) == 0
    assert tree.run(lambda: errno_of(act)) == errno.EPERM
    assert [r.op for r in tree.net_denials()] == ["packet"]


def test_a_socket_connected_before_the_hooks_sends_nothing_after(tree: Tree, udp: int) -> None:
    reader, writer = os.pipe()

    def act() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((V4, udp))
            before = errno_of(lambda: sock.send(b"x"))
            assert before == 0
            tree.guard()
            after = errno_of(lambda: sock.send(b"x"))
            assert tree.network is not None
            return after

    assert tree.run(act) == errno.EPERM
    os.close(reader)
    os.close(writer)
    (record,) = tree.net_denials()
    assert (record.op, record.address, record.port, record.protocol) == ("packet", V4, udp, "udp")


def test_audit_lets_the_default_through_and_no_deny(tree: Tree, tcp: int) -> None:
    tree.guard(connect=(deny(V6, 128, 4),), audit=True)
    assert tree.run(lambda: errno_of(lambda: connect(socket.AF_INET, socket.SOCK_STREAM, V4, tcp))) == 0
    assert tree.run(lambda: errno_of(lambda: connect(socket.AF_INET6, socket.SOCK_STREAM, V6, tcp))) == errno.EPERM
    verdicts = {(r.address, r.verdict, r.rule) for r in tree.net_denials()}
    assert (V4, Verdict.AUDIT, 0) in verdicts
    assert (V6, Verdict.DENY, 4) in verdicts


def test_destinations_can_be_replaced_while_the_tree_runs(tree: Tree, tcp: int) -> None:
    tree.guard()
    act = lambda: connect(socket.AF_INET, socket.SOCK_STREAM, V4, tcp)  # noqa: E731
    assert tree.network is not None
    assert tree.run(lambda: errno_of(act)) == errno.EPERM
    tree.network.update_connect([allow(V4, 32, 6)])
    assert tree.run(lambda: errno_of(act)) == 0
    tree.network.update_connect([allow("10.0.0.0", 8, 6)])
    assert tree.run(lambda: errno_of(act)) == errno.EPERM
    assert [(r.address, r.port, r.rule) for r in tree.net_denials()] == [(V4, tcp, 0)] * 2


def test_an_established_connection_survives_a_change_of_names(tree: Tree, tcp: int) -> None:
    tree.guard(connect=(allow(V4, 32, 6),))
    ready, go = os.pipe(), os.pipe()

    def act() -> int:
        with socket.create_connection((V4, tcp)) as sock:
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            return errno_of(lambda: sock.sendall(b"more"))

    pid = os.fork()
    if pid == 0:
        try:
            tree.leaf.enter()
            os._exit(act())
        finally:
            os._exit(99)
    os.read(ready[0], 1)
    assert tree.network is not None
    tree.network.update_connect([])
    os.write(go[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert tree.net_denials() == []
    for fd in (*ready, *go):
        os.close(fd)


def test_counts_of_allowed_traffic_add_up(tree: Tree, udp: int) -> None:
    tree.guard(connect=(allow(V4, 32, 3),))

    def act() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(1000):
                sock.sendto(b"x", (V4, udp))
        return os.getpid()

    pid = tree.run(act)
    records = [r for r in tree.activity() if isinstance(r, NetRecord) and r.head.pid == pid]
    assert 0 < len(records) < 20, "aggregated, not one by one"
    assert tree.network is not None
    rest = sum(count for one, count in tree.session.final_counts() if one in {r.series for r in records})
    assert sum(r.count for r in records) + rest == 1000


def test_a_loop_of_refusals_does_not_flood_and_none_is_missing(tree: Tree) -> None:
    tree.guard()

    def act() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            return sum(errno_of(lambda: sock.sendto(b"x", (V4, 9))) == errno.EPERM for _ in range(1000))

    assert tree.run(act) == 1000
    records = tree.net_denials()
    assert 0 < len(records) < 20
    series = {r.series for r in records}
    rest = sum(count for one, count in tree.session.final_counts() if one in series)
    assert sum(r.count for r in records) + rest == 1000


def test_enforcement_stays_when_we_are_gone(tree: Tree, tcp: int) -> None:
    tree.guard()
    assert tree.network is not None
    assert tree.network.detach_verify() == []
    tree.let_go()
    act = lambda: connect(socket.AF_INET, socket.SOCK_STREAM, V4, tcp)  # noqa: E731
    assert dict(each(tree, act)) == {"outside": 0, "inside": errno.EPERM}
    assert [(r.op, r.port, r.rule) for r in tree.net_denials()] == [("connect", tcp, 0)]


def test_no_request_slips_through_a_storm(tree: Tree, tcp: int) -> None:
    """Membership is asked of the cgroup, so it holds for every thread, under load, from the first instruction on."""
    tree.guard().trace()
    processes, threads, tries = 8, 8, 200

    def one() -> int:
        passed = 0
        for _ in range(tries):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                passed += errno_of(lambda s=sock: s.connect((V4, tcp))) != errno.EPERM
        return passed

    def process() -> int:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(lambda _: one(), range(threads)))

    def act() -> int:
        children = []
        for _ in range(processes):
            pid = os.fork()
            if pid == 0:
                os._exit(min(process(), 255))
            children.append(pid)
        return sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)

    assert tree.run(act) == 0
    records = tree.net_denials()
    assert len({r.head.pid for r in records}) == processes
    series = {r.series for r in records}
    rest = sum(count for one, count in tree.session.final_counts() if one in series)
    assert sum(r.count for r in records) + rest == processes * threads * tries
