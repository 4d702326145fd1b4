"""Which host the first bytes sent to an address of a name may name: the policy's names as one table, asked by longest end.

Pure. Where two names share an address, the address alone does not say which of them a program talks to.
"""

from __future__ import annotations

from collections.abc import Sequence

from mcpguard.errors import PolicyError
from mcpguard.model.access import Effect
from mcpguard.model.policy import PROTO_TCP, PROTO_UDP, NameEntry
from mcpguard.model.profile import SniMode
from mcpguard.model.values import dataclass
from mcpguard.policy.decide import name_order
from mcpguard.policy.network import MAX_PORT_RULES, PortRule, name_matches

_BOTH = PROTO_TCP | PROTO_UDP
_EVERY_PORT = (0, 65535)
_QUIC_PORT = 443


@dataclass(frozen=True, slots=True)
class HostRow:
    """One row of the table.

    Attributes:
        pattern: a name; `*.a.b` for every name below `a.b`; empty for what names no host.
        ports: in deciding order; the first one that matches port and protocol decides; none: not allowed.
    """

    pattern: str
    ports: tuple[PortRule, ...]


def host_table(names: Sequence[NameEntry], sni: SniMode) -> list[HostRow]:
    """Rows for a trie in which the longest end of a name decides alone; empty when names are not looked at.

    Raises:
        PolicyError: more rules meet at one name than the kernel side holds.
    """
    if sni is SniMode.OFF:
        return []
    return [HostRow("", _without_host(sni)), *(_row(pattern, names) for pattern in sorted({e.pattern for e in names}))]


def hides_its_host(port: int, sni: SniMode) -> bool:
    """Whether datagrams to this port are refused at an address that only a name opens, unless its rule says `/udp`."""
    rules = _without_host(sni) if sni is not SniMode.OFF else ()
    fitting = (rule for rule in rules if rule.protocols & PROTO_UDP and rule.port_low <= port <= rule.port_high)
    return next((rule.effect is Effect.DENY for rule in fitting), False)


def _without_host(sni: SniMode) -> tuple[PortRule, ...]:
    if sni is SniMode.REQUIRE:
        return (PortRule(*_EVERY_PORT, _BOTH, Effect.DENY, 0),)
    # QUIC hides the name from us and not from its server; programs that are refused go on with TCP.
    quic = PortRule(_QUIC_PORT, _QUIC_PORT, PROTO_UDP, Effect.DENY, 0)
    return (quic, PortRule(*_EVERY_PORT, _BOTH, Effect.ALLOW, 0))


def _row(pattern: str, names: Sequence[NameEntry]) -> HostRow:
    covering = sorted((entry for entry in names if _covers(entry.pattern, pattern)), key=name_order)
    ports = dict.fromkeys(PortRule(e.port_low, e.port_high, e.protocols, e.effect, e.rule) for e in covering)
    if len(ports) > MAX_PORT_RULES:
        raise PolicyError(
            f"{len(ports)} port rules meet at {pattern}",
            why=f"one name can carry {MAX_PORT_RULES}",
            do="join neighbouring ports to ranges (8000-8010)",
            code="policy.too-many-ports",
        )
    return HostRow(pattern, tuple(ports))


def _covers(wider: str, pattern: str) -> bool:
    """Whether `wider` matches every name that `pattern` matches."""
    if pattern.startswith("*"):
        return wider.startswith("*") and pattern.endswith(wider[1:])
    return name_matches(wider, pattern)
