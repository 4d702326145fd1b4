"""Network targets: what is understood, what is refused, and the table that decides an address in one lookup."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.errors import PolicyError
from mcpguard.model.access import Effect, Verdict
from mcpguard.model.policy import PROTO_TCP, PROTO_UDP, NameEntry, NetEntry
from mcpguard.model.rule import NetDirection, NetRule, Origin
from mcpguard.policy.decide import answer_address
from mcpguard.policy.network import MAX_PORT_RULES, PortRule, connect_table, mapped, name_matches, parse_rule

BOTH = PROTO_TCP | PROTO_UDP
ORIGIN = Origin("p", "p.yaml", 7, "allow")


def parse(target: str, direction: NetDirection = NetDirection.CONNECT, effect: Effect = Effect.ALLOW) -> list[object]:
    return list(parse_rule(NetRule(effect, direction, target, ORIGIN), 5))


def net(address: str, prefix: int, low: int = 0, high: int = 65535, protocols: int = BOTH) -> NetEntry:
    return NetEntry(mapped(address), prefix, low, high, protocols, Effect.ALLOW, 5)


def name(pattern: str, low: int = 0, high: int = 65535, protocols: int = BOTH) -> NameEntry:
    return NameEntry(pattern, low, high, protocols, Effect.ALLOW, 5)


@pytest.mark.parametrize(
    ("target", "entries"),
    [
        ("10.1.0.0/16:5432", [net("10.1.0.0", 112, 5432, 5432)]),
        ("169.254.169.254", [net("169.254.169.254", 128)]),
        ("0.0.0.0/0:443", [net("0.0.0.0", 96, 443, 443)]),
        ("::1", [net("::1", 128)]),
        ("[::1]:80", [net("::1", 128, 80, 80)]),
        ("[2001:db8::/32]:80-90/udp", [net("2001:db8::", 32, 80, 90, PROTO_UDP)]),
        ("fe80::/10", [net("fe80::", 10)]),
        ("::ffff:10.0.0.1", [net("10.0.0.1", 128)]),
        ("localhost:3000-3999", [net("127.0.0.0", 104, 3000, 3999), net("::1", 128, 3000, 3999)]),
        ("API.Example.com.:443/tcp", [name("api.example.com", 443, 443, PROTO_TCP)]),
        ("*.github.com:443", [name("*.github.com", 443, 443)]),
        # Who names no port does not mean names over TLS.
        ("intranet", [name("intranet", 0, 852), name("intranet", 854)]),
        ("intranet:1-65535", [name("intranet", 1)]),
        ("intranet:853", [name("intranet", 853, 853)]),
        ("xn--bcher-kva.example", [name("xn--bcher-kva.example", 0, 852), name("xn--bcher-kva.example", 854)]),
    ],
)
def test_a_target_is_read_as_written(target: str, entries: list[object]) -> None:
    assert parse(target) == entries


@pytest.mark.parametrize(
    ("target", "address", "port", "denied"),
    [
        ("203.0.113.2", "64:ff9b::203.0.113.2", 8080, True),
        ("203.0.113.2", "2002:cb00:7102::1", 8080, True),
        ("203.0.113.2", "64:ff9b::203.0.113.3", 8080, False),
        ("203.0.113.2", "2002:cb00:7103::1", 8080, False),
        ("203.0.113.0/24:25", "64:ff9b::203.0.113.77", 25, True),
        ("203.0.113.0/24:25", "64:ff9b::203.0.113.77", 26, False),
        ("2001:db8::/32", "2002:2001:db8::", 8080, False),
    ],
)
def test_a_denied_ipv4_range_is_denied_by_way_of_the_gateways_that_carry_to_it(
    target: str, address: str, port: int, denied: bool
) -> None:
    wide = [*parse("64:ff9b::/96"), *parse("2002::/16")]
    rules = [one for one in (*wide, *parse(target, effect=Effect.DENY)) if isinstance(one, NetEntry)]
    verdict = answer_address(rules, mapped(address), port, PROTO_TCP).verdict
    assert verdict is (Verdict.DENY if denied else Verdict.ALLOW)


def test_a_star_listens_on_every_address() -> None:
    assert parse("*:8080", NetDirection.LISTEN) == [NetEntry(bytes(16), 0, 8080, 8080, BOTH, Effect.ALLOW, 5)]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("*", "every destination"),
        ("*:443", "every destination"),
        ("*.com", "whole registry"),
        ("*.", "whole registry"),
        ("a.*.com", "whole first part"),
        ("*a.b.com", "whole first part"),
        ("127.1", "usual spelling"),
        ("2130706433", "usual spelling"),
        ("0x7f000001", "usual spelling"),
        ("0x7f.0.0.1", "usual spelling"),
        ("0177.0.0.1", "usual spelling"),
        ("127.0.0.1.", "usual spelling"),
        ("1.2.3.256", "usual spelling"),
        ("10.0.0.0/33", "usual spelling"),
        ("example.com/24", "usual spelling"),
        ("10.0.0.0/255.0.0.0", "number of its bits"),
        ("10.0.0.1/8", "bits set"),
        ("2001:db8::1/32", "bits set"),
        ("::/0", "every IPv4"),
        ("fe80::1%eth0", "zone"),
        ("[fe80::1%eth0]:80", "zone"),
        ("[::1", "brackets"),
        ("[::1]80", "brackets"),
        ("[example.com]:80", "brackets"),
        ("a b.com", "space"),
        ("a\0.com", "control"),
        ("a.com\r\n", "control"),
        ("", "no host"),
        (":80", "no host"),
        ("bücher.example", "ASCII"),
        ("a..com", "part of a host name"),
        ("-a.com", "part of a host name"),
        ("a_b$.com", "part of a host name"),
        ("x" * 64 + ".com", "part of a host name"),
        (".".join(["x" * 60] * 5), "at most 253"),
        ("a.com:0", "1 to 65535"),
        ("a.com:65536", "1 to 65535"),
        ("a.com:90-80", "backwards"),
        ("a.com:http", "not a port"),
        ("a.com:", "not a port"),
        ("a.com:80-", "not a port"),
        ("a.com/sctp", "not a protocol"),
        ("https://a.com/x", "URL"),
    ],
)
def test_a_target_with_two_readings_or_too_wide_is_refused_at_its_place(target: str, reason: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse(target)
    assert caught.value.what.startswith("p.yaml:7: ")
    assert "\n" not in caught.value.what
    assert caught.value.code == "policy.network"
    assert reason in caught.value.why


def test_a_range_with_host_bits_is_answered_with_the_network() -> None:
    with pytest.raises(PolicyError) as caught:
        parse("10.1.2.3/16")
    assert "10.1.0.0/16" in caught.value.do


def test_a_program_cannot_listen_on_a_name() -> None:
    with pytest.raises(PolicyError, match="example"):
        parse("example.com:80", NetDirection.LISTEN)


def test_a_deny_may_hold_every_address() -> None:
    assert parse("::/0", effect=Effect.DENY) == [NetEntry(bytes(16), 0, 0, 65535, BOTH, Effect.DENY, 5)]


def test_a_wildcard_matches_every_depth_below_and_never_the_apex() -> None:
    assert name_matches("*.a.b", "x.a.b")
    assert name_matches("*.a.b", "Y.x.A.B.")
    assert not name_matches("*.a.b", "a.b")
    assert not name_matches("*.a.b", ".a.b")
    assert not name_matches("*.a.b", "xa.b")
    assert not name_matches("*.a.b", "x.a.b.evil")
    assert name_matches("a.b", "A.b.")
    assert not name_matches("a.b", "x.a.b")


def test_a_longer_prefix_inherits_the_ports_of_those_that_cover_it() -> None:
    wide = NetEntry(mapped("10.0.0.0"), 104, 443, 443, PROTO_TCP, Effect.ALLOW, 1)
    narrow = NetEntry(mapped("10.1.0.0"), 112, 22, 22, PROTO_TCP, Effect.ALLOW, 2)
    other = NetEntry(mapped("10.2.0.0"), 112, 0, 65535, BOTH, Effect.DENY, 3)
    rows = {row.address: row for row in connect_table([narrow, other, wide])}
    assert set(rows[mapped("10.1.0.0")].ports) == {
        PortRule(22, 22, PROTO_TCP, Effect.ALLOW, 2),
        PortRule(443, 443, PROTO_TCP, Effect.ALLOW, 1),
    }
    assert rows[mapped("10.2.0.0")].ports == (PortRule(0, 65535, BOTH, Effect.DENY, 3),)
    assert rows[mapped("10.0.0.0")].prefix == 104


def test_too_many_port_rules_at_one_address_are_refused() -> None:
    entries = [net("10.0.0.1", 128, port, port) for port in range(1, 2 * MAX_PORT_RULES + 3, 2)]
    with pytest.raises(PolicyError) as caught:
        connect_table(entries)
    assert caught.value.code == "policy.too-many-ports"
    assert "10.0.0.1" in caught.value.what


ADDRESSES = ["10.0.0.1", "10.0.1.1", "10.1.0.1", "11.0.0.1", "::1", "2001:db8::1", "2001:db9::1"]
ENTRIES = st.builds(
    lambda address, length, low, span, protocols, effect, rule: _entry(
        address, length, low, span, protocols, effect, rule
    ),
    st.sampled_from(ADDRESSES),
    st.integers(0, 128),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from([PROTO_TCP, PROTO_UDP, BOTH]),
    st.sampled_from([Effect.ALLOW, Effect.ALLOW, Effect.DENY]),
    st.integers(1, 9),
)


def _entry(address: str, length: int, low: int, span: int, protocols: int, effect: Effect, rule: int) -> NetEntry:
    network = ipaddress.IPv6Network((mapped(address), length), strict=False)
    return NetEntry(network.network_address.packed, length, low, low + span, protocols, effect, rule)


@settings(max_examples=150, deadline=None)
@given(st.lists(ENTRIES, max_size=8))
def test_the_longest_prefix_alone_decides_as_all_rules_together(entries: list[NetEntry]) -> None:
    rows = connect_table(entries)
    for address in ADDRESSES:
        raw = mapped(address)
        covering = [row for row in rows if _covers(row.address, row.prefix, raw)]
        ports = max(covering, key=lambda row: row.prefix).ports if covering else ()
        for port in range(9):
            for protocol in (PROTO_TCP, PROTO_UDP):
                fits = [p for p in ports if p.port_low <= port <= p.port_high and p.protocols & protocol]
                matching = [
                    e
                    for e in entries
                    if _covers(e.address, e.prefix, raw)
                    and e.port_low <= port <= e.port_high
                    and e.protocols & protocol
                ]
                allowed = bool(matching) and all(e.effect is Effect.ALLOW for e in matching)
                assert (bool(fits) and fits[0].effect is Effect.ALLOW) == allowed
                answer = answer_address(entries, raw, port, protocol)
                assert (answer.verdict is Verdict.ALLOW) == allowed
                assert answer.rule == (fits[0].rule if fits else 0)


def _covers(address: bytes, prefix: int, wanted: bytes) -> bool:
    return ipaddress.IPv6Address(wanted) in ipaddress.IPv6Network((address, prefix))
