"""Answers for allowed names: each asked for once at a time, and kept as long as it says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from mcpguard.model.values import dataclass
from mcpguard.policy.addresses import NAT64_NAME, gateways
from mcpguard.resolver import upstream
from mcpguard.resolver.table import LONGEST_S

# Names that one answer may lead through, and questions that it may take.
_LONGEST_CHAIN = 12
# For all of its questions, however many servers do not answer.
_WHOLE_S = 20.0
_MOST_KEPT = 1000
_MOST_KEPT_BYTES = 4 << 20
# What a record takes in memory besides its data, about.
_RECORD_BYTES = 200
_AT_ONCE = 256
# A network's own NAT64: how long an answer about it waits, and how long one is believed.
_GATEWAYS_WAIT_S = 2.0
_GATEWAYS_S = 600.0


@dataclass(frozen=True, slots=True)
class Found:
    """What the servers said.

    Attributes:
        answer: the records that belong to the question, aliases first.
        authority: what proves that there is nothing, for whoever keeps that in mind.
        ends: monotonic time in seconds when it must not be used any more.
    """

    rcode: dns.rcode.Rcode
    answer: tuple[dns.rrset.RRset, ...]
    authority: tuple[dns.rrset.RRset, ...]
    authentic: bool
    ends: float

    def aliases(self) -> list[str]:
        """The names that it leads through, without the one that was asked for."""
        return [text(record.target) for one in self.answer if one.rdtype == dns.rdatatype.CNAME for record in one]

    def room(self) -> int:
        """The bytes that it takes, about."""
        return sum(_RECORD_BYTES + len(record.to_digestable()) for one in self.answer for record in one)


_Key = tuple[str, int, bool, tuple[str, ...], int]


class Lookups:
    """Questions under way and answers kept."""

    def __init__(self) -> None:
        self._kept: dict[_Key, Found] = {}
        self._kept_bytes = 0
        self._running: dict[_Key, asyncio.Task[Found]] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._gateways: dict[tuple[str, ...], tuple[float, asyncio.Task[frozenset[bytes]]]] = {}

    async def find(
        self,
        name: str,
        asked: dns.rdatatype.RdataType,
        servers: Sequence[str],
        *,
        secure: bool,
        may_ask: Callable[[str], bool],
        kept: int = 0,
    ) -> Found:
        """What the servers say of a name; the answer may lead through names that must not be asked for.

        Args:
            may_ask: whether the name that an alias leads to may be asked for; else the answer ends at the alias.
            kept: whose `may_ask` it is, so that nobody gets an answer that ends where somebody else's must.

        Raises:
            upstream.Unanswered
        """
        key = (name, int(asked), secure, tuple(servers), kept)
        before = self._kept.get(key)
        if before is not None and before.ends > time.monotonic():
            return before
        running = self._running.get(key)
        if running is None:
            running = asyncio.create_task(
                _in_time(self._look_up(dns.name.from_text(name), asked, servers, secure, may_ask))
            )
            self._running[key] = running
            running.add_done_callback(lambda done: self._finish(key, done))
        return await asyncio.shield(running)

    async def gateways(self, servers: Sequence[str]) -> frozenset[bytes]:
        """The prefixes under which the network of these servers carries to IPv4 (RFC 7050), as `addresses.gateways` has them.

        Empty where nobody says so in time: a server that answers for names answers for that one.
        """
        key = tuple(servers)
        until, asking = self._gateways.get(key, (0.0, None))
        if asking is None or until < time.monotonic():
            asking = asyncio.create_task(self._find_gateways(servers))
            self._gateways = {key: (time.monotonic() + _GATEWAYS_S, asking)}
        try:
            return await asyncio.wait_for(asyncio.shield(asking), _GATEWAYS_WAIT_S)
        except TimeoutError:
            return frozenset()

    async def _find_gateways(self, servers: Sequence[str]) -> frozenset[bytes]:
        asked = dns.rdatatype.AAAA
        try:
            found = await self.find(NAT64_NAME, asked, servers, secure=False, may_ask=lambda _: False)
        except upstream.Unanswered:
            self._gateways = {}
            return frozenset()
        return gateways(record.address for one in found.answer if one.rdtype == asked for record in one)

    def _finish(self, key: _Key, done: asyncio.Task[Found]) -> None:
        del self._running[key]
        if done.cancelled() or done.exception() is not None:
            return
        found = done.result()
        self._drop(key)
        if found.answer and found.ends > time.monotonic():
            self._kept[key] = found
            self._kept_bytes += found.room()
            while len(self._kept) > _MOST_KEPT or self._kept_bytes > _MOST_KEPT_BYTES:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: _Key) -> None:
        found = self._kept.pop(key, None)
        if found is not None:
            self._kept_bytes -= found.room()

    async def _look_up(
        self,
        name: dns.name.Name,
        asked: dns.rdatatype.RdataType,
        servers: Sequence[str],
        secure: bool,
        may_ask: Callable[[str], bool],
    ) -> Found:
        chain: list[dns.rrset.RRset] = []
        for _ in range(_LONGEST_CHAIN):
            async with self._room:
                response = await upstream.ask(servers, name, asked, secure=secure)
            before = len(chain)
            name = _follow(response, name, asked, chain)
            # Stubs often say "there is none" without a proof: what adds nothing ends it as well.
            ended = response.rcode() != dns.rcode.NOERROR or _proves_nothing(response) or len(chain) == before
            if ended or chain[-1].rdtype != dns.rdatatype.CNAME or asked == dns.rdatatype.CNAME:
                break
            if not may_ask(text(name)):
                break
            if len(chain) > _LONGEST_CHAIN:
                raise upstream.Unanswered("its aliases lead nowhere")
        else:
            raise upstream.Unanswered("its aliases lead nowhere")
        authority = [one for one in response.authority if one.rdtype == dns.rdatatype.SOA]
        ttl = min((one.ttl for one in chain), default=0)
        return Found(
            response.rcode(),
            tuple(chain),
            tuple(authority),
            bool(response.flags & dns.flags.AD),
            time.monotonic() + min(ttl, LONGEST_S),
        )


def text(name: dns.name.Name) -> str:
    """As rules are compared with it: lower case, without a trailing dot."""
    return name.to_text(omit_final_dot=True).lower()


def _proves_nothing(response: dns.message.Message) -> bool:
    return any(one.rdtype == dns.rdatatype.SOA for one in response.authority)


async def _in_time(looking: Awaitable[Found]) -> Found:
    try:
        return await asyncio.wait_for(looking, _WHOLE_S)
    except TimeoutError:
        raise upstream.Unanswered(f"no answer within {_WHOLE_S:.0f} seconds") from None


def _follow(
    response: dns.message.Message,
    name: dns.name.Name,
    asked: dns.rdatatype.RdataType,
    chain: list[dns.rrset.RRset],
) -> dns.name.Name:
    """Add the records of a response that belong to the question; where the aliases end. Whatever else it holds is not ours."""
    by_name = {(one.name, one.rdtype): one for one in response.answer if one.rdclass == dns.rdataclass.IN}
    signatures = [one for one in response.answer if one.rdtype == dns.rdatatype.RRSIG]
    for _ in range(_LONGEST_CHAIN):
        wanted = by_name.get((name, asked))
        alias = by_name.get((name, dns.rdatatype.CNAME))
        found = wanted or alias
        if found is None:
            break
        chain += [one for one in signatures if one.name == name and one.covers == found.rdtype]
        chain.append(found)
        if wanted is not None or alias is None:
            break
        name = alias[0].target
    return name
