"""What the broker puts into the tables for destinations: its canaries, which take no rule of the user's away."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from mcpguard.broker import engine
from mcpguard.broker.canary import ADDRESS
from mcpguard.errors import PolicyError
from mcpguard.model.access import Effect
from mcpguard.model.plan import KEPT_CANARY
from mcpguard.model.policy import PROTO_TCP, PROTO_UDP, NetEntry
from mcpguard.policy.network import connect_table, mapped

BOTH = PROTO_TCP | PROTO_UDP
KEPT, PORT = KEPT_CANARY
LOOPBACK, ANY = "127.0.0.0", (0, 65535)
ALLOW_ALL = (LOOPBACK, 104, *ANY, BOTH, Effect.ALLOW, 3)
INSIDE, OWN = (Effect.ALLOW, 0), (Effect.DENY, 9)


def tables(*entries: tuple[str, int, int, int, int, Effect, int], canary: Any, name: str = "connect") -> Any:
    rows = connect_table([NetEntry(mapped(address), prefix, *rest) for address, prefix, *rest in entries])
    sent = [
        [
            row.address.hex(),
            row.prefix,
            [[p.port_low, p.port_high, p.protocols, int(p.effect is Effect.ALLOW), p.rule] for p in row.ports],
        ]
        for row in rows
    ]
    made = engine._rows({name: sent}, canary)[name]

    def decided(address: str, port: int = 443, protocol: int = PROTO_TCP) -> tuple[Effect, int]:
        """As the kernel does: the longest prefix, there the first that matches; no other row."""
        raw = int.from_bytes(mapped(address))
        covering = [row for row in made if int.from_bytes(row[0]) >> (128 - row[1]) == raw >> (128 - row[1])]
        assert len({row[:2] for row in made}) == len(made), "each prefix once"
        for low, high, protocols, effect, rule in max(covering, key=lambda row: row[1], default=(b"", 0, []))[2]:
            if low <= port <= high and protocols & protocol:
                return effect, rule
        return Effect.DENY, 0

    return decided


@pytest.mark.parametrize("canary", [None, INSIDE, OWN])
@pytest.mark.parametrize("protocol", [PROTO_TCP, PROTO_UDP])
def test_a_rule_for_the_address_of_the_kept_canary_holds(canary: Any, protocol: int) -> None:
    """But at the one port over UDP, where such servers are kept."""
    denied = (KEPT, 128, 0, 65535, PROTO_TCP, Effect.DENY, 4)
    for port in (443, PORT):
        at = tables(ALLOW_ALL, denied, canary=canary)
        expected = (Effect.DENY, 4) if protocol == PROTO_TCP else (Effect.ALLOW, 3)
        is_canary = canary is not None and (port, protocol) == (PORT, PROTO_UDP)
        assert at(KEPT, port, protocol) == (canary if is_canary else expected)
        assert at("127.86.71.3", port, protocol) == (Effect.ALLOW, 3), "the control"


def test_denied_as_a_whole_it_is_denied_as_a_whole_where_nothing_is_kept() -> None:
    denied = (KEPT, 128, *ANY, BOTH, Effect.DENY, 4)
    at = tables(ALLOW_ALL, denied, canary=None)
    for port, protocol in itertools.product((1, PORT, 443), (PROTO_TCP, PROTO_UDP)):
        assert at(KEPT, port, protocol) == (Effect.DENY, 4)
        assert tables(ALLOW_ALL, canary=None)(KEPT, port, protocol) == (Effect.ALLOW, 3), "the control"


def test_a_denial_of_that_very_port_and_its_canary_cannot_both_hold() -> None:
    """The server's own tables refuse it anyway."""
    denied = (KEPT, 128, *ANY, BOTH, Effect.DENY, 4)
    with pytest.raises(PolicyError) as caught:
        tables(ALLOW_ALL, denied, canary=INSIDE)
    assert caught.value.code == "policy.canary" and f"{KEPT}:{PORT}/udp" in caught.value.what
    assert tables(ALLOW_ALL, denied, canary=OWN)(KEPT, PORT, PROTO_UDP) == OWN


def test_a_wide_denial_holds_but_for_that_one_port_over_udp() -> None:
    at = tables((LOOPBACK, 104, *ANY, BOTH, Effect.DENY, 3), canary=INSIDE)
    assert at(KEPT, PORT, PROTO_UDP) == INSIDE
    assert at(KEPT, PORT, PROTO_TCP) == at(KEPT, PORT + 1, PROTO_UDP) == (Effect.DENY, 3)


@pytest.mark.parametrize("canary", [None, INSIDE, OWN])
def test_the_address_of_the_sessions_own_canary_is_denied_whatever_the_rules_say(canary: Any) -> None:
    allowed = (ADDRESS, 128, *ANY, BOTH, Effect.ALLOW, 4)
    for entries in ((ALLOW_ALL,), (ALLOW_ALL, allowed), ()):
        assert tables(*entries, canary=canary)(ADDRESS) == (Effect.DENY, 0)


@pytest.mark.parametrize("address", [ADDRESS, KEPT])
def test_rules_for_listening_know_no_canaries(address: str) -> None:
    denied = (address, 128, *ANY, BOTH, Effect.DENY, 4)
    assert tables(ALLOW_ALL, denied, canary=INSIDE, name="listen")(address) == (Effect.DENY, 4)
    assert tables(ALLOW_ALL, canary=INSIDE, name="listen")(address) == (Effect.ALLOW, 3)
