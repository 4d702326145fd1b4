"""No byte of the tree reaches a destination that the profile does not name, whichever call carries it."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from harness import need_root
from matrix import Duel, Task, duel
from netlab import FAR, FAR6, FORBIDDEN, METADATA, NEAR, Lab, Listener, everywhere, lab, listening, visitor
from world import World

pytestmark = pytest.mark.kernel

PROFILE = f"""\
name: matrix
extends: [dev-tools]
files:
  write: ["{{workspace}}"]
  execute: ["{{workspace}}"]
network:
  allow:
    - "{FAR}:5000-5003"
    - "10.77.0.0/24:6000"
    - "[{FAR6}]:5000"
    - "127.0.0.1:7000"
  deny:
    - "{FORBIDDEN}"
  listen: ["127.0.0.1", "::1"]
"""
FAR_PORTS, NEAR_PORTS = (80, 5000, 5003, 5004, 5999, 6000), (7000, 7001)
V6 = {"family": int(socket.AF_INET6)}


@dataclass(frozen=True)
class Way:
    """One way to send, and what follows from the protocol that it uses."""

    name: str
    act: str
    more: dict[str, Any]

    @property
    def protocol(self) -> str:
        return "udp" if self.act.startswith("udp") or self.act in ("raw", "packet") else "tcp"


V4_WAYS = (
    Way("tcp", "tcp", {}),
    Way("tcp fast open", "tcp_fast_open", {}),
    Way("tcp without waiting", "tcp_without_waiting", {}),
    Way("tcp after another", "tcp_after_another", {"first": 5000}),
    Way("udp", "udp", {}),
    Way("connected udp", "udp_connected", {}),
    Way("udp sendmsg", "udp_sendmsg", {}),
    Way("udp sendmmsg", "udp_sendmmsg", {}),
    Way("udp without a family", "udp_unspec", {}),
    Way("udp connected elsewhere", "udp_after_connecting_elsewhere", {"first": 5000}),
)
V6_WAYS = (
    Way("tcp6", "tcp", V6),
    Way("tcp6 fast open", "tcp_fast_open", V6),
    Way("udp6", "udp", V6),
    Way("connected udp6", "udp_connected", V6),
)
LOCAL_WAYS = tuple(way for way in V4_WAYS if "first" not in way.more)
REFUSED = {
    "an undeclared port": (FAR, 5999, V4_WAYS),
    "a port above the range": (FAR, 5004, V4_WAYS[:1]),
    "an address denied inside an allowed range": (FORBIDDEN, 6000, V4_WAYS[:1] + V4_WAYS[4:5]),
    "the metadata address": (METADATA, 80, V4_WAYS[:1] + V4_WAYS[4:5]),
    "undeclared loopback": ("127.0.0.1", 7001, LOCAL_WAYS),
    "undeclared IPv6": (FAR6, 5999, V6_WAYS),
    "undeclared IPv6 loopback": ("::1", 7001, V6_WAYS),
    "undeclared IPv4 as IPv6": (f"::ffff:{FAR}", 5999, V6_WAYS),
    "undeclared loopback as IPv6": ("::ffff:127.0.0.1", 7001, V6_WAYS),
}
ALLOWED = {
    "a declared port": (FAR, 5000, V4_WAYS),
    "the end of a range": (FAR, 5003, V4_WAYS[:1]),
    "a network": (FAR, 6000, V4_WAYS[:1] + V4_WAYS[4:5]),
    "declared IPv6": (FAR6, 5000, V6_WAYS),
    "declared IPv4 as IPv6": (f"::ffff:{FAR}", 5000, V6_WAYS),
    "declared loopback": ("127.0.0.1", 7000, V4_WAYS[:1] + V4_WAYS[4:5]),
}
UNNAMEABLE = ("ping", "raw", "packet")
CLIENTS = {
    "bash": ["bash", "-c", f"echo TOKEN > /dev/tcp/{FAR}/5999"],
    "curl": ["curl", "-sm5", "-d", "TOKEN", "--http0.9", f"http://{FAR}:5999/"],
    "curl by number": ["curl", "-sm5", "-d", "TOKEN", "--http0.9", "http://172818434:5999/"],
    "node": ["node", "-e", f"require('net').connect(5999,'{FAR}',function(){{this.end('TOKEN')}})"],
}
FAMILIES = {
    "vsock": (40, 1, 0),
    "packet": (17, 3, 0x0300),
    "raw IPv4": (2, 3, 1),
    "raw IPv6": (10, 3, 58),
    "kernel crypto": (38, 5, 0),
    "netfilter netlink": (16, 3, 12),
    "audit netlink": (16, 3, 9),
    "uevent netlink": (16, 3, 15),
}


# The text that each act sends, by the root of its world: what arrives tells who sent it.
tokens: dict[Any, dict[str, str]] = {}


def id_of(where: str, way: Way | str) -> str:
    return f"{where}: {way.name if isinstance(way, Way) else way}"


def cases(table: dict[str, tuple[str, int, tuple[Way, ...]]]) -> list[Any]:
    return [
        pytest.param(where, way, id=id_of(where, way).replace(" ", "-"))
        for where, (_, _, ways) in table.items()
        for way in ways
    ]


def tasks(world: World) -> Sequence[Task]:
    wanted = []
    tokens[world.root] = {}

    def token_for(id: str) -> str:
        return tokens[world.root].setdefault(id, secrets.token_hex(8))

    for where, (host, port, ways) in (REFUSED | ALLOWED).items():
        for way in ways:
            id = id_of(where, way)
            sent: dict[str, Any] = {"how": way.act, "host": host, "port": port, "token": token_for(id), **way.more}
            wanted.append(Task(id, "send", sent))
    for act in UNNAMEABLE:
        more = {"source": NEAR, "device": "cable"} if act == "packet" else {}
        sent = {"how": act, "host": FAR, "port": 5999, "token": token_for(act), **more}
        wanted.append(Task(act, "send", sent))
    for client, words in CLIENTS.items():
        command = [word.replace("TOKEN", token_for(client)) for word in words]
        wanted.append(Task(client, "run_program", {"command": command}))
    for name, (family, kind, protocol) in FAMILIES.items():
        wanted.append(Task(name, "open_family", {"family": family, "kind": kind, "protocol": protocol}))
    wanted += [
        Task("mptcp", "open_family", {"family": int(socket.AF_INET), "kind": int(socket.SOCK_STREAM), "protocol": 262}),
        Task("itself", "serve_itself", {"host": "127.0.0.1"}),
        Task("itself over IPv6", "serve_itself", {"host": "::1", **V6}),
        Task("listen at home", "listen", {"host": "127.0.0.1", "port": 0}),
        Task("listen outside", "listen", {"host": NEAR, "port": 0}),
        Task("listen everywhere", "listen", {"host": "0.0.0.0", "port": 8123}),
        Task("be reached", "be_reached", {"port_file": str(world.project / "port")}),
        Task("receive outside", "listen", {"host": NEAR, "port": 0, "kind": int(socket.SOCK_DGRAM)}),
    ]
    return wanted


@dataclass
class Network:
    """The duel, and what arrived at the two sides."""

    duel: Duel
    far: Listener
    near: Listener

    def arrived(self, id: str, guarded: bool) -> bool:
        """Whether the text of an act got anywhere at all."""
        world = self.duel.caged if guarded else self.duel.free
        token = tokens[world.root][id]
        return any(listener.has(name, token) for listener in (self.far, self.near) for name in listener.arrived)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    need_root()
    with lab() as net, fought_in(net) as told:
        yield told


@contextlib.contextmanager
def fought_in(net: Lab) -> Iterator[Network]:
    """The network duel in a lab; the listeners are asked once, after the last act."""
    near, far = net.enter(net.near), net.enter(net.far)
    with (
        listening(everywhere(FAR_PORTS), far) as far_end,
        listening(everywhere(NEAR_PORTS), near) as near_end,
        contextlib.ExitStack() as visitors,
    ):

        def prepare(world: World) -> Sequence[Task]:
            visitors.enter_context(visitor(NEAR, world.project / "port", far))
            return tasks(world)

        fought = visitors.enter_context(duel(PROFILE, prepare, near))
        far_end.stop()
        near_end.stop()
        yield Network(fought, far_end, near_end)


@pytest.mark.parametrize(("where", "way"), cases(REFUSED))
def test_a_destination_without_a_rule_is_refused(where: str, way: Way, network: Network) -> None:
    id = id_of(where, way)
    network.duel.assert_refused(id)
    assert network.duel.guarded[id].errno in ("EPERM", "EACCES"), network.duel.guarded[id]
    assert network.arrived(id, guarded=False)
    assert not network.arrived(id, guarded=True)


@pytest.mark.parametrize(("where", "way"), cases(REFUSED))
def test_the_refusal_is_recorded_with_its_destination(where: str, way: Way, network: Network) -> None:
    host, port, _ = REFUSED[where]
    network.duel.assert_recorded(id_of(where, way))
    seen = [(e.get("address"), e.get("port"), e.get("protocol")) for e in network.duel.denials(id_of(where, way))]
    assert (host.removeprefix("::ffff:"), port, way.protocol) in seen


@pytest.mark.parametrize(("where", "way"), cases(ALLOWED))
def test_a_declared_destination_is_reached(where: str, way: Way, network: Network) -> None:
    id = id_of(where, way)
    network.duel.assert_allowed(id)
    assert network.arrived(id, guarded=True)


def test_a_denied_address_is_named_by_its_own_rule(network: Network) -> None:
    where = "an address denied inside an allowed range"
    network.duel.assert_recorded(id_of(where, V4_WAYS[0]), FORBIDDEN)


@pytest.mark.parametrize("act", UNNAMEABLE)
def test_what_no_rule_can_name_is_refused(act: str, network: Network) -> None:
    network.duel.assert_refused(act)
    assert network.duel.guarded[act].errno in ("EPERM", "EACCES"), network.duel.guarded[act]
    assert network.arrived(act, guarded=False) or act == "ping"  # the kernel at the far end answers it, no listener
    assert not network.arrived(act, guarded=True)
    network.duel.assert_recorded(act)


@pytest.mark.parametrize("client", CLIENTS)
def test_everyday_clients_are_refused_alike(client: str, network: Network) -> None:
    assert network.arrived(client, guarded=False)
    assert not network.duel.guarded[client].ok
    assert not network.arrived(client, guarded=True)
    network.duel.assert_recorded(client)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_socket_of_a_kind_that_no_rule_covers_is_refused(family: str, network: Network) -> None:
    # What this kernel does not have at all is refused to everybody, and cannot tell anything.
    if network.duel.control[family].errno != "EAFNOSUPPORT":
        network.duel.assert_refused(family)
    assert network.duel.guarded[family].errno in ("EPERM", "EACCES"), network.duel.guarded[family]
    network.duel.assert_recorded(family)


def test_a_program_that_wants_several_ways_at_once_is_told_that_there_is_no_such_protocol(network: Network) -> None:
    network.duel.assert_refused("mptcp")
    assert network.duel.guarded["mptcp"].errno == "EPROTONOSUPPORT"
    details = [(e["op"], e["protocol"], e["detail"].partition(";")[0]) for e in network.duel.denials("mptcp")]
    assert ("socket", "mptcp", "quiet: programs ask for MPTCP and do without") in details


@pytest.mark.parametrize("id", ["itself", "itself over IPv6"])
def test_the_tree_reaches_what_it_serves_itself(id: str, network: Network) -> None:
    network.duel.assert_allowed(id)
    assert network.duel.guarded[id].out == "hello"


def test_listening_is_open_at_home_and_refused_outside(network: Network) -> None:
    network.duel.assert_allowed("listen at home")
    for id in ("listen outside", "receive outside"):
        network.duel.assert_refused(id)
        network.duel.assert_recorded(id)


def test_listening_everywhere_never_opens_more_than_home(network: Network) -> None:
    assert network.duel.control["listen everywhere"].out == "0.0.0.0"
    assert network.duel.guarded["listen everywhere"].out == "127.0.0.1"
    pid = network.duel.guarded["listen everywhere"].pid
    told = [e for e in network.duel.events if e["op"] == "bind" and e.get("pid") == pid]
    assert [e["detail"].partition(";")[0] for e in told] == ["narrowed"], told


def test_nobody_outside_comes_in_to_a_port_that_the_kernel_picked(network: Network) -> None:
    assert network.duel.control["be reached"].out == "hello"
    network.duel.assert_refused("be reached")
    network.duel.assert_recorded("be reached")
