"""The host's own name servers, asked for what the policy allows."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from collections.abc import Sequence

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

RESOLV_CONF = "/etc/resolv.conf"
PAYLOAD = 1232
DNS_PORT = 53
_TRY_S = 2.5
_ROUNDS = 2
_MOST_SERVERS = 3
# Where resolv.conf names nobody, the C library asks there.
_LOCAL = "127.0.0.1"
_WITHOUT_EXTENSIONS = (dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS)
_FINAL = (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)


class Unanswered(Exception):
    """No server gave an answer in time."""


class Servers:
    """The servers of resolv.conf, read again when it has changed."""

    def __init__(self, path: str = RESOLV_CONF, instead: Sequence[str] = ()) -> None:
        """
        Args:
            instead: `ADDRESS` or `ADDRESS#PORT`; then whatever the file says is not asked.
        """
        self._path = path
        self._instead = list(instead)
        self._seen: tuple[int, ...] = ()
        self._servers: list[str] = []
        self._search: list[str] = []

    def now(self) -> list[str]:
        """Textual addresses, one to three, as the C library takes them."""
        return self._instead or (self._servers if self._look() else [_LOCAL])

    def search(self) -> list[str]:
        """The domains that the C library tries behind a name, lower case, without dots at their ends."""
        return self._search if self._look() else []

    def _look(self) -> bool:
        try:
            stat = os.stat(self._path)  # noqa: PTH116
        except OSError:
            return False
        seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen != self._seen:
            (self._servers, self._search), self._seen = _read(self._path), seen
        return True


def _read(path: str) -> tuple[list[str], list[str]]:
    found: list[str] = []
    search: list[str] = []
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for words in map(str.split, lines):
                if len(words) >= 2 and words[0] == "nameserver":
                    try:
                        found.append(str(ipaddress.ip_address(words[1])))
                    except ValueError:
                        continue
                elif words and words[0] in ("search", "domain"):
                    search = [word.strip(".").lower() for word in words[1:]]
    except OSError:
        pass
    return found[:_MOST_SERVERS] or [_LOCAL], list(filter(None, search))


async def ask(
    servers: Sequence[str], name: dns.name.Name, asked: dns.rdatatype.RdataType, *, secure: bool
) -> dns.message.Message:
    """Ask one server after the other, twice each: a port and an id of its own for each try, TCP where an answer was cut.

    Args:
        secure: the client asks for signatures, too (DO).

    Raises:
        Unanswered: in about 2.5 seconds for each try nobody gave an answer that counts.
    """
    trouble = "the host has no name server"
    for _ in range(_ROUNDS):
        for server in servers:
            query = dns.message.make_query(name, asked, use_edns=0, payload=PAYLOAD, want_dnssec=secure)
            try:
                response = await _ask(query, server)
                if response.rcode() in _WITHOUT_EXTENSIONS:
                    response = await _ask(dns.message.make_query(name, asked), server)
            except (dns.exception.DNSException, OSError, EOFError, asyncio.IncompleteReadError) as error:
                trouble = f"{server}: {str(error) or type(error).__name__}"
                continue
            if response.rcode() in _FINAL:
                return response
            trouble = f"{server} answered {dns.rcode.to_text(response.rcode())}"
    raise Unanswered(trouble)


async def _ask(query: dns.message.Message, server: str) -> dns.message.Message:
    address, _, port = server.partition("#")
    response, _ = await dns.asyncquery.udp_with_fallback(
        query, address, port=int(port or DNS_PORT), timeout=_TRY_S, ignore_unexpected=True, ignore_errors=True
    )
    return response
