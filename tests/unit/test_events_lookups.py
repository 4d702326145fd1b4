"""Questions for names on record, and the names that events of addresses carry."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from events_help import Bench, head

from mcpguard.events.habits import OwnNames
from mcpguard.events.hosts import Hosts
from mcpguard.model.access import Effect, Verdict
from mcpguard.model.event import Kind
from mcpguard.model.policy import PROTO_TCP, NameEntry, Policy
from mcpguard.model.rule import Origin
from mcpguard.model.values import replace
from mcpguard.profile.amend import Addition
from mcpguard.session.needs import needs
from mcpguard.session.offers import suggestions
from mcpguard.session.questions import key_of
from mcpguard.wire import lookups
from mcpguard.wire.records import LookupRecord, NetRecord


def asked(
    host: str, *addresses: str, verdict: Verdict = Verdict.ALLOW, rule: int = 1, detail: str = ""
) -> LookupRecord:
    return LookupRecord(head(), host, "A", verdict, rule, detail, addresses)


def test_a_question_is_an_event_with_its_name_and_its_answer(tmp_path: Path) -> None:
    (event,) = Bench(tmp_path).all_events(asked("api.example.com", "192.0.2.1", "192.0.2.2"))
    assert (event.kind, event.op, event.verdict, event.host) == (Kind.DNS, "query", Verdict.ALLOW, "api.example.com")
    assert event.detail is not None and event.detail.startswith("A 192.0.2.1 192.0.2.2")
    assert event.rule is not None


def test_a_refused_question_names_the_default_and_the_chain(tmp_path: Path) -> None:
    (event,) = Bench(tmp_path).all_events(asked("evil.example", verdict=Verdict.DENY, rule=0))
    assert (event.verdict, event.host, event.rule is not None) == (Verdict.DENY, "evil.example", True)


def test_equal_questions_are_one_event_with_a_count_and_names_are_kept_apart(tmp_path: Path) -> None:
    refused = [asked(host, verdict=Verdict.DENY, rule=0) for host in ("a.example", "a.example", "b.example")]
    events = Bench(tmp_path).all_events(*refused)
    assert sorted((event.host, event.count) for event in events) == [("a.example", 2), ("b.example", 1)]


def test_events_of_an_address_carry_the_name_it_was_learned_by(tmp_path: Path) -> None:
    connected = NetRecord(head(), "connect", Verdict.ALLOW, "192.0.2.1", 443, "tcp", 1, "", 1)
    events = Bench(tmp_path).all_events(asked("api.example.com", "192.0.2.1"), connected)
    assert [event.host for event in events if event.kind is Kind.NET] == ["api.example.com"]


def test_of_two_names_on_one_address_the_one_counts_whose_rule_decided() -> None:
    hosts = Hosts({"192.0.2.9": "fixed.example"})
    hosts.add(asked("a.example", "192.0.2.1", rule=1))
    hosts.add(asked("b.example", "192.0.2.1", rule=2))
    assert hosts.of("192.0.2.1", 1) == "a.example"
    assert hosts.of("192.0.2.1", 2) == "b.example"
    assert hosts.of("192.0.2.1") == "b.example"
    assert hosts.of("192.0.2.9") == "fixed.example"
    assert hosts.of("192.0.2.2") is None


def test_a_line_comes_back_as_it_was() -> None:
    record = asked("a.example", "192.0.2.1", "2001:db8::1", detail="why")
    assert lookups.decode(lookups.encode(record)) == record


def test_a_line_is_bounded_whatever_was_asked_for() -> None:
    record = asked("\\001" * 255, *["2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"] * 500, detail="\x00" * 9999)
    assert len(lookups.encode(record)) <= lookups.LINE_BYTES
    lookups.decode(lookups.encode(record))


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"[1,2,3]", b"\xff", b'["a",2,3,4,5,6,7,8,"allow",0,"",[]]', b"7"])
def test_what_is_no_line_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError):
        lookups.decode(line)


VARIABLES = {"home": "/home/u", "workspace": "/w", "tmp": "/tmp"}


def test_a_refused_name_is_a_question_and_a_proposal(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (told,) = bench.all_events(asked("new.example", verdict=Verdict.DENY, rule=0))
    event = replace(told, rule=Origin("default", "default", 0, "no rule allows it"))
    assert key_of(event) == '["name", "new.example"]'
    once, pattern = suggestions(event, VARIABLES)
    assert once == pattern == (Addition("network", "allow", "new.example:443"),)
    (need,) = needs(bench.store, [bench.session])
    assert (need.kind, need.access, need.object) == ("net", "connect", "new.example:443")


@pytest.mark.parametrize(
    "record",
    [
        asked("in.example", verdict=Verdict.DENY, rule=0, detail="it leads to 10.0.0.1 (a private network)"),
        asked("", verdict=Verdict.DENY, rule=0),
        replace(asked("t.example", verdict=Verdict.DENY, rule=0), asked="TXT"),
    ],
)
def test_what_a_rule_by_name_would_not_open_is_no_proposal(tmp_path: Path, record: LookupRecord) -> None:
    bench = Bench(tmp_path)
    (event,) = bench.all_events(record)
    assert key_of(event) is None
    assert suggestions(event, VARIABLES) == ((), ())
    assert not list(needs(bench.store, [bench.session]))


ALLOWING = SimpleNamespace(names=(NameEntry("ok.test", 443, 443, PROTO_TCP, Effect.ALLOW, 1),))


@pytest.mark.parametrize(
    ("name", "kind", "routine"),
    [
        ("box", "A", True),
        ("box.corp.test", "AAAA", True),
        ("localhost.corp.test", "A", True),
        ("ok.test.corp.test", "A", True),
        ("1.0.0.127.in-addr.arpa", "PTR", True),
        ("9.0.66.10.in-addr.arpa", "PTR", True),
        ("1." + "0." * 31 + "ip6.arpa", "PTR", True),
        ("secret.box", "A", False),
        ("secret.corp.test", "A", False),
        ("evil.test.corp.test", "A", False),
        ("ok.test.elsewhere.test", "A", False),
        ("corp.test", "A", False),
        ("box", "TXT", False),
        ("8.8.8.8.in-addr.arpa", "PTR", False),
        ("x.0.0.127.in-addr.arpa", "PTR", False),
        ("1.1.0.0.127.in-addr.arpa", "PTR", False),
        ("127.0.0.1", "PTR", False),
    ],
)
def test_everyday_questions_are_routine_and_their_look_alikes_are_not(name: str, kind: str, routine: bool) -> None:
    own = OwnNames("box", ("corp.test", "lan"))
    assert (own.asking(cast(Policy, ALLOWING), name, kind) is not None) == routine


def test_the_search_domains_are_those_of_the_last_line(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("domain old.test\nnameserver 192.0.2.1\nsearch Corp.Test. lan\n")
    assert OwnNames.of_this_host(str(conf)).search == ("corp.test", "lan")
    assert OwnNames.of_this_host(str(tmp_path / "none")).search == ()
