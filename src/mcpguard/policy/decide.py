"""Verdicts in Python: the same answers that the kernel gives, with the rule that decides.

Pure. Used by `why`, by learning and by the tests; never in the path of a guarded program. A request that cannot be
judged is a ValueError, never an allow.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from mcpguard.model.access import ACCESSES, Access, Effect, Verdict
from mcpguard.model.policy import PROTO_TCP, NameEntry, NetEntry, PathRule, Policy, SocketEntry
from mcpguard.model.values import dataclass
from mcpguard.policy.automaton import Automaton
from mcpguard.policy.network import cut, deciding_order, mapped, name_matches

_V4 = bytes(10) + b"\xff\xff"
# 0.0.0.0 to 127.0.0.1, and :: to ::1
_OWN_ADDRESS = {_V4 + bytes(4): _V4 + b"\x7f\0\0\1", bytes(16): bytes(15) + b"\1"}
_ALL = Access.READ | Access.WRITE | Access.EXECUTE


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict and the id of the rule that decides it; 0: no rule allows it."""

    verdict: Verdict
    rule: int


@lru_cache(maxsize=8)
def automaton_of(tables: bytes) -> Automaton:
    """The automaton of `Policy.tables`, read once."""
    return Automaton.from_bytes(tables)


def decide_file(policy: Policy | Automaton, path: str | bytes, access: Access) -> tuple[Verdict, tuple[int, ...]]:
    """Judge an access to an absolute, canonical path.

    Args:
        access: one or several accesses; all of them must be allowed.

    Returns:
        The verdict, and the rules that decide it: those that refuse, or one for each access that is allowed. 0 stands
        for the default. In audit only what a rule refuses is DENY; what merely no rule allows is AUDIT.

    Raises:
        ValueError: no access is asked, or the path is relative or not canonical.
    """
    asked = [single for single in ACCESSES if single & access]
    if not asked:
        raise ValueError("no access is asked")
    automaton = policy if isinstance(policy, Automaton) else automaton_of(policy.tables)
    decision = automaton.decision(automaton.walk(path))
    refused = [decision.rule(single) for single in asked if not single & decision.allowed]
    if not refused:
        return Verdict.ALLOW, _unique(decision.rule(single) for single in asked)
    if isinstance(policy, Policy) and policy.audit and not any(refused):
        return Verdict.AUDIT, (0,)
    return Verdict.DENY, _unique(rule for rule in refused if rule) or (0,)


def decide_connect(policy: Policy, address: str, port: int, protocol: int = PROTO_TCP) -> Answer:
    """Judge sending to an address. Rules by name are not looked at: see `decide_name`.

    Args:
        address: IPv4 or IPv6; the unspecified address is the host itself, as for the kernel.
        port: 0 to 65535; protocol: PROTO_TCP or PROTO_UDP.

    Raises:
        ValueError: not an address.
    """
    raw = mapped(address)
    return answer_address(policy.connect, _OWN_ADDRESS.get(raw, raw), port, protocol, audit=policy.audit)


def decide_listen(policy: Policy, address: str, port: int, protocol: int = PROTO_TCP) -> Answer:
    """Judge binding an own address; port 0 (the kernel chooses) needs a rule for every port.

    Raises:
        ValueError: not an address.
    """
    return answer_address(policy.listen, mapped(address), port, protocol, audit=policy.audit)


def decide_name(policy: Policy, host: str, port: int, protocol: int = PROTO_TCP) -> Answer:
    """Judge a destination by its name. A rule that denies an address it resolves to still applies to the connection.

    `localhost` and addresses are judged as addresses.
    """
    name = host.removesuffix(".").lower()
    if name == "localhost":
        return decide_connect(policy, "127.0.0.1", port, protocol)
    try:
        mapped(name)
    except ValueError:
        matching = [
            entry for entry in policy.names if name_matches(entry.pattern, name) and _fits(entry, port, protocol)
        ]
        return _first(sorted(matching, key=name_order), policy.audit)
    return decide_connect(policy, name, port, protocol)


def decide_unix(policy: Policy, target: str, *, foreign: bool = False) -> Answer:
    """Judge connecting to a unix socket: an absolute, canonical path, or `@name` for an abstract socket.

    A path needs a socket rule that allows it, and is refused where a file rule denies the path.

    Args:
        foreign: a process outside of the session made the socket, so that rules for own ones do not count.

    Raises:
        ValueError: neither.
    """
    if target.startswith("@"):
        matching = [entry for entry in policy.sockets if _abstract_matches(entry.pattern, target)]
        return _first(sorted(matching, key=_socket_order), policy.audit)
    automaton = automaton_of(policy.tables)
    file = automaton.decision(automaton.walk(target))
    if not file.allowed & Access.READ and file.read_rule:
        return Answer(Verdict.DENY, file.read_rule)
    sockets = sockets_of(policy, foreign=foreign)
    decision = sockets.decision(sockets.walk(target))
    if decision.allowed & Access.READ:
        return Answer(Verdict.ALLOW, decision.read_rule)
    return _refusal(decision.read_rule, policy.audit)


def _unique(rules: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(rules))


def _refusal(rule: int, audit: bool) -> Answer:
    return Answer(Verdict.AUDIT if audit and not rule else Verdict.DENY, rule)


def answer_address(
    entries: Iterable[NetEntry], address: bytes, port: int, protocol: int, *, audit: bool = False
) -> Answer:
    """Judge an address (16 bytes, IPv4 mapped) by a list of entries: deny, else allow, else the default."""
    matching = [
        entry
        for entry in entries
        if cut(address, entry.prefix) == cut(entry.address, entry.prefix) and _fits(entry, port, protocol)
    ]
    return _first(sorted(matching, key=deciding_order), audit)


def _first(matching: list[NetEntry] | list[NameEntry] | list[SocketEntry], audit: bool) -> Answer:
    if matching and matching[0].effect is Effect.ALLOW:
        return Answer(Verdict.ALLOW, matching[0].rule)
    return _refusal(matching[0].rule if matching else 0, audit)


def _fits(entry: NetEntry | NameEntry, port: int, protocol: int) -> bool:
    return entry.port_low <= port <= entry.port_high and bool(entry.protocols & protocol)


def name_order(entry: NameEntry) -> tuple[bool, bool, int, int, int]:
    """Deny, then an exact name, then the longer pattern, then fewer ports."""
    wildcard = entry.pattern.startswith("*")
    ports = entry.port_high - entry.port_low
    return (entry.effect is Effect.ALLOW, wildcard, -len(entry.pattern), ports, entry.rule)


def _socket_order(entry: SocketEntry) -> tuple[bool, int, int]:
    return (entry.effect is Effect.ALLOW, -len(entry.pattern), entry.rule)


def _abstract_matches(pattern: str, target: str) -> bool:
    if not pattern.startswith("@"):
        return False
    return target.startswith(pattern[:-1]) if pattern.endswith("*") else target == pattern


def sockets_of(policy: Policy, *, foreign: bool) -> Automaton:
    """The automaton of a policy's socket rules; `foreign` as for `decide_unix`. The one that a launch asks is kept."""
    if foreign and policy.socket_tables:
        return automaton_of(policy.socket_tables)
    return socket_automaton(not_own(policy.sockets) if foreign else policy.sockets)


def not_own(entries: tuple[SocketEntry, ...]) -> tuple[SocketEntry, ...]:
    """The socket rules that also hold for what processes outside made."""
    return tuple(entry for entry in entries if not entry.own)


@lru_cache(maxsize=8)
def socket_automaton(entries: tuple[SocketEntry, ...]) -> Automaton:
    """The automaton of the socket rules that are paths; connecting is judged as reading."""
    paths = [entry for entry in entries if not entry.pattern.startswith("@")]
    return Automaton.build([PathRule(entry.effect, _ALL, entry.pattern, (), entry.rule) for entry in paths])
