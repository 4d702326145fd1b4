"""Rules to map bytes: masked prefixes, denies first, and refusals of what the kernel side cannot carry."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.errors import PolicyError
from mcpguard.model.access import Effect
from mcpguard.wire import _abi, encode

ADDRESS = bytes.fromhex("20010db8000000000000000000000001")


@given(st.binary(min_size=16, max_size=16), st.integers(0, 128))
def test_a_key_holds_the_network_and_no_host_bits(address: bytes, prefix: int) -> None:
    (key,) = encode.prefix_table([(address, prefix, [])])
    bits, network = _abi.MG_PREFIX.unpack(key)
    assert bits == prefix
    assert network == ipaddress.IPv6Network((address, prefix), strict=False).network_address.packed


def ports(value: bytes) -> list[tuple[int, ...]]:
    count, rules = _abi.MG_PORT_RULES.unpack(value)
    return [rule[:5] for rule in _abi.MG_PORT_RULE.iter_unpack(rules)][:count]


def test_denies_stand_first_and_the_order_is_kept_otherwise() -> None:
    rows = [
        (1, 9, 1, Effect.ALLOW, 7),
        (80, 80, 3, Effect.DENY, 8),
        (0, 65535, 2, Effect.ALLOW, 9),
        (443, 443, 3, Effect.DENY, 10),
    ]
    (value,) = encode.prefix_table([(ADDRESS, 128, rows)]).values()
    assert [rule[0] for rule in ports(value)] == [8, 10, 7, 9]
    assert ports(value)[2] == (7, 1, 9, 1, _abi.MG_ALLOW)


def test_words_of_json_are_effects_too() -> None:
    (value,) = encode.prefix_table([(ADDRESS, 128, [(1, 1, 1, "allow", 1), (2, 2, 1, "deny", 2)])]).values()
    assert [rule[4] for rule in ports(value)] == [_abi.MG_DENY, _abi.MG_ALLOW]


def test_too_many_port_rules_are_refused() -> None:
    rows = [(port, port, 3, Effect.ALLOW, 1) for port in range(_abi.MG_PORT_RULES_LIMIT + 1)]
    with pytest.raises(PolicyError) as caught:
        encode.prefix_table([(ADDRESS, 128, rows)])
    assert caught.value.code == "policy.port-rules"
    assert encode.prefix_table([(ADDRESS, 128, rows[1:])])


@pytest.mark.parametrize(
    ("pattern", "match", "body"),
    [
        ("/run/x", _abi.MG_UNIX_SUBTREE, b"/run/x"),
        ("/run/x/**", _abi.MG_UNIX_SUBTREE, b"/run/x"),
        ("/**", _abi.MG_UNIX_SUBTREE, b""),
        ("/tmp/ssh-*", _abi.MG_UNIX_BEGINNING, b"/tmp/ssh-"),
        ("/w/a[*]", _abi.MG_UNIX_SUBTREE, b"/w/a*"),
        ("/w/[[]x][{][}][?]/**", _abi.MG_UNIX_SUBTREE, b"/w/[x]{}?"),
        ("/w/a[*]/s*", _abi.MG_UNIX_BEGINNING, b"/w/a*/s"),
        ("@bus", _abi.MG_UNIX_EXACT, b"\0bus"),
        ("@bus*", _abi.MG_UNIX_BEGINNING, b"\0bus"),
        ("@*", _abi.MG_UNIX_BEGINNING, b"\0"),
    ],
)
def test_a_socket_pattern_becomes_bytes_and_a_way_to_compare(pattern: str, match: int, body: bytes) -> None:
    count, rules = _abi.MG_UNIX_RULES.unpack(encode.unix_table([(pattern, Effect.ALLOW, 5)]))
    rule, verdict, way, length, _, held = _abi.MG_UNIX_RULE.unpack_from(rules)
    assert (count, rule, verdict, way) == (1, 5, _abi.MG_ALLOW, match)
    assert held[:length] == body


@pytest.mark.parametrize(
    "pattern", ["/run/*/x", "/run/?", "/run/[ab]", "/" + "x" * 108, "/run/**/x", "/run/[*]/[a]", "@a[*]"]
)
def test_a_socket_pattern_that_cannot_be_enforced_is_refused(pattern: str) -> None:
    with pytest.raises(PolicyError) as caught:
        encode.unix_table([(pattern, Effect.ALLOW, 5)])
    assert caught.value.code == "policy.unix-pattern"


def test_too_many_socket_rules_are_refused() -> None:
    with pytest.raises(PolicyError):
        encode.unix_table([(f"/run/{n}", Effect.ALLOW, n) for n in range(_abi.MG_UNIX_RULES_LIMIT + 1)])


def test_the_configuration_carries_the_version() -> None:
    value = _abi.MG_CONFIG.pack(_abi.ABI_VERSION, 0)
    assert encode.configured_version(value) == _abi.ABI_VERSION
