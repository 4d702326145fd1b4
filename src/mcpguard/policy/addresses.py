"""Which addresses a name may open: those of the public network, never this host, a network of one's own, or a metadata
service. An address that leads to another one (6to4, NAT64, IPv4 in IPv6) counts as where it leads.

The ranges are those of the registries of special-purpose addresses (RFC 6890) that are not globally reachable, and a few more.
Left out are the ranges for documentation, which lead nowhere and stand for public addresses in examples and tests.

Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_PRIVATE, _PROVIDER = "a private network", "a provider's inner network"
# What the hosts file may open besides the public network.
NETWORKS_OF_ONES_OWN = frozenset({"", _PRIVATE, _PROVIDER})
# What a network is, in the words of an event. The first that holds the address counts.
_INNER = [
    (ipaddress.ip_network(range_), words)
    for range_, words in (
        ("0.0.0.0/8", "this host"),
        ("127.0.0.0/8", "this host"),
        ("10.0.0.0/8", _PRIVATE),
        ("172.16.0.0/12", _PRIVATE),
        ("192.168.0.0/16", _PRIVATE),
        ("100.64.0.0/10", _PROVIDER),
        ("169.254.0.0/16", "link-local, where clouds keep credentials"),
        ("168.63.129.16/32", "a cloud's own service"),
        ("192.0.0.0/24", "reserved"),
        ("192.88.99.0/24", "a tunnel"),
        ("198.18.0.0/15", "a network for benchmarks, which proxies give to names"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "this host"),
        ("::1/128", "this host"),
        ("64:ff9b:1::/48", _PRIVATE),
        ("2001::/32", "a tunnel"),
        ("2001::/23", "reserved"),
        ("fc00::/7", _PRIVATE),
        ("fe80::/10", "link-local"),
        ("fec0::/10", _PRIVATE),
        ("ff00::/8", "multicast"),
        # Only 2000::/3 has been given to anybody.
        ("::/3", "reserved"),
        ("4000::/2", "reserved"),
        ("8000::/1", "reserved"),
    )
]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Whose IPv6 addresses show the prefix of a network's own NAT64 (RFC 7050), and the IPv4 addresses that stand in them.
NAT64_NAME = "ipv4only.arpa"
_NAT64_MARKS = frozenset({b"\xc0\0\0\xaa", b"\xc0\0\0\xab"})
# Bytes of a prefix -> where the IPv4 address stands behind it (RFC 6052): the ninth byte is left out.
_CARRIED = {
    12: (12, 13, 14, 15),
    8: (9, 10, 11, 12),
    7: (7, 9, 10, 11),
    6: (6, 7, 9, 10),
    5: (5, 6, 7, 9),
    4: (4, 5, 6, 7),
}


def inner(address: str | bytes) -> str:
    """What kind of address it is that a name must not open, in words; empty: a public one.

    Args:
        address: as text, or 4 or 16 bytes.

    Raises:
        ValueError: not an address.
    """
    parsed = _embedded(ipaddress.ip_address(address))
    if isinstance(parsed, ipaddress.IPv6Address) and parsed in _NAT64:
        parsed = ipaddress.IPv4Address(parsed.packed[12:])
    return next((words for network, words in _INNER if network.version == parsed.version and parsed in network), "")


def _embedded(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address.sixtofour or address
    return address


def gateways(addresses: Iterable[str]) -> frozenset[bytes]:
    """The prefixes of a network's own NAT64, of 4 to 12 bytes.

    Args:
        addresses: the IPv6 addresses that its name servers give for NAT64_NAME.
    """
    found = set()
    for packed in (ipaddress.IPv6Address(address).packed for address in addresses):
        size = next(
            (size for size, places in _CARRIED.items() if bytes(packed[at] for at in places) in _NAT64_MARKS), 0
        )
        found.add(packed[:size])
    return frozenset(found - {b""})


def behind(address: str, prefixes: Iterable[bytes]) -> str:
    """The IPv4 address that gateways with these prefixes carry an IPv6 one to; empty: none does."""
    parsed = ipaddress.ip_address(address)
    for prefix in prefixes:
        if parsed.version == 6 and parsed.packed.startswith(prefix):
            return str(ipaddress.IPv4Address(bytes(parsed.packed[at] for at in _CARRIED[len(prefix)])))
    return ""
