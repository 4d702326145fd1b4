"""The table of hosts says of every name what the rules by name say, in one question for the longest end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.errors import PolicyError
from mcpguard.model.access import Effect
from mcpguard.model.policy import PROTO_TCP, PROTO_UDP, NameEntry
from mcpguard.model.profile import SniMode
from mcpguard.policy.decide import name_order
from mcpguard.policy.hosts import HostRow, hides_its_host, host_table
from mcpguard.policy.network import name_matches
from mcpguard.wire import _abi, encode

labels = st.sampled_from(["a", "b", "ab"])
hosts = st.lists(labels, min_size=1, max_size=4).map(".".join)
patterns = st.one_of(hosts, st.lists(labels, min_size=2, max_size=3).map(lambda words: "*." + ".".join(words)))
entries = st.builds(
    NameEntry,
    patterns,
    st.sampled_from([0, 80, 443]),
    st.sampled_from([80, 443, 65535]),
    st.sampled_from([PROTO_TCP, PROTO_UDP, PROTO_TCP | PROTO_UDP]),
    st.sampled_from([Effect.ALLOW, Effect.DENY]),
    st.integers(1, 9),
)


def of_rules(names: list[NameEntry], host: str, port: int) -> tuple[str, int]:
    """What `decide_name` would say, for TCP."""
    fitting = [
        e for e in names if name_matches(e.pattern, host) and e.port_low <= port <= e.port_high and e.protocols & 1
    ]
    first = next(iter(sorted(fitting, key=name_order)), None)
    return (first.effect.value, first.rule) if first else ("default", 0)


def of_table(rows: list[HostRow], host: str, port: int) -> tuple[str, int]:
    """As the kernel asks: the row with the longest key that the name's key begins with, by the bytes of the map."""
    table = encode.host_table(
        (row.pattern, [(p.port_low, p.port_high, p.protocols, p.effect, p.rule) for p in row.ports]) for row in rows
    )
    asked = bytes([_abi.MG_HOST_NAMED]) + host[::-1].encode() + b"\0"
    best = b""
    for key in table:
        bits, whole = _abi.MG_HOST_KEY.unpack(key)
        prefix = whole[: bits // 8]
        if asked.startswith(prefix) and len(prefix) > len(best):
            best, value = prefix, table[key]
    if not best:
        return "default", 0
    count, packed = _abi.MG_PORT_RULES.unpack(value)
    for rule, low, high, protocols, verdict, _ in list(_abi.MG_PORT_RULE.iter_unpack(packed))[:count]:
        if protocols & 1 and low <= port <= high:
            return ("allow" if verdict == _abi.MG_ALLOW else "deny", rule)
    return "default", 0


@given(st.lists(entries, max_size=6), hosts, st.sampled_from([80, 443, 8080]))
def test_the_table_answers_as_the_rules_do(names: list[NameEntry], host: str, port: int) -> None:
    table = of_table(host_table(names, SniMode.CHECK), host, port)
    rules = of_rules(names, host, port)
    assert table[0] == rules[0]
    if rules[0] == "deny":
        assert any(e.rule == table[1] and e.effect is Effect.DENY and name_matches(e.pattern, host) for e in names)


def test_switched_off_there_is_no_table() -> None:
    assert host_table([NameEntry("a.b", 0, 65535, 3, Effect.ALLOW, 1)], SniMode.OFF) == []


def test_too_many_ports_of_one_name_are_refused_in_words() -> None:
    names = [NameEntry("a.b", port, port, 3, Effect.ALLOW, port) for port in range(1, 34)]
    with pytest.raises(PolicyError) as caught:
        host_table(names, SniMode.CHECK)
    assert "a.b" in caught.value.what


def test_the_longest_name_and_the_longest_wildcard_fit_a_key() -> None:
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert len(name) == 253
    for pattern in (name, "*." + name[2:]):
        (key,) = encode.host_table([(pattern, [])])
        assert _abi.MG_HOST_KEY.unpack(key)[0] <= 8 * _abi.MG_HOST_BYTES


@pytest.mark.parametrize(
    ("mode", "port", "hidden"),
    [
        (SniMode.OFF, 443, False),
        (SniMode.CHECK, 443, True),
        (SniMode.CHECK, 123, False),
        (SniMode.REQUIRE, 123, True),
    ],
)
def test_datagrams_that_hide_their_host(mode: SniMode, port: int, hidden: bool) -> None:
    assert hides_its_host(port, mode) is hidden
