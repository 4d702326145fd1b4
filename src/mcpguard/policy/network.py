"""Network destinations: what a person may write, and the table that decides an address in one lookup.

Pure: text and entries in, entries and rows out. Resolves no name, opens no socket. Refuses every spelling that two
programs could read as two destinations (`127.1`, `0x7f.1`, zone ids), and wildcards that open a whole registry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from mcpguard.errors import PolicyError
from mcpguard.model.access import Effect
from mcpguard.model.policy import PROTO_NAMED, PROTO_TCP, PROTO_UDP, NameEntry, NetEntry
from mcpguard.model.rule import NetDirection, NetRule
from mcpguard.model.values import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    _Entry = TypeVar("_Entry", NetEntry, NameEntry)

MAX_PORT_RULES = 32
PROTOCOLS = {"tcp": PROTO_TCP, "udp": PROTO_UDP}
_MAPPED = b"\0" * 10 + b"\xff\xff"
_NAT64 = b"\0\x64\xff\x9b" + bytes(8)
_SIX_TO_FOUR = b"\x20\x02"
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NUMBER = r"(0x[0-9a-f]*|[0-9]+)"
_EVERY_PORT = (0, 65535)
NAMES_OVER_TLS = 853
_PORTS = r"([0-9]{1,5})(?:-([0-9]{1,5}))?"


@dataclass(frozen=True, slots=True)
class PortRule:
    """Ports (inclusive) and protocols (as in `NetEntry`) of a row, with what happens and the rule that says so."""

    port_low: int
    port_high: int
    protocols: int
    effect: Effect
    rule: int


@dataclass(frozen=True, slots=True)
class PrefixRow:
    """One row of a longest-prefix-match table.

    Attributes:
        address: 16 bytes, network order; IPv4 is mapped (`::ffff:a.b.c.d`). Bits after the prefix are zero.
        prefix: significant bits, 0 to 128 (IPv4: 96 to 128).
        ports: the rules of this prefix and of every prefix that covers it, so that the longest match alone decides. The
            first one that matches port and protocol decides; none: not allowed.
    """

    address: bytes
    prefix: int
    ports: tuple[PortRule, ...]


class _Wrong(Exception):
    def __init__(self, why: str, do: str) -> None:
        super().__init__(why)
        self.why = why
        self.do = do


def parse_rule(rule: NetRule, number: int) -> tuple[NetEntry | NameEntry, ...]:
    """Read the target of a network rule.

    Args:
        rule: as written; a target without port stands for every port, without protocol for TCP and UDP.
        number: the rule's id, put into the entries.

    Returns:
        One entry; two for `localhost` (127.0.0.0/8 and ::1). A NameEntry only for CONNECT rules. A denied IPv4 range comes
        with the IPv6 ranges that a NAT64 or 6to4 gateway carries to it.

    Raises:
        PolicyError: `policy.network`, beginning with the rule's place.
    """
    try:
        host, ports, protocols = _split(rule.target)
        return tuple(_entries(rule, host, ports, protocols, number))
    except _Wrong as wrong:
        what = f'{rule.origin.place}: network target "{_shown(rule.target)}"'
        raise PolicyError(what, why=wrong.why, do=wrong.do, code="policy.network") from None


def name_matches(pattern: str, host: str) -> bool:
    """Whether a host name matches a name pattern. Letter case and a trailing dot do not count; `*.a.b` matches every
    depth below `a.b` and never `a.b` itself."""
    name = host.removesuffix(".").lower()
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) >= len(pattern)
    return name == pattern


def mapped(address: str) -> bytes:
    """An address in text as 16 bytes, IPv4 mapped.

    Raises:
        ValueError: not an address in its usual spelling, or with a zone id.
    """
    import ipaddress  # a launch with a kept policy needs none

    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return _MAPPED + ip.packed
    if ip.scope_id is not None:
        raise ValueError(f"an address with a zone id: {address}")
    return ip.packed


def connect_table(entries: Sequence[NetEntry]) -> list[PrefixRow]:
    """Rows for a longest-prefix-match trie, one for every distinct prefix, sorted.

    Raises:
        PolicyError: `policy.too-many-ports`; more than MAX_PORT_RULES port rules are left for one prefix.
    """
    by_prefix: dict[tuple[int, bytes], list[NetEntry]] = {}
    for entry in entries:
        by_prefix.setdefault((entry.prefix, cut(entry.address, entry.prefix)), []).append(entry)
    lengths = sorted({prefix for prefix, _ in by_prefix})
    rows = []
    for prefix, address in sorted(by_prefix, key=lambda key: (key[1], key[0])):
        covering = [
            entry
            for length in lengths
            if length <= prefix
            for entry in by_prefix.get((length, cut(address, length)), ())
        ]
        rows.append(PrefixRow(address, prefix, _port_rules(address, prefix, covering)))
    return rows


def deciding_order(entry: NetEntry) -> tuple[bool, bool, int, int, int]:
    """Sort key: the first entry that matches a request decides it. Deny, then what no name opens, then the longer prefix, then
    fewer ports."""
    named = bool(entry.protocols & PROTO_NAMED)
    return (entry.effect is Effect.ALLOW, named, -entry.prefix, entry.port_high - entry.port_low, entry.rule)


def closed_by(entry: NetEntry, entries: Iterable[NetEntry]) -> int | None:
    """The rule that denies, where denials leave nothing of what an entry allows; None where something is left.

    Args:
        entries: all of them, of the same direction.
    """
    denials = [one for one in entries if one.effect is Effect.DENY and _meet(one, entry)]
    closed = _every_port(entry, denials, lambda denying: _covered(entry, denying))
    return min(denials, key=deciding_order).rule if denials and closed else None


def name_closed_by(entry: NameEntry, entries: Iterable[NameEntry]) -> int | None:
    """As `closed_by`, for a rule by name: a denial counts that has every name of the entry."""
    denials = [one for one in entries if one.effect is Effect.DENY and name_matches(one.pattern, entry.pattern)]
    return denials[0].rule if denials and _every_port(entry, denials, bool) else None


def _every_port(entry: _Entry, denials: list[_Entry], closed: Callable[[list[_Entry]], bool]) -> bool:
    """Whether something holds of the denials at every port and protocol of an entry."""
    for protocol in (PROTO_TCP, PROTO_UDP):
        if not entry.protocols & protocol:
            continue
        denying: list[_Entry] = [one for one in denials if one.protocols & protocol]
        # Between two of these ports the same denials hold; nobody can be reached at port 0.
        lowest = max(1, entry.port_low)
        bounds = {lowest, *(one.port_low for one in denying), *(one.port_high + 1 for one in denying)}
        for port in bounds:
            here = [one for one in denying if one.port_low <= port <= one.port_high]
            if lowest <= port <= entry.port_high and not closed(here):
                return False
    return True


def _meet(one: NetEntry, other: NetEntry) -> bool:
    shorter = min(one.prefix, other.prefix)
    return cut(one.address, shorter) == cut(other.address, shorter)


def _covered(entry: NetEntry, denials: Iterable[NetEntry]) -> bool:
    """Whether these, which all meet the addresses of the entry, leave none of them."""
    ranges = {(one.prefix, cut(one.address, one.prefix)) for one in denials}
    outermost = [
        (prefix, address)
        for prefix, address in ranges
        if not any((length, cut(address, length)) in ranges for length in range(prefix))
    ]
    if any(prefix <= entry.prefix for prefix, _ in outermost):
        return True
    return sum(1 << (128 - prefix) for prefix, _ in outermost) == 1 << (128 - entry.prefix)


def cut(address: bytes, prefix: int) -> bytes:
    """An address with the bits after `prefix` cleared."""
    keep = 128 - prefix
    return (int.from_bytes(address, "big") >> keep << keep).to_bytes(16, "big")


def _port_rules(address: bytes, prefix: int, covering: Iterable[NetEntry]) -> tuple[PortRule, ...]:
    """In deciding order, without those that an earlier one always precedes."""
    kept: list[PortRule] = []
    for entry in sorted(covering, key=deciding_order):
        rule = PortRule(entry.port_low, entry.port_high, entry.protocols, entry.effect, entry.rule)
        if not any(_covers(earlier, rule) for earlier in kept):
            kept.append(rule)
    if len(kept) > MAX_PORT_RULES:
        raise PolicyError(
            f"{len(kept)} port rules meet at {_text(address, prefix)}",
            why=f"one address can carry {MAX_PORT_RULES}",
            do="join neighbouring ports to ranges (8000-8010)",
            code="policy.too-many-ports",
        )
    return tuple(kept)


def _covers(earlier: PortRule, rule: PortRule) -> bool:
    return (
        earlier.port_low <= rule.port_low
        and rule.port_high <= earlier.port_high
        and rule.protocols & ~earlier.protocols == 0
    )


def _text(address: bytes, prefix: int) -> str:
    """A prefix as a person writes it."""
    import ipaddress

    if prefix >= 96 and address.startswith(_MAPPED):
        return str(ipaddress.IPv4Network((address[12:], prefix - 96)))
    return str(ipaddress.IPv6Network((address, prefix)))


def _shown(target: str) -> str:
    return target.encode("unicode_escape").decode("ascii")


def _split(target: str) -> tuple[str, tuple[int, int], int]:
    """host, (low, high), protocols."""
    if not target.isascii():
        raise _Wrong("host names are ASCII on the wire", "use the punycode form (xn--...)")
    if any(char <= " " or char == "\x7f" for char in target):
        raise _Wrong("it holds a space or a control character", "remove it")
    rest, protocols = target.lower(), PROTO_TCP | PROTO_UDP
    if "://" in rest:
        raise _Wrong("it is a URL; rules know hosts and ports only", "write HOST:443 for https://HOST/...")
    before, _, word = rest.rpartition("/")
    if word in PROTOCOLS:
        rest, protocols = before, PROTOCOLS[word]
    elif before and word.isalpha():
        raise _Wrong(f'"{word}" is not a protocol that rules know', "write /tcp or /udp, or neither for both")
    host, port = _split_port(rest)
    if not host:
        raise _Wrong("there is no host", "write HOST, HOST:PORT or HOST:LOW-HIGH")
    return host, _ports(port), protocols


def _split_port(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        inside, closed, after = text[1:].partition("]")
        if not closed or (after and not after.startswith(":")) or ":" not in inside:
            raise _Wrong("brackets hold an IPv6 address, a port may follow", "write [::1]:80")
        return inside, after[1:] if after else None
    if text.count(":") > 1:
        return text, None
    host, colon, port = text.partition(":")
    return host, port if colon else None


def _ports(text: str | None) -> tuple[int, int]:
    if text is None:
        return _EVERY_PORT
    found = re.fullmatch(_PORTS, text)
    if not found:
        raise _Wrong(f'"{text}" is not a port', "write :443 or :3000-3999, and [ADDRESS]:PORT for IPv6")
    low, high = int(found[1]), int(found[2] or found[1])
    if not 1 <= low <= 65535 or not 1 <= high <= 65535:
        raise _Wrong("ports go from 1 to 65535", "leave the port out for every port")
    if low > high:
        raise _Wrong(f"the range {text} is backwards", f"write {high}-{low}")
    return low, high


def _entries(
    rule: NetRule, host: str, ports: tuple[int, int], protocols: int, number: int
) -> Iterable[NetEntry | NameEntry]:
    networks = _networks(rule, host)
    if rule.effect is Effect.DENY and rule.direction is NetDirection.CONNECT:
        networks += [carried for network in networks for carried in _carried(*network)]
    for address, prefix in networks:
        yield NetEntry(address, prefix, *ports, protocols, rule.effect, number)
    if not networks:
        for low, high in _of_name(rule, ports):
            yield NameEntry(_name(rule, host), low, high, protocols, rule.effect, number)


def _of_name(rule: NetRule, ports: tuple[int, int]) -> list[tuple[int, int]]:
    """The ports of a rule for a name: who names none does not mean a resolver that answers for every name."""
    if rule.effect is Effect.DENY or ports != _EVERY_PORT:
        return [ports]
    return [(_EVERY_PORT[0], NAMES_OVER_TLS - 1), (NAMES_OVER_TLS + 1, _EVERY_PORT[1])]


def _networks(rule: NetRule, host: str) -> list[tuple[bytes, int]]:
    """(address, prefix) of a host that is no name; empty for a name."""
    if host == "*":
        if rule.direction is NetDirection.CONNECT:
            raise _Wrong("a bare * opens every destination", "name the hosts, or an address range such as 10.0.0.0/8")
        return [(bytes(16), 0)]
    if host == "localhost":
        return [(_MAPPED + b"\x7f\0\0\0", 104), (bytes(15) + b"\1", 128)]
    if "%" in host:
        raise _Wrong("a zone id has no meaning in a rule", "write the address without %ZONE")
    if ":" not in host and "/" not in host and not re.fullmatch(_NUMBER, host.removesuffix(".").rpartition(".")[2]):
        return []
    return [_network(rule, host)]


def _carried(address: bytes, prefix: int) -> list[tuple[bytes, int]]:
    """The IPv6 ranges that gateways carry to an IPv4 one (NAT64, RFC 6052; 6to4, RFC 3056); none of an IPv6 one."""
    if prefix < 96 or not address.startswith(_MAPPED):
        return []
    return [(_NAT64 + address[12:], prefix), (_SIX_TO_FOUR + address[12:] + bytes(10), prefix - 80)]


def _network(rule: NetRule, host: str) -> tuple[bytes, int]:
    import ipaddress

    try:
        network = ipaddress.ip_network(host, strict=False)
    except ValueError:
        raise _Wrong(
            "it is neither an address nor a range in its usual spelling",
            "write four decimal numbers (10.0.0.1), an IPv6 address, or a range such as 10.0.0.0/8",
        ) from None
    written = ipaddress.ip_address(host.partition("/")[0])
    if not host.partition("/")[2].isdigit() and "/" in host:
        raise _Wrong("a range is written with the number of its bits", f"write {network}")
    if written != network.network_address:
        raise _Wrong(f"{written} has bits set after the first {network.prefixlen}", f"write {network} or {written}")
    if isinstance(network, ipaddress.IPv4Network):
        return _MAPPED + network.network_address.packed, 96 + network.prefixlen
    address = network.network_address.packed
    if network.prefixlen < 96 and cut(_MAPPED + bytes(4), network.prefixlen) == address and rule.effect is Effect.ALLOW:
        raise _Wrong(
            "this range holds every IPv4 address too", "write 2000::/3 for the IPv6 internet, 0.0.0.0/0 for IPv4"
        )
    return address, network.prefixlen


def _name(rule: NetRule, host: str) -> str:
    if rule.direction is NetDirection.LISTEN:
        raise _Wrong("a program listens on addresses, not on names", "write an address, localhost or *")
    name = host.removesuffix(".")
    labels = name.split(".")
    if len(name) > 253:
        raise _Wrong(f"{len(name)} characters; a name has at most 253", "correct the name")
    if labels[0] == "*":
        labels = labels[1:]
        if len(labels) < 2:
            raise _Wrong("a wildcard directly under a single word opens a whole registry", "write *.NAME.DOMAIN")
    for label in labels:
        if "*" in label:
            raise _Wrong("a * stands only for the whole first part of a name", "write *.example.com")
        if not re.fullmatch(_LABEL, label):
            raise _Wrong(
                f'"{label}" cannot be a part of a host name', "use letters, digits and -, 1 to 63 in each part"
            )
    return name
