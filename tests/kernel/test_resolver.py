"""The resolver of a session as a process: what it asks, what it answers, and what it opens before it does.

The maps are the kernel's, the process is the real one, the name server is of the tests' own. No session: who asks is written
into the map as the programs would.
"""

from __future__ import annotations

import ipaddress
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest
from harness import need_root
from upstream import HOST, Upstream, failing, in_own_mounts, late, truncated, upstream

from mcpguard.kernel import bpf
from mcpguard.kernel.bpf import Map
from mcpguard.model.access import Effect, Verdict
from mcpguard.model.policy import PROTO_TCP, PROTO_UDP, NameEntry, NetEntry, Policy, User
from mcpguard.model.profile import SystemSwitches
from mcpguard.model.rule import Origin
from mcpguard.model.values import replace
from mcpguard.policy.network import mapped
from mcpguard.resolver.rules import Opening
from mcpguard.resolver.table import Learned
from mcpguard.session import resolver as resolver_module
from mcpguard.session.resolver import Resolver
from mcpguard.wire import _abi, encode, lookups
from mcpguard.wire.encode import LearnedRule
from mcpguard.wire.records import LookupRecord

pytestmark = pytest.mark.kernel

HASH = 1
BOTH = PROTO_TCP | PROTO_UDP
PID = 4711
WAIT_S = 30.0
PUBLIC, OTHER, PUBLIC6 = "203.0.113.1", "203.0.113.2", "2001:db8:1::1"
IN_RANGE = "10.9.9.9"


def entry(pattern: str, low: int, high: int = 0, effect: Effect = Effect.ALLOW, rule: int = 1) -> NameEntry:
    return NameEntry(pattern, low, high or low, BOTH, effect, rule)


NAMES = (
    entry("ok.test", 443),
    entry("*.wild.test", 443, rule=2),
    entry("shut.wild.test", 0, 65535, Effect.DENY, rule=3),
    entry("gone.test", 443),
    entry("slow.test", 443),
    entry("dead.test", 443),
    entry("broken.test", 443),
    entry("cut.test", 443),
    entry("chain.test", 443),
    entry("chain2.test", 443),
    entry("rebind.test", 443),
    entry("mixed.test", 443),
    entry("ranged.test", 443),
    entry("zero.test", 443),
    entry("one.test", 443),
    entry("long.test", 443),
    entry("service.test", 443),
    entry("mail.test", 443),
    entry("xn--bcher-kva.test", 443),
    entry("many.wild.test", 443),
    entry("loop.test", 443),
    entry("liar.test", 443),
    entry("many.test", 443),
    entry("v4alias.test", 443),
    entry("shutalias.test", 443),
    entry("shutalias2.test", 443),
    entry("v4alias2.test", 443),
    entry("plain.test", 443),
    entry("natted.test", 443),
    entry("natted-inside.test", 443),
    entry("natted-denied.test", 443),
)
CONNECT = (
    NetEntry(mapped("10.9.0.0"), 112, 0, 65535, BOTH, Effect.ALLOW, 7),
    NetEntry(mapped("203.0.113.99"), 128, 0, 65535, BOTH, Effect.DENY, 8),
)


def make_policy(**changes: Any) -> Policy:
    user = User(1000, 1000, (), "user", "/home/user")
    empty = Policy(
        *("", "p", (), user, "/w", "/tmp", (Origin("p", "p.yaml", 1, "default"),), ("",), b""),
        *((), (), (), (), (), (), (), SystemSwitches()),
    )
    return replace(empty, **changes)


class InOwnMounts(Resolver):
    """Its processes see another resolv.conf."""

    conf: Path

    def _keep(self) -> None:
        in_own_mounts({"/etc/resolv.conf": self.conf})
        super()._keep()


@dataclass
class Bench:
    """A resolver with its server, its maps, and a client that may ask it."""

    resolver: Resolver
    server: Upstream
    names: Map
    questions: Map
    conf: Path
    told: list[LookupRecord] = field(default_factory=list)

    def known(self, sock: socket.socket, server: str = HOST) -> None:
        """Let this socket be one of the tree's."""
        port, kind = sock.getsockname()[1], sock.type
        protocol = socket.IPPROTO_UDP if kind == socket.SOCK_DGRAM else socket.IPPROTO_TCP
        value = _abi.MG_QUESTION.pack(PID, PID, 1, 0, b"client", mapped(server))
        self.questions.set(encode.question_key(mapped("127.0.0.1"), port, protocol), value)

    def send(self, wire: bytes, *, wait_s: float = WAIT_S, known: bool = True, server: str = HOST) -> bytes | None:
        """The answer to these bytes; None: there was none in time."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(wait_s)
            if known:
                self.known(sock, server)
            sock.sendto(wire, ("127.0.0.1", self.resolver.port))
            try:
                return sock.recv(65535)
            except TimeoutError:
                return None

    def ask(self, name: str | dns.name.Name, kind: str = "A", **more: Any) -> dns.message.Message:
        query = dns.message.make_query(name, kind, use_edns=more.pop("use_edns", 0), rdclass=more.pop("rdclass", "IN"))
        return self.exchange(query, **more)

    def exchange(self, query: dns.message.Message, **more: Any) -> dns.message.Message:
        wire = self.send(query.to_wire(), **more)
        assert wire is not None, "no answer"
        answer = dns.message.from_wire(wire)
        assert answer.id == query.id
        return answer

    def addresses(self, name: str, kind: str = "A") -> list[str]:
        return [r.to_text() for one in self.ask(name, kind).answer for r in one if one.rdtype in (1, 28)]

    def learned(self, address: str) -> list[LearnedRule]:
        value = self.names.get(mapped(address), _abi.MG_LEARNED.size)
        if value is None:
            return []
        count, _, packed = _abi.MG_LEARNED.unpack(value)
        return [LearnedRule(*one[:5]) for one in _abi.MG_LEARNED_RULE.iter_unpack(packed)][:count]

    def told_of(self, host: str) -> LookupRecord:
        """What was put on record about a name, the newest."""
        deadline = time.monotonic() + WAIT_S
        while True:
            self.told += map(lookups.decode, self.resolver.feed.drain())
            found = [record for record in self.told if record.host == host]
            if found:
                return found[-1]
            left = deadline - time.monotonic()
            assert left > 0, f"nothing about {host}"
            select.select([self.resolver.feed], [], [], left)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    need_root()
    conf = tmp_path_factory.mktemp("etc") / "resolv.conf"
    conf.write_text(f"nameserver {HOST}\noptions edns0\n")
    with upstream() as server:
        server.records = {
            "ok.test": [f"300 A {PUBLIC}", f"300 AAAA {PUBLIC6}", "60 TXT words"],
            "a.wild.test": [f"60 A {OTHER}"],
            "cut.test": ["60 A 203.0.113.20"],
            "slow.test": ["60 A 203.0.113.21"],
            "chain.test": ["60 CNAME far.elsewhere.example."],
            "far.elsewhere.example": ["60 CNAME farther.elsewhere.example."],
            "farther.elsewhere.example": ["60 A 203.0.113.22"],
            "split.example": ["60 A 203.0.113.23"],
            "shutalias.test": ["60 CNAME shut.wild.test."],
            "shut.wild.test": ["60 A 203.0.113.71"],
            "v4alias.test": ["60 CNAME v4.example."],
            "v4.example": ["60 A 203.0.113.70"],
            "loop.test": ["60 CNAME loop.test."],
            "rebind.test": ["0 A 127.0.0.1", "0 A 169.254.169.254", "0 A 10.0.0.1", "0 AAAA ::ffff:127.0.0.1"],
            "mixed.test": ["60 A 192.168.1.1", "60 A 203.0.113.24"],
            "ranged.test": [f"60 A {IN_RANGE}"],
            "plain.test": ["60 A 203.0.113.72"],
            "ipv4only.arpa": ["60 AAAA 2001:db8:64::c000:aa", "60 AAAA 2001:db8:64::c000:ab"],
            "natted.test": ["60 AAAA 2001:db8:64::203.0.113.1"],
            "natted-inside.test": ["60 AAAA 2001:db8:64::169.254.169.254"],
            "natted-denied.test": ["60 AAAA 2001:db8:64::203.0.113.99"],
            "zero.test": ["0 A 203.0.113.25"],
            "one.test": ["1 A 203.0.113.26"],
            "long.test": ["999999 A 203.0.113.27"],
            "service.test": [
                "60 HTTPS 1 . alpn=h2 ipv4hint=203.0.113.28 ipv6hint=2001:db8::28 ech=AAR4eHh4 mandatory=ipv4hint,alpn"
            ],
            "mail.test": ["60 MX 10 mx.mail.test."],
            "xn--bcher-kva.test": ["60 A 203.0.113.29"],
            "many.test": [f"60 A 203.0.113.{n}" for n in range(100, 250)],
        }
        server.behaves = {
            "broken.test": failing(dns.rcode.SERVFAIL),
            "cut.test": truncated(server),
            "slow.test": late(server, 1.0),
            "dead.test": lambda _query, _stream: None,
            "chain2.test": alias_only("split.example"),
            "liar.test": liar,
            "plain.test": without_extensions(server),
            "shutalias2.test": alias_only("shut.wild.test"),
            "v4alias2.test": alias_only("v4.example"),
        }
        names = Map("mg_names", bpf.create_map(HASH, "mg_names", 16, _abi.MG_LEARNED.size, 4096))
        questions = Map(
            "mg_questions",
            bpf.create_map(HASH, "mg_questions", _abi.MG_QUESTION_KEY.size, _abi.MG_QUESTION.size, 65536),
        )
        resolver = InOwnMounts()
        resolver.conf = conf
        resolver.start(make_policy(names=NAMES, connect=CONNECT), {"mg_names": names.fd, "mg_questions": questions.fd})
        yield Bench(resolver, server, names, questions, conf)
        resolver.close()
        names.close()
        questions.close()


def without_extensions(server: Upstream) -> Any:
    """Does not know EDNS, and says so as old servers do: by the header alone."""

    def reply(query: dns.message.Message, _stream: bool) -> dns.message.Message:
        if query.edns < 0:
            return server.found(query)
        made = dns.message.Message(query.id)
        made.flags = dns.flags.QR
        made.set_rcode(dns.rcode.FORMERR)
        return made

    return reply


def alias_only(target: str) -> Any:
    """Says where a name leads, and leaves it there."""

    def reply(query: dns.message.Message, _stream: bool) -> dns.message.Message:
        made = dns.message.make_response(query)
        made.answer = [dns.rrset.from_text(query.question[0].name, 60, "IN", "CNAME", f"{target}.")]
        return made

    return reply


def liar(query: dns.message.Message, _stream: bool) -> dns.message.Message:
    """Answers about a name that nobody asked for, too."""
    made = dns.message.make_response(query)
    made.answer = [
        dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "203.0.113.30"),
        dns.rrset.from_text("other.example.", 60, "IN", "A", "203.0.113.31"),
    ]
    made.additional = [dns.rrset.from_text("third.example.", 60, "IN", "A", "203.0.113.32")]
    return made


# --- what is answered ---------------------------------------------------------------------------------------------


def test_an_allowed_name_is_answered_and_open_on_its_port_before(bench: Bench) -> None:
    assert bench.addresses("ok.test") == [PUBLIC]
    (rule,) = bench.learned(PUBLIC)
    assert (rule.rule, rule.low, rule.high, rule.protocols) == (1, 443, 443, BOTH)
    left_s = (rule.expires_ns - time.monotonic_ns()) / 1e9
    assert 300 < left_s <= 330
    assert bench.addresses("ok.test", "AAAA") == [PUBLIC6]
    assert bench.learned(PUBLIC6)
    told = bench.told_of("ok.test")
    assert (told.verdict, told.rule, told.head.pid, told.head.comm) == (Verdict.ALLOW, 1, PID, "client")


@pytest.mark.parametrize("written", ["OK.Test", "oK.tEsT.", "ok.test."])
def test_letters_come_back_as_they_were_asked(bench: Bench, written: str) -> None:
    query = dns.message.make_query(written, "A")
    wire = bench.send(query.to_wire())
    assert wire is not None
    assert b"".join(bytes([len(part)]) + part.encode() for part in written.rstrip(".").split(".")) in wire
    assert dns.message.from_wire(wire).answer


@pytest.mark.parametrize("name", ["a.wild.test", "deep.down.wild.test"])
def test_a_wildcard_holds_at_every_depth(bench: Bench, name: str) -> None:
    bench.server.records[name] = [f"60 A {OTHER}"]
    assert bench.addresses(name) == [OTHER]
    assert bench.learned(OTHER)[0].rule == 2


def test_punycode_is_a_name_as_any_other(bench: Bench) -> None:
    assert bench.addresses("xn--bcher-kva.test") == ["203.0.113.29"]


LONG = ".".join(["x" * 60] * 4)
# 255 bytes as they are sent: as long as a name can be. One more is no name.
LONGEST = ".".join(["x" * 63, "x" * 63, "x" * 63, "x" * 51, "wild.test"])
REFUSED = {
    "no-rule": dns.name.from_text("evil.test"),
    "a-rule-denies": dns.name.from_text("shut.wild.test"),
    "below-the-denied": dns.name.from_text("secretdata.evil.test"),
    "look-alike-before": dns.name.from_text("evilok.test"),
    "look-alike-behind": dns.name.from_text("ok.test.evil.example"),
    "a-nul": dns.name.Name([b"a\0b", b"wild", b"test", b""]),
    "a-line-break": dns.name.Name([b"a\r\nb", b"wild", b"test", b""]),
    "a-dot-inside-a-label": dns.name.Name([b"ok.test", b"wild", b"test", b""]),
    "a-dot-that-makes-a-name": dns.name.Name([b"ok.test", b""]),
    "a-space": dns.name.Name([b"a b", b"wild", b"test", b""]),
    "beyond-ascii": dns.name.Name([b"\xc3\xa9", b"wild", b"test", b""]),
    "a-star": dns.name.Name([b"*", b"wild", b"test", b""]),
    "a-long-one": dns.name.from_text(LONG + ".xxxxxx"),
    "the-longest": dns.name.from_text(LONGEST[:-4] + "evil"),
    "an-address-backwards": dns.name.from_text("1.0.0.10.in-addr.arpa"),
    "a-single-word": dns.name.from_text("tes"),
}


def test_the_longest_name_of_all_is_answered(bench: Bench) -> None:
    name = dns.name.from_text(LONGEST)
    assert len(name.to_wire()) == 255
    bench.server.records[LONGEST] = [f"60 A {OTHER}"]
    assert bench.addresses(LONGEST) == [OTHER]


@pytest.mark.parametrize("case", REFUSED)
def test_a_name_without_a_rule_is_refused_at_once_and_never_asked_for(bench: Bench, case: str) -> None:
    name = REFUSED[case]
    before = len(bench.server.raw)
    for kind in ("A", "TXT", "PTR"):
        answer = bench.ask(name, kind)
        assert (answer.rcode(), answer.answer) == (dns.rcode.NXDOMAIN, [])
        assert answer.question[0].name == name
        (why,) = [option for option in answer.options if isinstance(option, dns.edns.EDEOption)]
        assert why.code == dns.edns.EDECode.PROHIBITED
        assert why.text
    assert bench.ask(name, use_edns=-1).rcode() == dns.rcode.NXDOMAIN
    assert len(bench.server.raw) == before, "the server outside has seen something of it"
    told = bench.told_of(name.to_text(omit_final_dot=True).lower())
    assert (told.verdict, told.rule) == (Verdict.DENY, 3 if case == "a-rule-denies" else 0)


@pytest.mark.parametrize("name", [dns.name.root, dns.name.from_text("wild.test"), dns.name.from_text("test")])
def test_a_name_above_an_allowed_one_is_refused_without_a_word_about_what_is_below(
    bench: Bench, name: dns.name.Name
) -> None:
    before = len(bench.server.raw)
    for kind in ("A", "NS"):
        answer = bench.ask(name, kind)
        assert (answer.rcode(), answer.answer, answer.authority) == (dns.rcode.NOERROR, [], [])
    assert len(bench.server.raw) == before
    assert bench.told_of(name.to_text(omit_final_dot=True)).verdict is Verdict.DENY


@pytest.mark.parametrize("kind", ["ANY", "AXFR", "IXFR", "NULL", "MAILB"])
def test_a_type_that_no_program_needs_is_refused(bench: Bench, kind: str) -> None:
    before = len(bench.server.raw)
    assert bench.ask("ok.test", kind).rcode() == dns.rcode.REFUSED
    assert len(bench.server.raw) == before


def test_a_type_that_nobody_knows_has_no_data(bench: Bench) -> None:
    before = len(bench.server.raw)
    answer = bench.ask("ok.test", "TYPE65280")
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])
    assert len(bench.server.raw) == before


@pytest.mark.parametrize("rdclass", ["CH", "HS", "ANY"])
def test_another_class_is_refused(bench: Bench, rdclass: str) -> None:
    before = len(bench.server.raw)
    assert bench.ask("ok.test", rdclass=rdclass).rcode() == dns.rcode.REFUSED
    assert len(bench.server.raw) == before


def _two_questions() -> bytes:
    query = dns.message.make_query("ok.test", "A")
    query.question.append(dns.message.make_query("evil.test", "A").question[0])
    return query.to_wire()


def _broken(tail: bytes, questions: int = 1) -> bytes:
    return struct.pack("!6H", 77, 0x0100, questions, 0, 0, 0) + tail


MALFORMED = {
    "two questions": _two_questions(),
    "no question": _broken(b"", 0),
    "cut short": _broken(b"\x02ok"),
    "a pointer to itself": _broken(b"\xc0\x0c\x00\x01\x00\x01"),
    "a label too long": _broken(b"\x40" + b"x" * 64 + b"\0\x00\x01\x00\x01"),
    "a name of 256 bytes": _broken((b"\x3f" + b"x" * 63) * 3 + b"\x34" + b"x" * 52 + b"\4wild\4test\0\x00\x01\x00\x01"),
    "bytes behind it": dns.message.make_query("ok.test", "A").to_wire() + b"secret data",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_question_gets_a_well_formed_no(bench: Bench, case: str) -> None:
    before = len(bench.server.raw)
    wire = bench.send(MALFORMED[case])
    assert wire is not None
    answer = dns.message.from_wire(wire)
    assert (answer.rcode(), answer.id) == (dns.rcode.FORMERR, int.from_bytes(MALFORMED[case][:2], "big"))
    assert bench.told_of("").verdict is Verdict.DENY
    assert len(bench.server.raw) == before


AN_ANSWER = dns.message.make_response(dns.message.make_query("ok.test", "A")).to_wire()


@pytest.mark.parametrize("wire", [b"", b"x", b"\0" * 11, AN_ANSWER])
def test_what_can_have_no_answer_gets_none_and_hurts_nobody(bench: Bench, wire: bytes) -> None:
    assert bench.send(wire, wait_s=0.5) is None
    assert bench.addresses("ok.test") == [PUBLIC]


def test_other_orders_are_not_taken(bench: Bench) -> None:
    query = dns.message.make_query("ok.test", "A")
    query.set_opcode(dns.opcode.STATUS)
    assert bench.exchange(query).rcode() == dns.rcode.NOTIMP


def test_what_hangs_on_a_question_does_not_leave_with_it(bench: Bench) -> None:
    """Records in other sections, options, and letters of the name could all carry data out."""
    query = dns.message.make_query("tAiLs.WiLd.TeSt", "A")
    query.additional.append(dns.rrset.from_text("secretdata.example.", 1, "IN", "TXT", '"secretdata"'))
    query.use_edns(0, options=[dns.edns.GenericOption(65001, b"secretdata")])
    bench.exchange(query)
    last = bench.server.raw[-1]
    assert b"\x05tails\x04wild\x04test" in last
    assert b"secretdata" not in last


# --- what servers say -------------------------------------------------------------------------------------------------


def test_an_answer_that_was_cut_is_asked_for_by_a_stream(bench: Bench) -> None:
    assert bench.addresses("cut.test") == ["203.0.113.20"]
    assert {stream for name, _, stream, *_ in bench.server.asked if name == "cut.test"} == {False, True}


def test_aliases_need_no_rule_and_belong_to_the_question(bench: Bench) -> None:
    assert bench.addresses("chain.test") == ["203.0.113.22"]
    assert bench.learned("203.0.113.22")
    assert bench.ask("far.elsewhere.example").rcode() == dns.rcode.NXDOMAIN


def test_a_server_that_leaves_an_alias_is_asked_on(bench: Bench) -> None:
    assert bench.addresses("chain2.test") == ["203.0.113.23"]
    assert bench.learned("203.0.113.23")


def test_a_server_that_knows_no_extensions_is_asked_without(bench: Bench) -> None:
    assert bench.addresses("plain.test") == ["203.0.113.72"]
    assert bench.server.names().count("plain.test") == 2


def test_an_alias_to_itself_ends(bench: Bench) -> None:
    assert bench.ask("loop.test").rcode() == dns.rcode.SERVFAIL


def test_what_nobody_asked_for_is_neither_told_nor_opened(bench: Bench) -> None:
    answer = bench.ask("liar.test")
    assert [r.to_text() for one in answer.answer for r in one] == ["203.0.113.30"]
    assert not answer.additional
    assert bench.learned("203.0.113.30")
    assert not bench.learned("203.0.113.31")
    assert not bench.learned("203.0.113.32")


def test_a_name_that_is_not_there_is_not_there(bench: Bench) -> None:
    assert bench.ask("gone.test").rcode() == dns.rcode.NXDOMAIN
    assert bench.told_of("gone.test").verdict is Verdict.ALLOW


@pytest.mark.parametrize("name", ["broken.test", "dead.test"])
def test_a_server_that_fails_is_a_failure_in_the_end(bench: Bench, name: str) -> None:
    assert bench.ask(name).rcode() == dns.rcode.SERVFAIL
    assert bench.told_of(name).detail.startswith("no answer")


def test_the_next_server_is_asked_when_one_fails(bench: Bench) -> None:
    with upstream("127.77.0.54") as second:
        second.records = {"broken.test": ["60 A 203.0.113.40"]}
        before = bench.conf.read_text()
        bench.conf.write_text(f"nameserver {HOST}\nnameserver 127.77.0.54\n")
        try:
            assert bench.addresses("broken.test") == ["203.0.113.40"]
        finally:
            bench.conf.write_text(before)


@pytest.mark.parametrize("name", ["v4alias.test", "v4alias2.test"])
def test_an_alias_without_such_an_address_ends_after_one_more_question(bench: Bench, name: str) -> None:
    """The stubs of systemd-resolved and dnsmasq say "there is none" without a proof of it."""
    before = len(bench.server.asked)
    answer = bench.ask(name, "AAAA")
    assert answer.rcode() == dns.rcode.NOERROR
    assert [one.rdtype for one in answer.answer] == [dns.rdatatype.CNAME]
    assert bench.server.names()[before:] == [name, "v4.example"]
    assert bench.addresses(name) == ["203.0.113.70"]


@pytest.mark.parametrize("name", ["shutalias.test", "shutalias2.test"])
def test_an_alias_of_a_denied_name_is_refused_by_its_rule(bench: Bench, name: str) -> None:
    answer = bench.ask(name)
    assert (answer.rcode(), answer.answer) == (dns.rcode.NXDOMAIN, [])
    assert not bench.learned("203.0.113.71")
    assert "shut.wild.test" not in bench.server.names()
    told = bench.told_of(name)
    assert (told.verdict, told.rule) == (Verdict.DENY, 3)
    assert "shut.wild.test" in told.detail


def test_a_slow_answer_comes_when_it_comes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = threading.Event(), threading.Event()
    slowly = bench.server.behaves["slow.test"]

    def held(query: dns.message.Message, stream: bool) -> Any:
        asked.set()
        go_on.wait(WAIT_S)
        return slowly(query, stream)

    monkeypatch.setitem(bench.server.behaves, "slow.test", held)
    came: list[str] = []
    threads = [threading.Thread(target=lambda: came.extend(bench.addresses("slow.test"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert asked.wait(WAIT_S)
    assert bench.addresses("ok.test") == [PUBLIC] and not came, "nobody else waits for it"
    go_on.set()
    for thread in threads:
        thread.join()
    assert came == ["203.0.113.21"] * 3


@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_a_name_never_leads_to_this_host_or_inside(bench: Bench, kind: str) -> None:
    answer = bench.ask("rebind.test", kind)
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])
    for address in ("127.0.0.1", "169.254.169.254", "10.0.0.1", "::ffff:127.0.0.1"):
        assert not bench.learned(address)
    told = bench.told_of("rebind.test")
    assert told.verdict is Verdict.DENY
    assert "leads to" in told.detail


def test_a_gateway_of_the_network_leads_nowhere_else_than_the_address_behind_it(bench: Bench) -> None:
    """The server says by which prefix its network carries to IPv4."""
    assert bench.addresses("natted.test", "AAAA") == ["2001:db8:64::cb00:7101"]
    assert bench.learned("2001:db8:64::cb00:7101")
    for name, words in (("natted-inside.test", "link-local"), ("natted-denied.test", "a rule denies")):
        assert bench.addresses(name, "AAAA") == []
        told = bench.told_of(name)
        assert told.verdict is Verdict.DENY
        assert words in told.detail
    assert not bench.learned("2001:db8:64::a9fe:a9fe")


def test_of_a_mixed_answer_the_public_part_is_told(bench: Bench) -> None:
    assert bench.addresses("mixed.test") == ["203.0.113.24"]
    assert not bench.learned("192.168.1.1")


def test_an_inner_address_that_a_rule_allows_by_itself_is_told(bench: Bench) -> None:
    assert bench.addresses("ranged.test") == [IN_RANGE]
    assert not bench.learned(IN_RANGE)  # on the ports of that rule, which are in the kernel's table, and on no other


@pytest.mark.parametrize(("name", "address"), [("zero.test", "203.0.113.25"), ("one.test", "203.0.113.26")])
def test_the_shortest_answers_are_open_long_enough_to_connect(bench: Bench, name: str, address: str) -> None:
    assert bench.addresses(name) == [address]
    left_s = (bench.learned(address)[0].expires_ns - time.monotonic_ns()) / 1e9
    assert 60 < left_s <= 90


def test_nobody_is_told_to_keep_an_answer_longer_than_it_is_open(bench: Bench) -> None:
    (rrset,) = bench.ask("long.test").answer
    left_s = (bench.learned("203.0.113.27")[0].expires_ns - time.monotonic_ns()) / 1e9
    assert rrset.ttl <= left_s <= 3630


def test_an_answer_is_kept_as_long_as_it_says_and_no_longer(bench: Bench) -> None:
    for _ in range(3):
        bench.ask("ok.test")
        bench.ask("zero.test")
    assert bench.server.names().count("zero.test") >= 3
    assert sum(name == "ok.test" and kind == "A" for name, kind, *_ in bench.server.asked) == 1


def test_a_service_record_loses_the_addresses_that_it_suggests(bench: Bench) -> None:
    (rrset,) = bench.ask("service.test", "HTTPS").answer
    assert "hint" not in rrset[0].to_text()
    assert "ech" not in rrset[0].to_text(), "programs name their host where it can be read"
    assert "h2" in rrset[0].to_text()
    assert not bench.learned("203.0.113.28")


def test_other_records_of_an_allowed_name_are_told(bench: Bench) -> None:
    assert bench.ask("mail.test", "MX").answer[0][0].to_text() == "10 mx.mail.test."
    assert bench.ask("ok.test", "TXT").answer


def test_a_large_answer_is_cut_and_whole_by_a_stream(bench: Bench) -> None:
    small = bench.ask("many.test", use_edns=-1)
    assert small.flags & dns.flags.TC
    query = dns.message.make_query("many.test", "A")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        stream.bind(("127.0.0.1", 0))
        stream.settimeout(WAIT_S)
        bench.known(stream)
        stream.connect(("127.0.0.1", bench.resolver.port))
        wire = query.to_wire()
        stream.sendall(len(wire).to_bytes(2, "big") + wire)
        with stream.makefile("rb") as reader:
            answer = dns.message.from_wire(reader.read(int.from_bytes(reader.read(2), "big")))
    told = [record.address for one in answer.answer for record in one]
    assert len(told) == 64  # of 150, and no more are opened
    every = [str(ipaddress.ip_address("203.0.113.100") + n) for n in range(50, 150)]
    assert [one for one in every if bench.learned(one)] == [one for one in every if one in told]


# --- who asks, and how often ----------------------------------------------------------------------------------------


def test_who_is_not_of_the_tree_gets_no_answer(bench: Bench) -> None:
    before = len(bench.server.raw)
    assert bench.send(dns.message.make_query("fresh.wild.test", "A").to_wire(), known=False, wait_s=0.5) is None
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        stream.settimeout(WAIT_S)
        stream.connect(("127.0.0.1", bench.resolver.port))
        assert stream.recv(1) == b""
    assert len(bench.server.raw) == before


def test_a_port_that_somebody_else_may_have_by_now_is_forgotten(bench: Bench) -> None:
    wire = dns.message.make_query("ok.test", "A").to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(WAIT_S)
        bench.known(sock)
        for _ in range(2):  # both were said to be of the tree once, as two that wait at the same time
            sock.sendto(wire, ("127.0.0.1", bench.resolver.port))
        assert sock.recv(4096) and sock.recv(4096)
        key = encode.question_key(mapped("127.0.0.1"), sock.getsockname()[1], socket.IPPROTO_UDP)
        deadline = time.monotonic() + WAIT_S
        while bench.questions.get(key, _abi.MG_QUESTION.size) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        sock.settimeout(0.5)
        sock.sendto(wire, ("127.0.0.1", bench.resolver.port))
        with pytest.raises(TimeoutError):
            sock.recv(4096)


def test_questions_that_find_no_room_are_counted(bench: Bench) -> None:
    bench.addresses("ok.test")
    before, sent = bench.resolver.feed.missing(), 20_000
    wire = dns.message.make_query("evil.test", "A").to_wire()
    assert bench.resolver._process is not None
    bench.resolver._process.send_signal(signal.SIGSTOP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        bench.known(sock)
        for _ in range(sent):
            sock.sendto(wire, ("127.0.0.1", bench.resolver.port))
    bench.resolver._process.send_signal(signal.SIGCONT)
    missing = bench.resolver.feed.missing() - before
    assert 0 < missing < sent
    deadline = time.monotonic() + WAIT_S
    while bench.send(wire, wait_s=0.5) is None:  # the first ones may find no room either
        assert time.monotonic() < deadline


def test_two_hundred_questions_at_once_are_all_answered_each_asked_for_once(bench: Bench) -> None:
    bench.server.records |= {f"n{n}.wild.test": [f"60 A 203.0.113.{n % 90 + 150}"] for n in range(50)}
    answers: list[list[str]] = []

    def work(n: int) -> None:
        answers.append(bench.addresses(f"n{n % 50}.wild.test"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 200
    assert all(len(one) == 1 for one in answers)
    asked = [name for name in bench.server.names() if name.startswith("n") and name.endswith(".wild.test")]
    assert len(asked) == len(set(asked)) == 50


def test_ports_and_ids_towards_the_server_are_not_to_be_guessed(bench: Bench) -> None:
    seen = [(port, id_) for *_, port, id_ in bench.server.asked]
    assert len({port for port, _ in seen}) > len(seen) // 2
    assert len({id_ for _, id_ in seen}) > len(seen) // 2


def test_different_ports_of_one_address_stand_beside_each_other(bench: Bench) -> None:
    bench.server.records["both.wild.test"] = [f"60 A {PUBLIC}"]
    bench.ask("ok.test")
    bench.ask("both.wild.test")
    assert [rule.rule for rule in bench.learned(PUBLIC)] in ([1], [2])  # the same ports: the newest stands for both


def test_where_there_is_no_room_the_rule_with_the_most_addresses_gives_way() -> None:
    names = Map("mg_names", bpf.create_map(HASH, "mg_names", 16, _abi.MG_LEARNED.size, 1000))
    try:
        learned = Learned(names)
        few, many = (Opening(443, 443, BOTH, 1),), (Opening(443, 443, BOTH, 2),)
        learned.open(["198.51.100.1"], few, 60)
        every = [str(ipaddress.ip_address("203.0.0.0") + n) for n in range(1100)]
        for n in range(0, len(every), 50):
            learned.open(every[n : n + 50], many, 60 + n)
        there = set(names.keys(16))
        assert mapped("198.51.100.1") in there
        assert {mapped(address) for address in every[-50:]} <= there
        assert mapped(every[0]) not in there  # the oldest of them
        learned.open(["198.51.100.2"], few, 60)  # others find room at all times
        assert mapped("198.51.100.2") in set(names.keys(16))
    finally:
        names.close()


def test_a_resolver_that_is_killed_comes_back_with_what_was_open(bench: Bench) -> None:
    bench.ask("ok.test")
    before = bench.learned(PUBLIC)
    process = bench.resolver._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    assert bench.addresses("ok.test") == [PUBLIC]
    assert bench.learned(PUBLIC)[0].expires_ns >= before[0].expires_ns
    assert bench.resolver._process is not None and bench.resolver._process.pid != process.pid


def test_new_rules_hold_when_they_are_taken_and_after_a_restart(bench: Bench) -> None:
    assert bench.ask("later.example").rcode() == dns.rcode.NXDOMAIN
    bench.server.records["later.example"] = ["60 A 203.0.113.60"]
    bench.resolver.adopt(make_policy(names=(*NAMES, entry("later.example", 443)), connect=CONNECT))
    assert bench.addresses("later.example") == ["203.0.113.60"]
    process = bench.resolver._process
    assert process is not None
    process.kill()
    assert bench.addresses("later.example") == ["203.0.113.60"]


def test_new_rules_are_in_force_when_taken_also_after_some_that_were_taken_late(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.server.records["late.example"] = ["60 A 203.0.113.61"]
    assert bench.ask("late.example").rcode() == dns.rcode.NXDOMAIN
    process = bench.resolver._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as patched:
        patched.setattr(resolver_module, "_ADOPT_S", 0.1)
        for _ in range(3):
            bench.resolver.adopt(make_policy(names=NAMES, connect=CONNECT))
    process.send_signal(signal.SIGCONT)
    bench.resolver.adopt(make_policy(names=(*NAMES, entry("late.example", 443)), connect=CONNECT))
    assert bench.resolver._owed == 0
    assert bench.addresses("late.example") == ["203.0.113.61"]


def test_code_of_a_project_that_python_is_pointed_to_does_not_run_in_it(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("dns", "sitecustomize", "mcpguard", "asyncio"):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    subprocess.run([sys.executable, "-c", "import asyncio"], check=True)
    assert (tmp_path / "ran").exists()  # what Python does without care
    (tmp_path / "ran").unlink()
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "dns/__init__.py"))
    bench.ask("ok.test")
    process = bench.resolver._process
    assert process is not None
    process.kill()
    assert bench.addresses("ok.test") == [PUBLIC]
    assert bench.resolver._process is not None
    seen = Path(f"/proc/{bench.resolver._process.pid}/environ").read_bytes()
    assert {line.partition(b"=")[0] for line in seen.split(b"\0")} == {b"HOME", b"PATH", b"LC_ALL", b""}
    assert not (tmp_path / "ran").exists()


def test_a_resolver_that_cannot_begin_is_told_of_once_and_questions_fail_at_once(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.ask("ok.test")
    bench.told_of("ok.test")
    entry = resolver_module._ENTRY
    monkeypatch.setattr(resolver_module, "_ENTRY", str(tmp_path / "none.py"))
    assert bench.resolver._process is not None
    bench.resolver._process.kill()
    for _ in range(3):
        answer = bench.ask("ok.test")
        assert (answer.rcode(), answer.answer) == (dns.rcode.SERVFAIL, [])
    told = [one for one in (bench.told_of(""), *bench.told) if "does not start" in one.detail]
    assert told[0].verdict is Verdict.DENY
    with socket.create_connection(("127.0.0.1", bench.resolver.port), WAIT_S) as stream:
        assert stream.recv(1) == b""
    monkeypatch.setattr(resolver_module, "_ENTRY", entry)
    deadline = time.monotonic() + WAIT_S
    while bench.ask("ok.test").rcode() != dns.rcode.NOERROR:
        assert time.monotonic() < deadline
    assert capfd.readouterr().err.count("names do not resolve") == 1


def test_the_first_question_starts_it_and_it_ends_with_who_started_it(bench: Bench) -> None:
    other = InOwnMounts()
    other.conf = bench.conf
    other.start(make_policy(), {"mg_names": bench.names.fd, "mg_questions": bench.questions.fd})
    assert other._process is None
    with socket.create_connection(("127.0.0.1", other.port), WAIT_S) as stream:
        assert stream.recv(1) == b""  # nobody of the tree
    process = other._process
    assert process is not None
    other._stop.set()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(WAIT_S) == 0
    other.close()


def test_a_resolver_that_is_killed_holds_nothing_and_the_next_one_holds_what_is_asked_again(bench: Bench) -> None:
    asking = InOwnMounts()
    asking.conf = bench.conf
    maps = {"mg_names": bench.names.fd, "mg_questions": bench.questions.fd}
    asking.start(make_policy(names=NAMES), maps, ask=True)
    question = dns.message.make_query("again.evil.test", "A").to_wire()

    def held() -> list[str]:
        assert asking.held is not None
        assert select.select([asking.held], [], [], WAIT_S)[0], "nothing was told"
        return [name for name, *_ in json.loads(asking.held.recv(1 << 16))]

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(WAIT_S)

        def ask() -> None:
            bench.known(sock)
            sock.sendto(question, ("127.0.0.1", asking.port))

        asking.watched(True)
        ask()
        assert held() == ["again.evil.test"]
        process = asking._process
        assert process is not None
        process.kill()
        assert held() == []
        ask()
        assert held() == ["again.evil.test"]
        assert "again.evil.test" not in bench.server.names()
        asking.adopt(make_policy(names=(*NAMES, entry("again.evil.test", 443))))
        assert dns.message.from_wire(sock.recv(65535)).rcode() == dns.rcode.NXDOMAIN, (
            "it was asked for, and is not there"
        )
        assert held() == []
    asking.close()
    assert "again.evil.test" in bench.server.names()
