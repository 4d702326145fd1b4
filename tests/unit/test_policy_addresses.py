"""Which addresses a name may open, held against what Python knows of the registries of special-purpose addresses."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.policy.addresses import Address, behind, gateways, inner

# The registries, by hand: not globally reachable, or no address of one machine.
SPECIAL = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29
192.0.0.8/32 192.0.0.170/31 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 224.0.0.0/4 240.0.0.0/4
255.255.255.255/32 168.63.129.16/32 ::/128 ::1/128 ::ffff:0:0/104 64:ff9b:1::/48 100::/64 100:0:0:1::/64
2001::/23 2001::/32 2001:2::/48 2001:10::/28 4000::/3 5f00::/16 8000::/2 fc00::/7 fe80::/10 fec0::/10 ff00::/8
64:ff9b::/104 64:ff9b::7f00:0/104 64:ff9b::a9fe:0/112 64:ff9b::c612:0/111 2002::/24 2002:7f00::/24
2002:a9fe::/32 2002:c0a8::/32 2002:c612::/31
""".split()  # noqa: SIM905 - many words are read better as text
# Globally reachable, whatever their purpose, with the next addresses around what is not.
PLAIN = """
9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255 169.255.0.0
172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.31.196.1 192.52.193.1 192.88.98.255 192.88.100.0
192.167.255.255 192.169.0.0 192.175.48.1 198.17.255.255 198.20.0.0 223.255.255.255 168.63.129.15 168.63.129.17
2001:200:: 2003:: 2606:4700::1 2620:4f:8000::1 64:ff9b::808:808 2002:808:808:: ::ffff:8.8.8.8
""".split()  # noqa: SIM905 - many words are read better as text
DOCUMENTATION = [
    ipaddress.ip_network(one)
    for one in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20")
]
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_documentation(address: Address) -> bool:
    return any(address in network for network in DOCUMENTATION if network.version == address.version)


def leads_to(address: Address) -> Address:
    """An IPv4 address in IPv6, as those who wrote these forms down have it."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


v4 = st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address)
v6 = st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address)
global_v6 = st.integers(0, 2**125 - 1).map(lambda low: ipaddress.IPv6Address(1 << 125 | low))
special = st.sampled_from(SPECIAL).flatmap(lambda text: st.ip_addresses(network=text))
carrying = st.one_of(
    v4.map(lambda one: ipaddress.IPv6Address(0xFFFF << 32 | int(one))),
    v4.map(lambda one: ipaddress.IPv6Address(0x64FF9B << 96 | int(one))),
    st.tuples(v4, st.integers(0, 2**80 - 1)).map(
        lambda one: ipaddress.IPv6Address(0x2002 << 112 | int(one[0]) << 80 | one[1])
    ),
)


@given(st.one_of(v4, v6, global_v6, special, carrying))
def test_what_a_name_may_open_is_globally_reachable(address: Address) -> None:
    if not inner(str(address)):
        found = leads_to(address)
        assert (found.is_global and not found.is_multicast) or is_documentation(found)


@given(special)
def test_nothing_of_the_registries_is_open(address: Address) -> None:
    assert inner(str(address))
    assert inner(address.packed)


@pytest.mark.parametrize("text", SPECIAL)
def test_a_range_is_closed_from_its_first_to_its_last_address(text: str) -> None:
    network = ipaddress.ip_network(text)
    assert inner(network[0].packed) and inner(network[-1].packed)


@pytest.mark.parametrize("address", PLAIN)
def test_what_is_beside_them_is_open(address: str) -> None:
    assert not inner(address)


@pytest.mark.parametrize("network", DOCUMENTATION, ids=str)
def test_examples_stand_for_public_addresses(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    assert not inner(str(network[0])) and not inner(str(network[-1]))


# --- gateways of the network's own ----------------------------------------------------------------------------------

# The examples of RFC 6052, section 2.4, for 192.0.2.33.
CARRIED = {
    "2001:db8::/32": "2001:db8:c000:221::",
    "2001:db8:100::/40": "2001:db8:1c0:2:21::",
    "2001:db8:122::/48": "2001:db8:122:c000:2:2100::",
    "2001:db8:122:300::/56": "2001:db8:122:3c0:0:221::",
    "2001:db8:122:344::/64": "2001:db8:122:344:c0:2:2100::",
    "2001:db8:122:344::/96": "2001:db8:122:344::192.0.2.33",
}


def carried(prefix: str, address: ipaddress.IPv4Address) -> str:
    """The address with another one in it, built as a number: bits 64 to 71 stay zero."""
    network = ipaddress.ip_network(prefix)
    whole = int(address) << (128 - network.prefixlen - 32)
    if network.prefixlen < 96:
        head, tail = whole >> 64 << 64, whole & (1 << 64) - 1
        whole = head | tail >> 8 if network.prefixlen <= 64 else whole
    return str(ipaddress.IPv6Address(int(network[0]) | whole))


@pytest.mark.parametrize("prefix", CARRIED)
def test_the_examples_of_the_standard(prefix: str) -> None:
    size = ipaddress.ip_network(prefix).prefixlen // 8
    raw = ipaddress.IPv6Address(CARRIED[prefix]).packed[:size]
    assert behind(CARRIED[prefix], [raw]) == "192.0.2.33"
    assert carried(prefix, ipaddress.IPv4Address("192.0.2.33")) == str(ipaddress.IPv6Address(CARRIED[prefix]))


@given(st.sampled_from(sorted(CARRIED)), st.sampled_from(["192.0.0.170", "192.0.0.171"]), v4)
def test_a_prefix_is_found_by_the_name_and_leads_to_the_address(
    prefix: str, mark: str, address: ipaddress.IPv4Address
) -> None:
    found = gateways([carried(prefix, ipaddress.IPv4Address(mark))])
    assert len(found) == 1
    assert behind(carried(prefix, address), found) == str(address)
    assert behind("2606:4700::1", found) == ""
    assert behind("192.0.2.1", found) == ""


def test_an_answer_without_a_mark_is_of_no_gateway() -> None:
    assert gateways(["2001:db8::1", "::"]) == frozenset()
