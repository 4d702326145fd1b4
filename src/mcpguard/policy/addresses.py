"""Which addresses a name may open: those of the public network, never this host, a network of one's own, or a metadata
service. An address that leads to another one (6to4, NAT64, IPv4 in IPv6) counts as where it leads.

Pure.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_PRIVATE, _PROVIDER = "a private network", "a provider's inner network"
# What the hosts file may open besides the public network.
NETWORKS_OF_ONES_OWN = frozenset({"", _PRIVATE, _PROVIDER})
# What a network is, in the words of an event.
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
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "this host"),
        ("::1/128", "this host"),
        ("::/8", "reserved"),
        ("64:ff9b:1::/48", _PRIVATE),
        ("100::/64", "reserved"),
        ("2001::/32", "a tunnel"),
        ("fc00::/7", _PRIVATE),
        ("fe80::/10", "link-local"),
        ("fec0::/10", _PRIVATE),
        ("ff00::/8", "multicast"),
    )
]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


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
