"""Destinations by name, until names are resolved inside the data path: looked up at launch and again every minute.

Weakness, stated in the docs: an address that a name had stays reachable for the session, and whoever shares that address is
reachable too. A wildcard cannot be looked up and therefore allows nothing here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from mcpguard.model.access import Effect
from mcpguard.model.policy import PROTO_TCP, PROTO_UDP, NameEntry, NetEntry, Policy, SocketEntry
from mcpguard.model.profile import Profile
from mcpguard.model.rule import NetDirection, NetRule, Origin
from mcpguard.model.values import replace
from mcpguard.policy.decide import not_own
from mcpguard.policy.network import connect_table, mapped
from mcpguard.policy.patterns import quote, split_literal
from mcpguard.session import answers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REFRESH_S = 60.0
LAUNCH_WAIT_S = 0.4
# Somebody who allows a name while the session runs waits for its addresses a little longer.
_LIVE_WAIT_S = 2.0
_WORKERS = 8
_RESOLVER_PORT = 53
# "/" and two letters: anything shorter would deny half a directory.
_SHORTEST_BEGINNING = 3
_HOST = 128
# Networks of one's own: what `--net` or a rule by address opens, and a name never does.
_INNER = [
    ipaddress.ip_network(range_)
    for range_ in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "fc00::/7",
        "64:ff9b::/96",
        "2002::/16",
    )
]
_RESOLVER_ORIGIN = Origin("mcpguard", "builtin", 0, "the host's own resolvers, port 53")


def resolvers(path: str = "/etc/resolv.conf") -> list[str]:
    """The host's name servers, textual; empty when there are none."""
    found = []
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                words = line.split()
                if len(words) >= 2 and words[0] == "nameserver":
                    try:
                        found.append(str(ipaddress.ip_address(words[1].split("%")[0])))
                    except ValueError:
                        continue
    except OSError:
        return []
    return found


def with_resolvers(policy: Policy) -> Policy:
    """The policy plus port 53 of the host's own resolvers, when a rule names a host that must be looked up."""
    if not policy.names or _RESOLVER_ORIGIN in policy.rules:
        return policy
    rule = len(policy.rules)
    entries = [
        NetEntry(mapped(address), _HOST, _RESOLVER_PORT, _RESOLVER_PORT, PROTO_TCP | PROTO_UDP, Effect.ALLOW, rule)
        for address in resolvers()
    ]
    return replace(
        policy,
        rules=(*policy.rules, _RESOLVER_ORIGIN),
        reasons=(*policy.reasons, "names in the profile must be looked up"),
        connect=(*policy.connect, *entries),
    )


def settings(policy: Policy, rows: list[Any], *, peers: bool) -> dict[str, Any]:
    """The network backend's settings in the JSON form of the broker.

    Args:
        rows: destinations, from `Names.rows`.
        peers: the kernel's own hooks alone judge sockets that have a path (tier 1), and know who made them.
    """
    return {
        "connect": rows,
        "listen": rows_to_json(policy.listen),
        "unix": unix_rows(not_own(policy.sockets) if peers else policy.sockets),
    }


def unix_rows(entries: Iterable[SocketEntry]) -> list[list[Any]]:
    """Socket rules that the kernel's table can hold: `[pattern, allow, rule]`.

    A path is a subtree, `.../name*` and `@name*` are beginnings; `[*]` in a path is the character itself. A glob elsewhere
    in a path is carried as the beginning before it when it denies (`/tmp/ssh-*/agent.*` denies `/tmp/ssh-...`); what it
    allows stays refused.
    """
    rows: list[list[Any]] = []
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
        rows.extend([name, int(entry.effect is Effect.ALLOW), entry.rule] for name in _spellings(pattern))
    return rows


def _spellings(pattern: str) -> list[str]:
    """The kernel compares the string that a program gives, and programs still say /var/run where they mean /run."""
    if pattern.startswith("/run/") and Path("/var/run").resolve() == Path("/run"):
        return [pattern, f"/var{pattern}"]
    return [pattern]


def wildcards(policy: Policy) -> list[NameEntry]:
    """Names that this version cannot look up."""
    return [entry for entry in policy.names if entry.pattern.startswith("*")]


def wildcard_rules(profile: Profile) -> list[NetRule]:
    """The rules behind `wildcards`, as written."""
    return [rule for rule in profile.network if rule.direction is NetDirection.CONNECT and rule.target.startswith("*.")]


class Names:
    """Looks the policy's names up and keeps every address that it ever saw in this session.

    `host_of` maps a textual address to the name it was seen under, for events.
    """

    def __init__(self, policy: Policy, kept: Path | None = None) -> None:
        """
        Args:
            kept: where answers are kept from one launch to the next.
        """
        self._kept = kept
        self._known = answers.load(kept) if kept and policy.names else {}
        self._fresh: answers.Answers = {}
        self._news = threading.Event()
        self._entries = _resolvable(policy)
        self._fixed = policy.connect
        self._found: dict[tuple[NameEntry, str], NetEntry] = {}
        self._waiting: list[threading.Event] = []
        self._stop = threading.Event()
        self._publish: Callable[[list[Any]], None] | None = None
        # Held from making a table until it is sent, so that an older one never comes last.
        self._publishing = threading.Lock()
        self.host_of: dict[str, str] = {}

    def begin(self) -> None:
        """Take what was answered before, and start looking up the rest, in the background."""
        with self._publishing:
            entries = self._entries
            self._waiting = waiting = [threading.Event() for _ in entries]
        unknown = []
        for entry, done in zip(entries, waiting, strict=True):
            if entry.pattern in self._known:
                self._add(entry, self._known[entry.pattern][1])
                done.set()
            else:
                unknown.append((entry, done))
        self._start_work(unknown, _WORKERS)

    def _start_work(self, todo: Sequence[tuple[NameEntry, threading.Event]], workers: int) -> None:
        left = iter(todo)
        for _ in range(min(workers, len(todo))):
            # Daemons: a resolver that does not answer must not hold up the end of the run.
            threading.Thread(target=self._work, args=(left,), name="names", daemon=True).start()

    def rows(self, wait_s: float = 0.0) -> list[Any]:
        """The table of destinations as known after at most `wait_s` seconds, in the JSON form of the broker."""
        deadline = time.monotonic() + wait_s
        for done in self._waiting:
            done.wait(max(0.0, deadline - time.monotonic()))
        self._news.clear()
        wanted = set(self._entries)
        return rows_to_json(
            (*self._fixed, *[to for (entry, _address), to in list(self._found.items()) if entry in wanted])
        )

    def keep_fresh(self, publish: Callable[[list[Any]], None]) -> None:
        """Publish late answers at once, and look up again what was not, and everything every minute, until `close`."""
        self._publish = publish
        if self._entries:
            self._start_refreshing(publish)

    def _start_refreshing(self, publish: Callable[[list[Any]], None]) -> None:
        threading.Thread(target=self._refresh, args=(publish,), name="names-refresh", daemon=True).start()

    @contextlib.contextmanager
    def adopting(self, policy: Policy) -> Iterator[list[Any]]:
        """Go by another policy: gives its destinations, for the caller to have them used; if that raises, all is as before.

        Names that are new are looked up first, and waited for so long.
        """
        new = [entry for entry in _resolvable(policy) if entry not in self._entries]
        waiting = [threading.Event() for _ in new]
        self._start_work(list(zip(new, waiting, strict=True)), _WORKERS)
        deadline = time.monotonic() + _LIVE_WAIT_S
        for done in waiting:
            done.wait(max(0.0, deadline - time.monotonic()))
        with self._publishing:
            before = self._entries, self._waiting, self._fixed
            self._entries, self._waiting, self._fixed = (
                [*self._entries, *new],
                [*self._waiting, *waiting],
                policy.connect,
            )
            try:
                yield self.rows()
            except BaseException:
                self._entries, self._waiting, self._fixed = before
                self._news.set()
                raise
        if new and not before[0] and self._publish is not None:
            self._start_refreshing(self._publish)

    def close(self) -> None:
        self._stop.set()
        self._news.set()
        if self._kept and self._fresh:
            answers.save(self._kept, dict(self._fresh))

    def _work(self, todo: Iterator[tuple[NameEntry, threading.Event]]) -> None:
        for entry, done in todo:
            if self._stop.is_set():
                return
            self._look_up(entry)
            done.set()

    def _refresh(self, publish: Callable[[list[Any]], None]) -> None:
        pairs = zip(self._entries, self._waiting, strict=True)
        self._start_work([pair for pair in pairs if pair[0].pattern in self._known], 1)
        self._known = {}
        next_round = time.monotonic() + REFRESH_S
        while True:
            news = self._news.wait(max(0.0, next_round - time.monotonic()))
            if self._stop.is_set():
                return
            if news:
                with self._publishing, contextlib.suppress(OSError):
                    publish(self.rows())
            else:
                next_round = time.monotonic() + REFRESH_S
                self.begin()

    def _look_up(self, entry: NameEntry) -> None:
        try:
            # As bytes, for a text would bring the tables of all scripts into a process that starts.
            name = entry.pattern.encode() if entry.pattern.isascii() else entry.pattern
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError as error:
            if error.errno not in (socket.EAI_NONAME, socket.EAI_NODATA):
                return
            found = []
        addresses = [str(answer[4][0]).split("%")[0] for answer in found]
        self._fresh[entry.pattern] = (time.time(), addresses)
        self._add(entry, addresses)

    def _add(self, entry: NameEntry, addresses: Iterable[str]) -> None:
        for address in addresses:
            key = (entry, address)
            if key in self._found or not _acceptable(address):
                continue
            self.host_of[address] = entry.pattern
            self._found[key] = NetEntry(
                mapped(address), _HOST, entry.port_low, entry.port_high, entry.protocols, entry.effect, entry.rule
            )
            self._news.set()


def _resolvable(policy: Policy) -> list[NameEntry]:
    return [entry for entry in policy.names if not entry.pattern.startswith("*")]


def _acceptable(address: str) -> bool:
    """A public name must not lead to this host, its network, or a metadata service."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    inner = any(parsed in range_ for range_ in _INNER if range_.version == parsed.version)
    return not (inner or parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified or parsed.is_multicast)


def rows_to_json(entries: Iterable[NetEntry]) -> list[Any]:
    """Entries as rows of a longest-prefix-match table: `[address hex, prefix, [[low, high, protocols, allow, rule], ...]]`."""
    return [
        [
            row.address.hex(),
            row.prefix,
            [
                [port.port_low, port.port_high, port.protocols, int(port.effect is Effect.ALLOW), port.rule]
                for port in row.ports
            ],
        ]
        for row in connect_table(list(entries))
    ]
