"""What goes back to the program: answers, and refusals that its library understands at once."""

from __future__ import annotations

from collections.abc import Callable

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdata
import dns.rdatatype
import dns.rdtypes.svcbbase as svcb
import dns.rrset
import dns.wire

from mcpguard.resolver.lookups import Found
from mcpguard.resolver.upstream import PAYLOAD

_SMALLEST = 512
_LARGEST = 65535
# Of one answer: a name whose server gives thousands must not fill the kernel's map, which all names share.
MOST_ADDRESSES = 64
_HEADER_BYTES = 12
# Addresses must be asked for. Without a key for an encrypted hello, programs name their host where it can be read.
_HINTS = (svcb.ParamKey.IPV4HINT, svcb.ParamKey.IPV6HINT, svcb.ParamKey.ECH)
ADDRESSES = (dns.rdatatype.A, dns.rdatatype.AAAA)
SERVICES = (dns.rdatatype.SVCB, dns.rdatatype.HTTPS)


def malformed(wire: bytes) -> bytes | None:
    """The answer to what is no question; None: not even that can be answered."""
    if len(wire) < _HEADER_BYTES or wire[2] & 0x80:
        return None
    reply = dns.message.Message(id=int.from_bytes(wire[:2], "big"))
    reply.flags = dns.flags.QR | dns.flags.RA
    reply.set_rcode(dns.rcode.FORMERR)
    return reply.to_wire()


def refusal(
    query: dns.message.Message, rcode: dns.rcode.Rcode, words: str, code: dns.edns.EDECode = dns.edns.EDECode.PROHIBITED
) -> dns.message.Message:
    """A reply without records. Who speaks EDNS gets the reason with it."""
    reply = dns.message.make_response(query, recursion_available=True, our_payload=PAYLOAD)
    reply.set_rcode(rcode)
    if query.edns >= 0:
        options: list[dns.edns.Option] = [dns.edns.EDEOption(code, words[:200])]
        reply.use_edns(0, query.ednsflags & dns.flags.DO, PAYLOAD, query.payload, options)
        reply.set_rcode(rcode)
    return reply


def answer(
    query: dns.message.Message, found: Found, objection: Callable[[str], str], ttl_s: int
) -> tuple[dns.message.Message, list[str], str]:
    """The reply to an allowed question.

    Args:
        objection: why an address must not be told; empty: it may be.
        ttl_s: how long the answer holds from now on.

    Returns:
        The reply, the addresses in it (at most MOST_ADDRESSES), and why others are not.
    """
    kept, why, whole = [], "", True
    addresses: list[str] = []
    for rrset in found.answer:
        records = []
        for record in rrset:
            if rrset.rdtype in ADDRESSES:
                if len(addresses) == MOST_ADDRESSES:
                    whole = False
                    break
                words = objection(record.address)
                if words:
                    why = f"it leads to {record.address} ({words})"
                    continue
                addresses.append(record.address)
            records.append(_without_hints(record) if rrset.rdtype in SERVICES else record)
        if records:
            made = dns.rrset.RRset(rrset.name, rrset.rdclass, rrset.rdtype, rrset.covers)
            made.update_ttl(min(rrset.ttl, max(ttl_s, 0)))
            for record in records:
                made.add(record)
            kept.append(made)
    if why and not addresses:
        return refusal(query, dns.rcode.NOERROR, why, dns.edns.EDECode.FILTERED), [], why
    reply = dns.message.make_response(query, recursion_available=True, our_payload=PAYLOAD)
    reply.set_rcode(found.rcode)
    if found.authentic and whole and not why:
        reply.flags |= dns.flags.AD
    reply.answer = kept
    reply.authority = [] if kept else list(found.authority)
    return reply, addresses, why


def _without_hints(record: dns.rdata.Rdata) -> dns.rdata.Rdata:
    """A service record without what it suggests."""
    if not isinstance(record, svcb.SVCBBase):
        return record
    params = {key: value for key, value in record.params.items() if key not in _HINTS}
    mandatory = params.pop(svcb.ParamKey.MANDATORY, None)
    needed = [key for key in mandatory.keys if key not in _HINTS] if mandatory is not None else []
    if needed:
        wire = b"".join(int(key).to_bytes(2, "big") for key in needed)
        parser = dns.wire.Parser(wire)
        params[svcb.ParamKey.MANDATORY] = svcb.MandatoryParam.from_wire_parser(parser)  # type: ignore[no-untyped-call]
    return record.replace(params=params)


def to_wire(reply: dns.message.Message, query: dns.message.Message, *, stream: bool) -> bytes:
    """The bytes; what does not fit a datagram is cut, and says so."""
    if stream:
        return reply.to_wire(max_size=_LARGEST)
    room = min(max(query.payload, _SMALLEST), PAYLOAD) if query.edns >= 0 else _SMALLEST
    try:
        return reply.to_wire(max_size=room, prefer_truncation=True)
    except dns.exception.TooBig:
        return cut(query)


def cut(query: dns.message.Message) -> bytes:
    """The bytes of an answer that says: ask again by a stream."""
    short = refusal(query, dns.rcode.NOERROR, "", dns.edns.EDECode.OTHER)
    short.flags |= dns.flags.TC
    return short.to_wire()
