"""The tables of destinations, listeners and unix sockets, as the broker takes them; and names that need no looking up.

Other names are the resolver's: it opens their addresses when a program asks for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mcpguard.kernel.resolve import real_path
from mcpguard.model.access import Effect
from mcpguard.model.policy import PROTO_NAMED, NetEntry, Policy, SocketEntry
from mcpguard.model.values import dataclass
from mcpguard.policy.decide import not_own
from mcpguard.policy.hosts import host_table
from mcpguard.policy.network import PortRule, connect_table
from mcpguard.policy.patterns import quote, split_literal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HOSTS = "/etc/hosts"
# "/" and two letters: anything shorter would deny half a directory.
_SHORTEST_BEGINNING = 3
_HOST = 128


@dataclass(frozen=True, slots=True)
class FixedNames:
    """What the hosts file settles.

    Attributes:
        entries: what rules by name open at its addresses.
        hosts: textual address -> name.
    """

    entries: tuple[NetEntry, ...]
    hosts: dict[str, str]


def fixed_names(policy: Policy, path: str = HOSTS) -> FixedNames:
    """The names of the hosts file that a rule allows.

    Programs read that file themselves and ask nobody. Only root writes it, so it may give addresses of one's own network; this
    host and metadata services stay closed all the same.
    """
    if not policy.names:
        return FixedNames((), {})
    whole = {entry.pattern for entry in policy.names}
    ends = tuple(pattern[1:] for pattern in whole if pattern.startswith("*."))
    lines = [
        (address, names)
        for address, names in _hosts(path)
        if any(name in whole or name.endswith(ends) for name in names)
    ]
    if not lines:
        return FixedNames((), {})
    # Most hosts files name the host itself and nobody else.
    from mcpguard.policy.addresses import NETWORKS_OF_ONES_OWN, inner
    from mcpguard.policy.network import mapped
    from mcpguard.resolver.rules import Rules

    rules = Rules(policy.names, (), audit=False)
    entries: list[NetEntry] = []
    hosts: dict[str, str] = {}
    for address, names in lines:
        try:
            mapped(address)
        except ValueError:
            continue
        if inner(address) not in NETWORKS_OF_ONES_OWN:
            continue
        for name in names:
            openings = rules.of_name(name, bytes(16)).openings
            if openings:
                hosts.setdefault(address, name)
            entries += [
                NetEntry(mapped(address), _HOST, one.low, one.high, one.protocols | PROTO_NAMED, Effect.ALLOW, one.rule)
                for one in openings
            ]
    return FixedNames(tuple(entries), hosts)


def _hosts(path: str) -> Iterable[tuple[str, list[str]]]:
    """(address as written, names in lower case) of each line."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        yield address, [name.removesuffix(".").lower() for name in names]


def settings(policy: Policy, fixed: FixedNames, *, peers: bool) -> dict[str, Any]:
    """The network backend's settings in the JSON form of the broker.

    Args:
        peers: the kernel's own hooks alone judge sockets that have a path (tier 1), and know who made them.
    """
    return {
        "connect": rows_to_json((*policy.connect, *fixed.entries)),
        "listen": rows_to_json(policy.listen),
        "hosts": [[row.pattern, _ports_to_json(row.ports)] for row in host_table(policy.names, policy.sni)],
        "unix": unix_rows(not_own(policy.sockets) if peers else policy.sockets),
    }


def unix_rows(entries: Iterable[SocketEntry]) -> list[list[Any]]:
    """Socket rules that the kernel's table can hold: `[pattern, allow, rule]`.

    A path is a subtree, `.../name*` and `@name*` are beginnings; `[*]` in a path is the character itself. A glob elsewhere
    in a path is carried as the beginning before it when it denies (`/tmp/ssh-*/agent.*` denies `/tmp/ssh-...`); what it
    allows stays refused.
    """
    rows: list[list[Any]] = []
    old_name = real_path("/var/run") == "/run"
    for entry in entries:
        pattern = entry.pattern
        if not pattern.startswith("@"):
            base, rest = split_literal(pattern)
            base = quote(base)
            if rest not in ("", "/*", "/**"):
                beginning = re.match(r"/[^*?\[/]*", rest)
                beginning_ends = len(beginning.group()) if beginning else 0
                exact = rest[beginning_ends:] == "*"
                # A denial may reach further than it was written, an allowance never.
                if beginning_ends < _SHORTEST_BEGINNING or not (exact or entry.effect is Effect.DENY):
                    continue
                base += rest[:beginning_ends] + "*"
            pattern = base
        rows.extend(
            [name, int(entry.effect is Effect.ALLOW), entry.rule] for name in _spellings(pattern, old_name=old_name)
        )
    return rows


def _spellings(pattern: str, *, old_name: bool) -> list[str]:
    """The kernel compares the string that a program gives, and programs still say /var/run where they mean /run."""
    return [pattern, f"/var{pattern}"] if old_name and pattern.startswith("/run/") else [pattern]


def rows_to_json(entries: Iterable[NetEntry]) -> list[Any]:
    """Entries as rows of a longest-prefix-match table: `[address hex, prefix, [[low, high, protocols, allow, rule], ...]]`."""
    return [[row.address.hex(), row.prefix, _ports_to_json(row.ports)] for row in connect_table(list(entries))]


def _ports_to_json(ports: Iterable[PortRule]) -> list[list[int]]:
    return [
        [port.port_low, port.port_high, port.protocols, int(port.effect is Effect.ALLOW), port.rule] for port in ports
    ]
