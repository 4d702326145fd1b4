"""Names that the hosts file settles, and socket rows, without the kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mcpguard.model.access import Effect
from mcpguard.model.policy import PROTO_TCP, PROTO_UDP, NameEntry, Policy, SocketEntry, User
from mcpguard.model.profile import SystemSwitches
from mcpguard.model.rule import Origin
from mcpguard.policy.network import mapped
from mcpguard.session import network

BOTH = PROTO_TCP | PROTO_UDP


def make_policy(**changes: Any) -> Policy:
    user = User(1000, 1000, (), "user", "/home/user")
    origin = Origin("p", "p.yaml", 1, "default")
    empty = Policy(
        "", "p", (), user, "/w", "/tmp", (origin,), ("",), b"", (), (), (), (), (), (), (), SystemSwitches()
    )  # fmt: skip
    return replace(empty, **changes)


def name(pattern: str, port: int = 443) -> NameEntry:
    return NameEntry(pattern, port, port, BOTH, Effect.ALLOW, 0)


HOSTS = """\
127.0.0.1   localhost dev.example.org
10.1.2.3    git.example.org git   # ours
fd00::7     git.example.org
169.254.169.254 meta.example.org
203.0.113.9 A.Example.ORG.
not-an-address git.example.org
203.0.113.10
"""


def opened(tmp_path: Path, *names: NameEntry) -> network.FixedNames:
    hosts = tmp_path / "hosts"
    hosts.write_text(HOSTS)
    return network.fixed_names(make_policy(names=names), str(hosts))


def test_a_name_of_the_hosts_file_is_open_at_its_addresses_on_its_port(tmp_path: Path) -> None:
    found = opened(tmp_path, name("git.example.org"), name("a.example.org", 80))
    assert {(entry.address, entry.port_low) for entry in found.entries} == {
        (mapped("10.1.2.3"), 443),
        (mapped("fd00::7"), 443),
        (mapped("203.0.113.9"), 80),
    }
    assert found.hosts == {
        "10.1.2.3": "git.example.org",
        "fd00::7": "git.example.org",
        "203.0.113.9": "a.example.org",
    }


def test_the_hosts_file_opens_neither_this_host_nor_metadata(tmp_path: Path) -> None:
    assert opened(tmp_path, name("dev.example.org"), name("meta.example.org")).entries == ()


def test_a_wildcard_holds_for_the_hosts_file(tmp_path: Path) -> None:
    assert set(opened(tmp_path, name("*.example.org")).hosts) == {"10.1.2.3", "fd00::7", "203.0.113.9"}


def test_without_a_hosts_file_nothing_is_fixed(tmp_path: Path) -> None:
    assert network.fixed_names(make_policy(names=(name("a.example.org"),)), str(tmp_path / "none")).entries == ()


def test_socket_rules_cross_as_subtrees_in_both_spellings_of_run() -> None:
    sockets = (
        SocketEntry("/w/**", Effect.ALLOW, 1),
        SocketEntry("/run/docker.sock", Effect.DENY, 2),
        SocketEntry("@name*", Effect.ALLOW, 3),
        SocketEntry("/tmp/tmux-*", Effect.DENY, 4),
        SocketEntry("/tmp/ssh-*/agent.*", Effect.DENY, 5),
        SocketEntry("/tmp/mine-*/s", Effect.ALLOW, 6),
        SocketEntry("/tmp/*/s", Effect.DENY, 7),
    )
    rows = network.unix_rows(sockets)
    assert ["/w", 1, 1] in rows
    assert ["/run/docker.sock", 0, 2] in rows
    assert ["@name*", 1, 3] in rows
    assert ["/tmp/tmux-*", 0, 4] in rows
    assert ["/tmp/ssh-*", 0, 5] in rows, "a denial may reach further"
    # A folder that is named so is no pattern.
    assert network.unix_rows([SocketEntry("/w/a[*]", Effect.ALLOW, 1)]) == [["/w/a[*]", 1, 1]]
    assert network.unix_rows([SocketEntry("/w/[[]x]/sock*", Effect.ALLOW, 1)]) == [["/w/[[]x]/sock*", 1, 1]]
    assert not any(row[2] in (6, 7) for row in rows), "an allowance never does, nor a denial of nearly everything"
