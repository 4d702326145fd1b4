"""The verdict on one access, for a person who asks: the object that the kernel would judge, and the rule that decides.

Follows symlinks and looks up host names as the user, the way the kernel and the session would.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from mcpguard.errors import PolicyError, UsageError
from mcpguard.events import doors
from mcpguard.events.attribute import OUTSIDE, PRIVATE
from mcpguard.model.access import Access, Effect, Verdict
from mcpguard.model.paths import is_below
from mcpguard.model.policy import PROTO_TCP, PROTO_UDP, NameEntry, Policy
from mcpguard.model.rule import NetDirection, NetRule, Origin
from mcpguard.model.values import dataclass
from mcpguard.policy.addresses import inner
from mcpguard.policy.decide import Answer, decide_connect, decide_file, decide_name, decide_unix
from mcpguard.policy.hosts import hides_its_host
from mcpguard.policy.network import name_matches, parse_rule
from mcpguard.profile import store
from mcpguard.resolver.rules import DNS_PORT
from mcpguard.session.network import fixed_names

DEFAULT_PORT = 443
_ACCESS = {"read": Access.READ, "write": Access.WRITE, "execute": Access.EXECUTE}
_OWN_LISTENERS = "a port on which the session itself listens is allowed too"
_OUTSIDE_ONLY = "for processes outside the session; of its own processes the profile's rules decide"
_NEVER_OPENED = "a rule by name never opens that; name the address as well"
_OPENED = "open from the look-up of a program on, while its answer holds"
_NOT_ASKED = "no rule names it, so a look-up is refused and nobody outside is asked"
_UNNAMED = "a name with a rule that leads there opens it, on the ports of its rule, once a program has looked it up"
_SHOWN = 3
_HIDDEN = "QUIC hides the host that it names, so only a rule with /udp opens this"
_QUESTION = "questions for names go to a resolver of the session's own, which answers for names that a rule allows"


@dataclass(frozen=True, slots=True)
class Explanation:
    """A verdict with its reason.

    Attributes:
        object: what was judged: the path with symlinks followed, or host:port/protocol.
        by_link: True when symlinks led from the target to another path.
        rule: None when no rule allows it.
        because: the reason that stands beside the rule; may be empty.
        detail: what a person should know besides; may be empty.
    """

    verdict: Verdict
    object: str
    rule: Origin | None
    because: str = ""
    detail: str = ""
    by_link: bool = False


def explain(policy: Policy, access: str, target: str) -> Explanation:
    """Judge one access.

    Args:
        access: `read`, `write`, `execute`, `connect` or `unix`.
        target: as typed; relative paths are relative to the current directory.

    Raises:
        UsageError: the target cannot be understood.
    """
    if access == "connect":
        return _connect(policy, target)
    if access == "unix":
        return _unix(policy, target)
    typed, real = _paths(target)
    private = _of_a_process_outside(typed, real)
    judged = typed if private else real
    verdict, rules = decide_file(policy, judged, _ACCESS[access])
    if private and verdict is Verdict.ALLOW:
        return Explanation(Verdict.DENY, judged, OUTSIDE, detail=_OUTSIDE_ONLY)
    detail = _through_link(policy, rules[0], judged)
    return _explanation(policy, Answer(verdict, rules[0]), judged, detail, by_link=typed != judged)


def _of_a_process_outside(typed: str, real: str) -> bool:
    """Memory, environment, descriptors and the like of another process, which the system refuses in every profile."""
    found = PRIVATE.fullmatch(typed) or PRIVATE.fullmatch(real)
    return found is not None and int(found["pid"]) != os.getpid()


def _through_link(policy: Policy, rule: int, judged: str) -> str:
    """Why a rule on `/bin` decides `/usr/bin/git`: its own path is a link to a folder above the object."""
    words = policy.rules[rule].text.split() if rule else []
    named = next((word for word in words if word.startswith(("/", "~/"))), "")
    written = policy.user.home + named[1:] if named.startswith("~") else named
    real = _real(written) if written else ""
    if not written or real == written or is_below(judged, written) or not is_below(judged, real):
        return ""
    return f"{named} is a link to {real}"


def _real(path: str) -> str:
    """Where a path leads; as written where the way cannot be read."""
    try:
        return os.path.realpath(path)
    except OSError:
        return os.path.normpath(path)


def _paths(target: str) -> tuple[str, str]:
    """(absolute path as typed, where it leads with every symlink followed); a name that does not exist yet stays."""
    if "\0" in target or not target:
        raise _misunderstood(target, "a path is not empty and holds no NUL byte", "write a path")
    path = store.typed_path(target)
    try:
        typed = path if path.is_absolute() else Path.cwd() / path
    except FileNotFoundError:
        raise _misunderstood(target, "the current directory was removed", "write an absolute path") from None
    return os.path.normpath(typed), _real(str(typed))


def _explanation(
    policy: Policy, answer: Answer, judged: str, detail: str = "", *, by_link: bool = False
) -> Explanation:
    rule = policy.rules[answer.rule] if answer.rule else None
    return Explanation(answer.verdict, judged, rule, policy.reasons[answer.rule], detail, by_link)


def _unix(policy: Policy, target: str) -> Explanation:
    if target.startswith("@"):
        return _explanation(policy, decide_unix(policy, target), target)
    typed, real = _paths(target)
    # What is there now was not made by a session that is still to come.
    answer = decide_unix(policy, real, foreign=Path(real).exists())
    return _explanation(policy, answer, real, by_link=typed != real)


def _connect(policy: Policy, target: str) -> Explanation:
    host, address, port, protocol = _destination(target)
    word = "udp" if protocol == PROTO_UDP else "tcp"
    judged = f"[{host}]:{port}/{word}" if ":" in host else f"{host}:{port}/{word}"
    if address:
        parsed = ipaddress.ip_address(address)
        detail = _OWN_LISTENERS if parsed.is_loopback or parsed.is_unspecified else ""
        answer = decide_connect(policy, address, port, protocol)
        if port == DNS_PORT:
            detail = _QUESTION
        elif answer.verdict is Verdict.DENY and not answer.rule and not inner(address):
            detail = doors.of_port(port, word, address) or _UNNAMED
        return _explanation(policy, answer, judged, detail)
    return _by_name(policy, host, port, protocol, judged)


def _by_name(policy: Policy, host: str, port: int, protocol: int, judged: str) -> Explanation:
    answer = decide_name(policy, host, port, protocol)
    allowed = answer.verdict is Verdict.ALLOW
    if answer.rule and not allowed:
        return _explanation(policy, answer, judged)
    # The kernel judges addresses: a rule may deny one that the name leads to, or allow one by its range.
    addresses = _addresses(host)
    for address in addresses:
        by_address = decide_connect(policy, address, port, protocol)
        if by_address.rule and (by_address.verdict is Verdict.ALLOW) != allowed:
            return _explanation(policy, by_address, judged, f"{host} is {address}")
    if allowed and protocol == PROTO_UDP and hides_its_host(port, policy.sni) and not _means_udp(policy, host, port):
        return Explanation(Verdict.DENY, judged, policy.rules[0], "", f"{_HIDDEN} (network.sni: {policy.sni})")
    unopened = _unopened(policy, addresses, port, protocol) if allowed else ""
    if unopened:
        return Explanation(Verdict.DENY, judged, policy.rules[0], "", f"{host} is {unopened}: {_NEVER_OPENED}")
    detail = _opens(addresses) if allowed else _unasked(policy, host, port, protocol)
    return _explanation(policy, answer, judged, detail)


def _opens(addresses: Sequence[str]) -> str:
    now = ", ".join(addresses[:_SHOWN]) + (", ..." if len(addresses) > _SHOWN else "")
    return f"{_OPENED}{f', now {now}' if now else ''}"


def _unasked(policy: Policy, host: str, port: int, protocol: int) -> str:
    """What becomes of a look-up of a name that no rule opens on this port."""
    door = doors.of_port(port, "udp" if protocol == PROTO_UDP else "tcp") or doors.of_host(host)
    if door:
        return door
    if any(entry.effect is Effect.ALLOW and name_matches(entry.pattern, host) for entry in policy.names):
        return "it is looked up, as a rule allows it on other ports"
    servers = any(
        entry.effect is Effect.ALLOW and entry.port_low <= DNS_PORT <= entry.port_high for entry in policy.connect
    )
    return "" if servers else _NOT_ASKED


def _means_udp(policy: Policy, host: str, port: int) -> bool:
    return any(
        entry.effect is Effect.ALLOW
        and entry.protocols == PROTO_UDP
        and entry.port_low <= port <= entry.port_high
        and name_matches(entry.pattern, host)
        for entry in policy.names
    )


def _unopened(policy: Policy, addresses: Sequence[str], port: int, protocol: int) -> str:
    """The first of a name's addresses, in words, when a session would accept none of them."""
    fixed = fixed_names(policy).hosts
    closed = [
        f"{address} ({inner(address)})"
        for address in addresses
        if inner(address)
        and address not in fixed
        and decide_connect(policy, address, port, protocol).verdict is not Verdict.ALLOW
    ]
    return closed[0] if closed and len(closed) == len(addresses) else ""


def _addresses(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return sorted({str(entry[4][0]).partition("%")[0] for entry in found})


def _destination(target: str) -> tuple[str, str, int, int]:
    """(host as typed, address or empty for a name, port, protocol), read by the same parser as a rule."""
    try:
        entries = parse_rule(NetRule(Effect.ALLOW, NetDirection.CONNECT, target, Origin("", "why", 0, target)), 1)
    except PolicyError as bad:
        raise _misunderstood(target, bad.why, "write HOST:PORT, such as example.com:443 or [::1]:80") from None
    entry = entries[0]
    whole = entry.port_low == 0  # no port that anybody can write
    if entry.port_low != entry.port_high and not whole:
        raise _misunderstood(target, "a connection has one port", "write HOST:PORT")
    port = DEFAULT_PORT if whole else entry.port_low
    protocol = PROTO_UDP if entry.protocols == PROTO_UDP else PROTO_TCP
    if isinstance(entry, NameEntry):
        if entry.pattern.startswith("*"):
            raise _misunderstood(target, "a connection has one host", "write a name without *")
        return entry.pattern, "", port, protocol
    if len(entries) > 1:
        return "localhost", "127.0.0.1", port, protocol
    if entry.prefix != 128:
        raise _misunderstood(target, "a connection has one address", "write a single address")
    address = _text(entry.address)
    return address, address, port, protocol


def _text(address: bytes) -> str:
    """16 bytes as a person writes them; mapped IPv4 as IPv4."""
    mapped = ipaddress.IPv6Address(address).ipv4_mapped
    return str(mapped or ipaddress.IPv6Address(address))


def _misunderstood(target: str, why: str, do: str) -> UsageError:
    return UsageError(f'"{target}" cannot be understood', why=why, do=do, code="usage.target")
