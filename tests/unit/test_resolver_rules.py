"""What the policy says of names, held against an independent reading; and of the addresses that they lead to."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.model.access import Effect, Verdict
from mcpguard.model.policy import PROTO_TCP, PROTO_UDP, NameEntry, NetEntry
from mcpguard.policy.addresses import inner
from mcpguard.policy.network import mapped, name_matches
from mcpguard.resolver.rules import Decision, Opening, Rules

BOTH = PROTO_TCP | PROTO_UDP
NOBODY = bytes(16)


def allow(pattern: str, low: int = 443, high: int = 0, protocols: int = BOTH, rule: int = 1) -> NameEntry:
    return NameEntry(pattern, low, high or low, protocols, Effect.ALLOW, rule)


def deny(pattern: str, low: int = 0, high: int = 65535, protocols: int = BOTH, rule: int = 9) -> NameEntry:
    return NameEntry(pattern, low, high, protocols, Effect.DENY, rule)


def rules(*names: NameEntry, connect: tuple[NetEntry, ...] = (), audit: bool = False) -> Rules:
    return Rules(names, connect, audit=audit)


LABELS = st.sampled_from(["a", "b", "example", "com", "xn--bcher-kva", "evil-example"])
NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join)


def matches_by_labels(pattern: str, host: str) -> bool:
    """An independent reading: compare labels from the right."""
    wanted, given_ = pattern.split(".")[::-1], host.rstrip(".").lower().split(".")[::-1]
    if wanted[-1] != "*":
        return wanted == given_
    return len(given_) >= len(wanted) and all(a == b for a, b in zip(wanted[:-1], given_, strict=False))


@given(pattern=NAMES, wild=st.booleans(), host=NAMES, upper=st.booleans(), dot=st.booleans())
def test_the_matcher_agrees_with_an_independent_one(
    pattern: str, wild: bool, host: str, upper: bool, dot: bool
) -> None:
    written = f"*.{pattern}" if wild else pattern
    asked = (host.upper() if upper else host) + ("." if dot else "")
    assert name_matches(written, asked) == matches_by_labels(written, asked)


@given(st.lists(st.tuples(NAMES, st.booleans(), st.booleans()), max_size=6), NAMES, NAMES)
def test_one_more_denial_never_allows_more(entries: list[tuple[str, bool, bool]], another: str, host: str) -> None:
    made = [(deny if denies else allow)(f"*.{name}" if wild else name) for name, wild, denies in entries]
    before = rules(*made).of_name(host, NOBODY)
    after = rules(*made, deny(another)).of_name(host, NOBODY)
    assert after.verdict is Verdict.DENY or after == before


@given(
    st.tuples(st.integers(1, 30), st.integers(0, 9), st.integers(1, 3)),
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 9), st.integers(1, 3)), max_size=4),
)
def test_what_is_opened_is_what_is_allowed_less_what_is_denied(
    given_: tuple[int, int, int], taken: list[tuple[int, int, int]]
) -> None:
    low, more, protocols = given_
    denied = [deny("a.b", one, one + size, mask) for one, size, mask in taken]
    found = rules(allow("a.b", low, low + more, protocols), *denied).of_name("a.b", NOBODY)
    for port, protocol in itertools.product(range(45), (PROTO_TCP, PROTO_UDP)):
        wanted = (
            low <= port <= low + more
            and bool(protocols & protocol)
            and not any(e.port_low <= port <= e.port_high and e.protocols & protocol for e in denied)
        )
        opened = any(o.low <= port <= o.high and o.protocols & protocol for o in found.openings)
        assert opened == wanted
    assert (found.verdict is Verdict.ALLOW) == bool(found.openings)


@pytest.mark.parametrize(
    ("host", "verdict"),
    [
        ("api.example.com", Verdict.ALLOW),
        ("deep.below.wild.org", Verdict.ALLOW),
        ("wild.org", Verdict.DENY),
        ("evilwild.org", Verdict.DENY),
        ("api.example.com.evil.net", Verdict.DENY),
        ("evilapi.example.com", Verdict.DENY),
        ("secret.wild.org", Verdict.DENY),
        ("com", Verdict.DENY),
    ],
)
def test_names_and_their_look_alikes(host: str, verdict: Verdict) -> None:
    found = rules(allow("api.example.com"), allow("*.wild.org"), deny("secret.wild.org")).of_name(host, NOBODY)
    assert found.verdict is verdict


def test_a_denial_of_some_ports_leaves_the_name_and_takes_the_ports() -> None:
    found = rules(allow("a.b", 1, 65535), deny("a.b", 22, 22)).of_name("a.b", NOBODY)
    assert found.openings == (Opening(1, 21, BOTH, 1), Opening(23, 65535, BOTH, 1))


def test_a_name_whose_every_port_is_denied_is_refused_by_that_rule() -> None:
    found = rules(allow("a.b", 443), deny("a.b", 400, 500)).of_name("a.b", NOBODY)
    assert (found.verdict, found.rule) == (Verdict.DENY, 9)


def test_a_denied_name_is_denied_as_what_an_alias_leads_to() -> None:
    made = rules(allow("a.b", 1, 65535), deny("c.d"), deny("e.f", 22, 22))
    found = made.of_name("a.b", NOBODY)
    assert made.of_alias(found, "x.y") == found
    assert made.of_alias(found, "c.d") == Decision(Verdict.DENY, 9)
    assert made.of_alias(found, "e.f").openings == (Opening(1, 21, BOTH, 1), Opening(23, 65535, BOTH, 1))


def test_a_name_without_a_rule_is_no_alias_to_a_denied_one_either() -> None:
    made = rules(deny("c.d"), connect=(network("192.0.2.53", 128, 53),), audit=True)
    for server in ("192.0.2.53", "192.0.2.54"):
        found = made.of_name("a.b", mapped(server))
        assert found.verdict is not Verdict.DENY
        assert made.of_alias(found, "c.d").verdict is Verdict.DENY


def test_in_audit_what_no_rule_allows_is_asked_for_and_opens_nothing() -> None:
    found = rules(audit=True).of_name("a.b", NOBODY)
    assert (found.verdict, found.openings) == (Verdict.AUDIT, ())
    assert rules(deny("a.b"), audit=True).of_name("a.b", NOBODY).verdict is Verdict.DENY


def network(address: str, prefix: int, port: int = 0, effect: Effect = Effect.ALLOW) -> NetEntry:
    return NetEntry(mapped(address), prefix, port, port or 65535, BOTH, effect, 5)


@pytest.mark.parametrize(
    ("entry", "server", "straight"),
    [
        (network("192.0.2.53", 128, 53), "192.0.2.53", True),
        (network("192.0.2.0", 120), "192.0.2.53", True),
        (network("192.0.2.53", 128, 443), "192.0.2.53", False),
        (network("127.0.0.0", 104), "127.0.0.53", False),
        (network("::1", 128), "::1", False),
        (network("127.0.0.0", 104, 53), "127.0.0.53", True),
        (network("::1", 128, 53), "::1", True),
        (network("127.0.0.53", 128, 53), "127.0.0.54", False),
        (network("0.0.0.0", 96), "127.0.0.53", True),
        (network("0.0.0.0", 96, 443), "127.0.0.53", False),
        (network("2000::", 3), "::1", False),
    ],
)
def test_a_server_that_a_rule_allows_by_its_address_is_asked_itself(
    entry: NetEntry, server: str, straight: bool
) -> None:
    found = rules(connect=(entry,)).of_name("a.b", mapped(server))
    assert (found.verdict is Verdict.ALLOW, found.straight, found.openings) == (straight, straight, ())


def test_a_denied_stub_of_the_host_is_not_asked_whatever_else_is_open() -> None:
    everywhere = network("0.0.0.0", 96)
    for denied in (network("127.0.0.0", 104, effect=Effect.DENY), network("127.0.0.53", 128, 53, Effect.DENY)):
        found = rules(connect=(everywhere, denied)).of_name("a.b", mapped("127.0.0.53"))
        assert found.verdict is Verdict.DENY


INNER = [
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.1.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
    *(
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        "::",
        "::1",
        "fe80::1",
        "fd00::1",
        "ff02::fb",
    ),
    *("fd00:ec2::254", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "fec0::1"),
    *("2002:7f00:1::1", "2002:a00:1::1", "2001:0:1::1", "64:ff9b:1::1", "::127.0.0.1"),
]
PUBLIC = ["8.8.8.8", "203.0.113.9", "172.32.0.1", "100.128.0.1", "2606:4700::1", "64:ff9b::8.8.8.8", "2002:808:808::1"]


@pytest.mark.parametrize("address", INNER)
def test_an_inner_address_is_none_that_a_name_may_open(address: str) -> None:
    assert inner(address)
    assert rules().objection(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_opened(address: str) -> None:
    assert not inner(address)


def test_an_inner_address_that_a_rule_allows_itself_may_be_told() -> None:
    made = rules(connect=(network("10.0.0.0", 104),))
    assert not made.objection("10.1.1.1")
    assert made.objection("192.168.0.1")
