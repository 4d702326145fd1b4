"""Other ways to ask for names than the session's resolver, in the words of an event that tells of one that was closed."""

from __future__ import annotations

DOOR = "another door to name resolution, closed so that rules by name hold"
_TLS = ("tcp", "udp")
_PORTS = {853: ("names over TLS", _TLS), 5353: ("multicast DNS", ("udp",)), 5355: ("LLMNR", _TLS)}
# Public resolvers that answer over HTTPS: what their names end with, and their addresses.
_HTTPS_PORT, _OVER_HTTPS = 443, "names over HTTPS"
_HOSTS = (
    *("dns.google", "cloudflare-dns.com", "one.one.one.one", "quad9.net", "dns.opendns.com", "doh.opendns.com"),
    *("adguard-dns.com", "dns.nextdns.io", "doh.cleanbrowsing.org", "dns.mullvad.net", "dns.controld.com"),
)
_ADDRESSES = frozenset(
    {
        *("8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"),
        *("1.1.1.1", "1.0.0.1", "2606:4700:4700::1111", "2606:4700:4700::1001"),
        *("9.9.9.9", "149.112.112.112", "2620:fe::fe", "2620:fe::9", "208.67.222.222", "208.67.220.220"),
        *("94.140.14.14", "94.140.15.15"),
    }
)
# Beginning of a path -> who answers there.
_SOCKETS = {
    "/run/systemd/resolve/": "systemd-resolved",
    "/run/nscd/": "nscd",
    "/var/run/nscd/": "nscd",
    "/run/avahi-daemon/": "avahi",
    "/run/dbus/system_bus_socket": "the system bus, which systemd-resolved and avahi are on",
    "/var/run/dbus/system_bus_socket": "the system bus, which systemd-resolved and avahi are on",
    "/var/lib/sss/pipes/": "sssd",
}


def of_port(port: int, protocol: str, address: str = "") -> str | None:
    """The detail of a refused request to a port, at an address, that no rule opens; None: it is no such door."""
    words, protocols = _PORTS.get(port, ("", ()))
    if port == _HTTPS_PORT and address in _ADDRESSES:
        words, protocols = _OVER_HTTPS, _TLS
    return f"{DOOR}: {words}" if protocol in protocols else None


def of_host(name: str) -> str | None:
    """The detail of a question for a name that no rule allows; None: it is no such door.

    Args:
        name: lower case, without a trailing dot.
    """
    ends = any(name == host or name.endswith(f".{host}") for host in _HOSTS)
    return f"{DOOR}: {_OVER_HTTPS}" if ends else None


def of_socket(path: str) -> str | None:
    """The detail of a refused request to a unix socket that no rule opens; None: it is no such door."""
    who = next((who for begin, who in _SOCKETS.items() if path.startswith(begin)), None)
    return f"{DOOR}: {who}" if who else None
