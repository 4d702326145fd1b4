"""What the resolver keeps, whom it asks, and what an answer says of itself; without a network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from mcpguard.resolver import lookups, replies, upstream
from mcpguard.resolver.lookups import Found, Lookups
from mcpguard.resolver.upstream import Servers


def found(addresses: int) -> Found:
    lines = [f"203.0.{n // 250}.{n % 250 + 1}" for n in range(addresses)]
    rrset = dns.rrset.from_text_list("ok.test.", 60, "IN", "A", lines)
    return Found(dns.rcode.NOERROR, (rrset,), (), True, time.monotonic() + 60)


@pytest.mark.parametrize(
    ("addresses", "refused", "says"),
    [(64, "", True), (65, "", False), (2, "203.0.0.1", False), (1, "203.0.0.1", False)],
)
def test_only_a_whole_answer_says_that_it_is_authentic(addresses: int, refused: str, says: bool) -> None:
    query = dns.message.make_query("ok.test", "A", want_dnssec=True)
    reply, _, _ = replies.answer(query, found(addresses), lambda address: "inside" if address == refused else "", 60)
    assert bool(reply.flags & dns.flags.AD) == says


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 192.0.2.1\nnameserver 192.0.2.2\n", ["192.0.2.1", "192.0.2.2"]),
        ("# nobody\n", ["127.0.0.1"]),
        ("nameserver nonsense\n", ["127.0.0.1"]),
        (None, ["127.0.0.1"]),
    ],
)
def test_where_no_server_is_named_the_host_itself_is_asked(
    tmp_path: Path, text: str | None, servers: list[str]
) -> None:
    conf = tmp_path / "resolv.conf"
    if text is not None:
        conf.write_text(text)
    assert Servers(str(conf)).now() == servers


def test_answers_are_kept_within_bounds_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def ask(
        _servers: Sequence[str], name: dns.name.Name, kind: dns.rdatatype.RdataType, *, secure: bool
    ) -> dns.message.Message:
        asked.append(name.to_text(omit_final_dot=True))
        reply = dns.message.make_response(dns.message.make_query(name, kind, want_dnssec=secure))
        text = " ".join(f'"{"x" * 250}"' for _ in range(200))
        reply.answer = [dns.rrset.from_text(name, 60, "IN", "TXT", text)]
        return reply

    monkeypatch.setattr(upstream, "ask", ask)
    kept = Lookups()

    async def act() -> None:
        for n in (*range(100), 99, 0):
            await kept.find(f"n{n}.test", dns.rdatatype.TXT, ["192.0.2.1"], secure=False, may_ask=lambda _name: True)

    asyncio.run(act())
    assert asked.count("n99.test") == 1
    assert asked.count("n0.test") == 2  # it made room
    room = sum(one.room() for one in kept._kept.values())
    assert kept._kept_bytes == room
    assert lookups._MOST_KEPT_BYTES // 2 < room <= lookups._MOST_KEPT_BYTES
