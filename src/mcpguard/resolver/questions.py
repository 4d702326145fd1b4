"""One question of the tree, from its bytes to the bytes of the answer: who asks, what the policy says, what is opened."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from mcpguard.errors import McpguardError
from mcpguard.kernel.bpf import Map
from mcpguard.model.access import Verdict
from mcpguard.model.values import dataclass, replace
from mcpguard.policy.addresses import behind, inner
from mcpguard.policy.network import mapped
from mcpguard.resolver import replies, upstream
from mcpguard.resolver.held import Cut, Held
from mcpguard.resolver.lookups import Lookups, text
from mcpguard.resolver.rules import Decision, Rules
from mcpguard.resolver.table import Learned, NoRoom
from mcpguard.resolver.views import View, decide, follow_alias, strictest
from mcpguard.wire import _abi
from mcpguard.wire.encode import question_key
from mcpguard.wire.records import Head, LookupRecord

_LABEL = re.compile(rb"[A-Za-z0-9_-]{1,63}")
_T = dns.rdatatype
# What programs ask for honestly. Other types could carry what nobody looks at.
FORWARDED = frozenset(
    {
        *(_T.A, _T.AAAA, _T.CNAME, _T.HTTPS, _T.SVCB, _T.MX, _T.TXT, _T.SRV, _T.PTR, _T.NS, _T.SOA, _T.CAA),
        *(_T.NAPTR, _T.DS, _T.DNSKEY, _T.SSHFP, _T.TLSA, _T.DNAME, _T.URI),
    }
)
REFUSED_TYPES = frozenset({_T.ANY, _T.AXFR, _T.IXFR, _T.NULL, _T.MAILB, _T.MAILA})
_NOBODY = bytes(16)
# As sockets have it: an address as text (IPv6 may have a scope), a port, and more for IPv6.
Sender = tuple[str, int] | tuple[str, int, int, int]
_NO_NAME = "it is no host name, so it is never asked for"


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asked, and whom (16 bytes; zero: the resolver itself).

    Attributes:
        kept: slot of the tables that it is kept to; 0: none.
    """

    pid: int
    tid: int
    ppid: int
    comm: str
    server: bytes
    kept: int = 0


class _DeniedAlias(Exception):
    """An allowed name leads through one that a rule denies."""

    def __init__(self, name: str, rule: int) -> None:
        super().__init__(name)
        self.name = name
        self.rule = rule


class Questions:
    """Answers the questions of one session."""

    def __init__(
        self,
        rules: Rules,
        askers: Map,
        learned: Learned,
        tell: Callable[[LookupRecord], None],
        servers: upstream.Servers,
        held: Held,
        kept: Mapping[int, View] | None = None,
    ) -> None:
        """
        Args:
            askers: the map `mg_questions`.
            tell: puts a question on record.
            held: where a question for a name that no rule covers may wait.
            kept: of servers that are kept to less, by the slot of their tables.
        """
        self._session = View(rules, learned)
        self._kept = dict(kept or {})
        self._askers = askers
        self._tell = tell
        self._servers = servers
        self._held = held
        self._lookups = Lookups()

    def who(self, sender: Sender, protocol: int) -> Asker | None:
        """Who sends from this address and port; None: nobody of the tree.

        Args:
            protocol: IPPROTO_UDP or IPPROTO_TCP.
        """
        value = self._askers.get(_key(sender, protocol), _abi.MG_QUESTION.size)
        if value is None:
            return None
        pid, tid, ppid, kept, comm, server = _abi.MG_QUESTION.unpack(value)
        if kept and kept not in self._kept:
            return None
        return Asker(pid, tid, ppid, comm.split(b"\0")[0].decode(errors="replace"), server, kept)

    def _views(self, asker: Asker) -> tuple[View, ...]:
        return (self._session, self._kept[asker.kept]) if asker.kept else (self._session,)

    def forget(self, sender: Sender) -> None:
        """Whoever sends datagrams from there from now on must be of the tree anew."""
        self._askers.delete(_key(sender, socket.IPPROTO_UDP))

    async def reply(self, wire: bytes, asker: Asker, *, stream: bool) -> bytes | None:
        """The answer to the bytes of a question; None: they deserve none."""
        when_ns = time.monotonic_ns()
        try:
            query = dns.message.from_wire(wire)
        except (dns.exception.DNSException, ValueError):
            return self._malformed(wire, asker, when_ns)
        if query.flags & dns.flags.QR:
            return None
        if query.opcode() != dns.opcode.QUERY or query.edns > 0:
            rcode = dns.rcode.BADVERS if query.edns > 0 else dns.rcode.NOTIMP
            return replies.to_wire(replies.refusal(query, rcode, "not understood"), query, stream=stream)
        if len(query.question) != 1:
            return self._malformed(wire, asker, when_ns)
        try:
            reply, record = await self._answer(query, asker, when_ns, stream=stream)
        except Cut:
            return replies.cut(query)
        self._tell(record)
        return replies.to_wire(reply, query, stream=stream)

    def follow(self, rules: Rules) -> None:
        """Go by other rules; what was held and is spoken of now goes on."""
        self._session.rules = rules
        self._held.look_again(lambda name: not _is_open_to_question(rules.of_name(name, _NOBODY)))

    def _malformed(self, wire: bytes, asker: Asker, when_ns: int) -> bytes | None:
        head = Head(when_ns, asker.pid, asker.tid, asker.ppid, asker.comm, 0)
        self._tell(LookupRecord(head, "", "", Verdict.DENY, 0, "it is no question for a name", ()))
        return replies.malformed(wire)

    async def _answer(
        self, query: dns.message.Message, asker: Asker, when_ns: int, *, stream: bool
    ) -> tuple[dns.message.Message, LookupRecord]:
        """The reply and what the record tells of it. The addresses in the reply are open when this returns."""
        question = query.question[0]
        head = Head(when_ns, asker.pid, asker.tid, asker.ppid, asker.comm, 0)
        host = text(question.name)

        def told(
            reply: dns.message.Message, verdict: Verdict, rule: int, detail: str = "", addresses: tuple[str, ...] = ()
        ) -> tuple[dns.message.Message, LookupRecord]:
            kind = dns.rdatatype.to_text(question.rdtype)
            return reply, LookupRecord(head, host, kind, verdict, rule, detail, addresses)

        views = self._views(asker)
        above = all(view.rules.is_above(host) for view in views)
        absent = dns.rcode.NOERROR if above else dns.rcode.NXDOMAIN
        if not all(map(_LABEL.fullmatch, question.name.labels[:-1])) or len(question.name.labels) < 2:
            return told(replies.refusal(query, absent, _NO_NAME), Verdict.DENY, 0, _NO_NAME)
        decisions = decide(views, host, asker.server)
        unanswered = ""
        # A person's word is about the session; to whom its own profile does not leave a name it opens none.
        askable = _is_open_to_question(decisions[0]) and not any(map(_is_refusal, decisions[1:]))
        if askable and question.rdclass == dns.rdataclass.IN:
            who = (asker.pid, asker.ppid, asker.comm)
            unanswered = await self._held.wait(host, question.rdtype, who, stream=stream)
            decisions = decide(views, host, asker.server)
            # What is told from here on may be of rules that were not there when it came.
            head = replace(head, when_ns=time.monotonic_ns())
        decision = strictest(decisions)
        if decision.verdict is Verdict.DENY:
            words = "a rule denies this name" if decision.rule else "no rule allows this name"
            detail = "" if decision.rule else unanswered
            return told(replies.refusal(query, absent, words), Verdict.DENY, decision.rule, detail)
        if question.rdclass != dns.rdataclass.IN or question.rdtype in REFUSED_TYPES:
            words = "nothing is asked for in this way"
            return told(replies.refusal(query, dns.rcode.REFUSED, words), Verdict.DENY, 0, words)
        if question.rdtype not in FORWARDED:
            words = "this type of record is not asked for"
            return told(replies.refusal(query, dns.rcode.NOERROR, words), Verdict.DENY, 0, words)
        try:
            reply, addresses, why = await self._forward(query, host, decisions, asker)
        except _DeniedAlias as denied:
            words = f"it is an alias of {denied.name}, which a rule denies"
            return told(replies.refusal(query, dns.rcode.NXDOMAIN, words), Verdict.DENY, denied.rule, words)
        except (upstream.Unanswered, NoRoom, McpguardError) as error:
            lost = isinstance(error, upstream.Unanswered)
            code = dns.edns.EDECode.NO_REACHABLE_AUTHORITY if lost else dns.edns.EDECode.OTHER
            failed = replies.refusal(query, dns.rcode.SERVFAIL, str(error), code)
            return told(failed, decision.verdict, decision.rule, f"no answer: {error}")
        if why and not addresses:
            return told(reply, Verdict.DENY, 0, why)
        return told(reply, decision.verdict, decision.rule, why, tuple(addresses))

    async def _forward(
        self, query: dns.message.Message, host: str, decisions: Sequence[Decision], asker: Asker
    ) -> tuple[dns.message.Message, list[str], str]:
        views = self._views(asker)
        straight = all(decision.straight for decision in decisions)
        servers = [_text(asker.server)] if straight else self._servers.now()
        secure = bool(query.ednsflags & dns.flags.DO)
        asked = query.question[0].rdtype
        gateways: frozenset[bytes] = frozenset()
        finding = self._lookups.find(
            host, asked, servers, secure=secure, may_ask=lambda alias: _may_ask(views, alias), kept=asker.kept
        )
        if asked == _T.AAAA and any(decision.openings for decision in decisions):
            found, gateways = await asyncio.gather(finding, self._lookups.gateways(servers))
        else:
            found = await finding
        for alias in found.aliases():
            decisions = follow_alias(views, decisions, alias)
            refusal = strictest(decisions)
            if refusal.verdict is Verdict.DENY:
                raise _DeniedAlias(alias, refusal.rule)
        left_s = int(found.ends - time.monotonic())

        # Where no rule for the name opens its addresses, the rules for addresses decide alone.
        def objection(address: str) -> str:
            objections = (
                view.rules.objection(address, behind(address, gateways))
                for view, decision in zip(views, decisions, strict=True)
                if decision.openings
            )
            return next(filter(None, objections), "")

        reply, addresses, why = replies.answer(query, found, objection, left_s)
        # What a rule by address opens of this host or a private network is in the kernel's table, with that rule's ports.
        public = [
            address for address in addresses if not inner(address) and not inner(behind(address, gateways) or address)
        ]
        for view, decision in zip(views, decisions, strict=True):
            if decision.openings:
                view.learned.open(public, decision.openings, left_s)
        return reply, addresses, why


def _may_ask(views: Sequence[View], alias: str) -> bool:
    allowed = Decision(Verdict.ALLOW, 0)
    return all(view.rules.of_alias(allowed, alias).verdict is Verdict.ALLOW for view in views)


def _is_refusal(decision: Decision) -> bool:
    return decision.verdict is Verdict.DENY


def _is_open_to_question(decision: Decision) -> bool:
    """Merely no rule allows it."""
    return decision.verdict is Verdict.DENY and decision.rule == 0


def _key(sender: Sender, protocol: int) -> bytes:
    address, port = sender[:2]
    return question_key(mapped(address.partition("%")[0]), port, protocol)


def _text(address: bytes) -> str:
    parsed = ipaddress.IPv6Address(address)
    return str(parsed.ipv4_mapped or parsed)
