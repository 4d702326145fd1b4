"""Other ways to ask for names than the session's resolver, in the words of an event that tells of one that was closed."""

from __future__ import annotations

DOOR = "another door to name resolution, closed so that rules by name hold"
_TLS = ("tcp", "udp")
_PORTS = {853: ("names over TLS", _TLS), 5353: ("multicast DNS", ("udp",)), 5355: ("LLMNR", _TLS)}
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


def of_port(port: int, protocol: str) -> str | None:
    """The detail of a refused request to a port that no rule opens; None: it is no such door."""
    words, protocols = _PORTS.get(port, ("", ()))
    return f"{DOOR}: {words}" if protocol in protocols else None


def of_socket(path: str) -> str | None:
    """The detail of a refused request to a unix socket that no rule opens; None: it is no such door."""
    who = next((who for begin, who in _SOCKETS.items() if path.startswith(begin)), None)
    return f"{DOOR}: {who}" if who else None
