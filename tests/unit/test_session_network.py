"""Destinations by name, socket rows and resolvers, without the kernel: the look-up is a stand-in."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcpguard.model.access import Effect
from mcpguard.model.policy import PROTO_TCP, PROTO_UDP, NameEntry, NetEntry, Policy, SocketEntry, User
from mcpguard.model.profile import SystemSwitches
from mcpguard.model.rule import Origin
from mcpguard.policy.network import mapped
from mcpguard.session import answers as session_answers
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


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the resolver says: host -> addresses; a missing host does not exist."""
    known: dict[str, list[str]] = {}

    def look_up(host: bytes, *_rest: object, **_named: object) -> list[Any]:
        if host.decode() not in known:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(0, 0, 0, "", (address, 0)) for address in known[host.decode()]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def looked_up(policy: Policy) -> tuple[set[str], network.Names]:
    names = network.Names(policy)
    names.begin()
    rows = names.rows(wait_s=10)
    names.close()
    return {row[0] for row in rows}, names


def test_every_address_of_an_allowed_name_is_reachable_on_its_port(answers: dict[str, list[str]]) -> None:
    answers["api.example.org"] = ["198.51.100.7", "2001:4860::7"]
    names = network.Names(make_policy(names=(name("api.example.org"),)))
    names.begin()
    rows = names.rows(wait_s=10)
    assert {(row[0], row[1]) for row in rows} == {(mapped(text).hex(), 128) for text in answers["api.example.org"]}
    assert all(port[:2] == [443, 443] for row in rows for port in row[2])


def test_events_can_tell_the_name_of_an_address(answers: dict[str, list[str]]) -> None:
    answers["api.example.org"] = ["8.8.4.4"]
    _rows, names = looked_up(make_policy(names=(name("api.example.org"),)))
    assert names.host_of == {"8.8.4.4": "api.example.org"}


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.1.1",
        "169.254.169.254",
        "::1",
        "fe80::1",
        "0.0.0.0",
        "::ffff:10.0.0.1",
        "100.100.100.200",
        "fd00:ec2::254",
        "64:ff9b::a00:1",
    ],
)
def test_a_name_never_opens_this_host_its_network_or_metadata(answers: dict[str, list[str]], address: str) -> None:
    answers["rebound.example.org"] = [address]
    assert looked_up(make_policy(names=(name("rebound.example.org"),)))[0] == set()


def test_an_unknown_name_and_a_wildcard_allow_nothing(answers: dict[str, list[str]]) -> None:
    answers["*.example.org"] = ["8.8.4.4"]
    policy = make_policy(names=(name("gone.example.org"), name("*.example.org")))
    assert looked_up(policy)[0] == set()
    assert [entry.pattern for entry in network.wildcards(policy)] == ["*.example.org"]


def test_a_name_that_does_not_answer_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_n: silent.wait(30) and [])
    fixed = NetEntry(mapped("8.8.8.8"), 128, 53, 53, BOTH, Effect.ALLOW, 0)
    names = network.Names(make_policy(names=(name("slow.example.org"),), connect=(fixed,)))
    names.begin()
    assert [row[0] for row in names.rows(wait_s=0.01)] == [mapped("8.8.8.8").hex()]
    names.close()
    silent.set()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From now on the resolver says nothing."""
    end = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_n: end.wait(30) and [])
    yield
    end.set()


def test_a_name_that_answered_a_moment_ago_is_not_waited_for(
    answers: dict[str, list[str]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    answers["a.example.org"] = ["8.8.4.4", "10.0.0.1"]
    kept = tmp_path / "names.json"
    policy = make_policy(names=(name("a.example.org"), name("gone.example.org")))
    first = network.Names(policy, kept)
    first.begin()
    rows = first.rows(wait_s=10)
    first.close()
    request.getfixturevalue("silent")
    later = network.Names(policy, kept)
    later.begin()
    assert later.rows(wait_s=3600) == rows, "it would have waited an hour"
    assert later.host_of == {"8.8.4.4": "a.example.org"}
    later.close()


def test_a_kept_answer_is_asked_for_again_when_the_agent_runs(answers: dict[str, list[str]], tmp_path: Path) -> None:
    kept = tmp_path / "names.json"
    session_answers.save(kept, {"a.example.org": (time.time(), ["8.8.4.4"])})
    answers["a.example.org"] = ["8.8.8.8"]
    names = network.Names(make_policy(names=(name("a.example.org"),)), kept)
    names.begin()
    assert [row[0] for row in names.rows()] == [mapped("8.8.4.4").hex()]
    published: queue.Queue[list[Any]] = queue.Queue()
    names.keep_fresh(published.put)
    assert {row[0] for row in published.get(timeout=30)} == {mapped("8.8.4.4").hex(), mapped("8.8.8.8").hex()}
    names.close()
    assert session_answers.load(kept)["a.example.org"][1] == ["8.8.8.8"]


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"a.example.org": 1}',
        '{"a.example.org": [NOW, ["nonsense"]]}',
        '{"a.example.org": [OLD, ["8.8.4.4"]]}',
    ],
)
def test_an_old_answer_or_a_broken_file_counts_for_nothing(tmp_path: Path, content: str) -> None:
    kept = tmp_path / "names.json"
    now = time.time()
    kept.write_text(content.replace("NOW", str(now)).replace("OLD", str(now - session_answers.KEPT_S - 1)))
    names = network.Names(make_policy(names=(name("a.example.org"),)), kept)
    names.begin()
    assert names.rows(wait_s=0.01) == []
    names.close()


def test_an_address_that_comes_late_is_published_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_a, **_n: (answer.wait(30) and [(0, 0, 0, "", ("8.8.4.4", 0))]) or []
    )
    names = network.Names(make_policy(names=(name("slow.example.org"),)))
    names.begin()
    assert names.rows(wait_s=0.01) == []
    published: queue.Queue[list[Any]] = queue.Queue()
    names.keep_fresh(published.put)
    answer.set()
    assert [row[0] for row in published.get(timeout=30)] == [mapped("8.8.4.4").hex()]
    names.close()


def test_the_hosts_resolvers_are_reachable_only_when_a_name_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "resolvers", lambda: ["192.0.2.53"])
    without = make_policy()
    assert network.with_resolvers(without) == without
    policy = network.with_resolvers(make_policy(names=(name("a.example.org"),)))
    (entry,) = policy.connect
    assert (entry.address, entry.port_low, entry.port_high) == (mapped("192.0.2.53"), 53, 53)
    assert policy.rules[entry.rule].text == "the host's own resolvers, port 53"
    assert len(policy.rules) == len(policy.reasons)


def test_name_servers_are_read_as_programs_read_them(tmp_path: Any) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("# c\nsearch example.org\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver nonsense\n")
    assert network.resolvers(str(file)) == ["192.0.2.1", "fe80::1"]
    assert network.resolvers(str(tmp_path / "missing")) == []


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


def addresses(rows: list[Any]) -> set[bytes]:
    return {bytes.fromhex(row[0]) for row in rows}


def test_a_name_that_is_added_while_the_session_runs_is_looked_up_and_stays(answers: dict[str, list[str]]) -> None:
    answers.update({"a.example": ["192.0.2.1"], "b.example": ["192.0.2.2"]})
    names = network.Names(make_policy(names=(name("a.example"),)))
    names.begin()
    names.rows(wait_s=10)
    more = make_policy(names=(name("a.example"), name("b.example"), name("*.example")))
    with names.adopting(more) as rows:
        assert addresses(rows) == {mapped("192.0.2.1"), mapped("192.0.2.2")}
    assert addresses(names.rows()) == {mapped("192.0.2.1"), mapped("192.0.2.2")}
    names.close()


def test_what_nobody_took_is_not_kept(answers: dict[str, list[str]]) -> None:
    answers.update({"b.example": ["192.0.2.2"]})
    fixed = NetEntry(mapped("198.51.100.1"), 128, 1, 1, BOTH, Effect.ALLOW, 0)
    names = network.Names(make_policy())
    with (
        pytest.raises(OSError, match="refused"),
        names.adopting(make_policy(names=(name("b.example"),), connect=(fixed,))) as rows,
    ):
        assert addresses(rows) == {mapped("192.0.2.2"), mapped("198.51.100.1")}
        raise OSError("refused")
    assert names.rows() == []
    names.close()


def test_the_first_name_of_a_session_is_looked_up_again_later(answers: dict[str, list[str]]) -> None:
    """The thread that does so begins with it."""
    published: queue.Queue[list[Any]] = queue.Queue()
    names = network.Names(make_policy())
    names.keep_fresh(published.put)
    with names.adopting(make_policy(names=(name("late.example"),))) as rows:
        assert rows == []
    answers["late.example"] = ["192.0.2.3"]
    names.begin()
    assert addresses(published.get(timeout=10)) == {mapped("192.0.2.3")}
    names.close()


def test_resolvers_are_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "resolvers", lambda: ["192.0.2.53"])
    once = network.with_resolvers(make_policy(names=(name("a.example"),)))
    assert network.with_resolvers(once) is once
