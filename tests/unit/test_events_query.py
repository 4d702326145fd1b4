"""Questions to the store: filters, times, and following a session that still runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, SECOND, START_EPOCH_NS, begin, make_policy

from mcpguard.errors import UsageError
from mcpguard.events import query
from mcpguard.events.query import Filter, events, follow, path_filter, since
from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind

NOW = START_EPOCH_NS


def make(number: int, **changes: object) -> Event:
    event = Event(START_EPOCH_NS + number * SECOND, "", Kind.FILE, "open", Verdict.ALLOW, path=f"/ws/{number}")
    return dataclasses.replace(event, **changes)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "events.db") as opened:
        yield opened


@pytest.fixture
def session(store: Store) -> str:
    session = begin(store, make_policy(*OPEN_POLICY))
    store.add(
        session,
        [
            make(0, path="/home/u/.ssh/id_ed25519", verdict=Verdict.DENY),
            make(1, path="/ws/a.py", target="/ws/sub/.env"),
            make(2, kind=Kind.NET, op="connect", path=None, host="api.github.com", address="192.0.2.1"),
            make(3, kind=Kind.NET, op="connect", path=None, address="2001:db8::1", verdict=Verdict.DENY),
            make(4, kind=Kind.UNIX, op="connect", path="@abstract", verdict=Verdict.AUDIT),
        ],
    )
    return session


def numbers(store: Store, session: str, wanted: Filter) -> list[int]:
    return [event.seq for event in events(store, session, wanted)]


def test_no_filter_gives_all_events_in_order(store: Store, session: str) -> None:
    assert numbers(store, session, Filter()) == [1, 2, 3, 4, 5]


def test_verdict_and_kind_narrow_together(store: Store, session: str) -> None:
    assert numbers(store, session, Filter(verdict=Verdict.DENY)) == [1, 4]
    assert numbers(store, session, Filter(kind=Kind.NET)) == [3, 4]
    assert numbers(store, session, Filter(verdict=Verdict.DENY, kind=Kind.NET)) == [4]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("/home/u", [1]),
        ("~/.ssh", [1]),
        ("/home/u/.ssh/id_*", [1]),
        ("/home/*/id_ed25519", []),
        ("/home/**/id_ed25519", [1]),
        ("*.py", [2]),
        (".env", [2]),
        ("/ws/sub", [2]),
        ("/w", []),
    ],
)
def test_a_path_pattern_means_what_it_means_in_a_profile(
    store: Store, session: str, pattern: str, found: list[int]
) -> None:
    assert numbers(store, session, Filter(path=path_filter(pattern, "/home/u"))) == found


@pytest.mark.parametrize("pattern", ["/a/[", "/a//b", "/a/../b", "~root/x"])
def test_a_path_pattern_that_is_none_is_a_misuse(pattern: str) -> None:
    with pytest.raises(UsageError):
        path_filter(pattern, "/home/u")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("api.github.com", [3]),
        ("API.GitHub.com", [3]),
        ("*.github.com", [3]),
        ("github.com", []),
        ("192.0.2.*", [3]),
        ("2001:db8:*", [4]),
    ],
)
def test_a_host_pattern_meets_names_and_addresses(store: Store, session: str, pattern: str, found: list[int]) -> None:
    assert numbers(store, session, Filter(host=pattern)) == found


def test_since_leaves_out_what_was_before(store: Store, session: str) -> None:
    assert numbers(store, session, Filter(since_ns=START_EPOCH_NS + 3 * SECOND)) == [4, 5]


@pytest.mark.parametrize(
    ("text", "age_s"), [("45s", 45), ("30m", 1800), ("1h", 3600), ("2d", 172_800), ("1w", 604_800), ("0s", 0)]
)
def test_an_age_is_counted_back_from_now(text: str, age_s: int) -> None:
    assert since(text, NOW) == NOW - age_s * SECOND


def test_an_rfc_3339_time_is_taken_to_the_microsecond() -> None:
    assert since("2026-11-18T11:06:40.000001Z", 0) == START_EPOCH_NS + 1000
    assert since("2026-11-18T12:06:40+01:00", 0) == START_EPOCH_NS


@pytest.mark.parametrize("text", ["", "yesterday", "-1h", "1y", "1.5h", "h", "99999999999s", "2026-13-01"])
def test_a_time_that_is_none_is_a_misuse(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        since(text, NOW)
    assert caught.value.code == "log.since"


def test_more_events_than_one_portion_come_once_each(
    store: Store, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "PORTION", 2)
    assert numbers(store, session, Filter()) == [1, 2, 3, 4, 5]
    assert numbers(store, session, Filter(host="2001:*")) == [4]


def test_following_shows_each_event_once_and_ends_with_the_session(store: Store, session: str) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            store.add(session, [make(5), make(6, verdict=Verdict.DENY)])
        if len(waits) == 3:
            store.add(session, [make(7, verdict=Verdict.DENY)])
            store.end_session(session, exit_code=0, now_ns=NOW)

    assert [e.seq for e in follow(store, session, Filter(verdict=Verdict.DENY), wait)] == [1, 4, 7, 8]
    assert len(waits) == 3


def test_an_event_that_comes_while_following_reads_is_not_shown_twice(
    store: Store, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "PORTION", 2)
    seen: list[int] = []
    for event in follow(store, session, Filter(), lambda _: store.end_session(session, exit_code=0, now_ns=NOW)):
        seen.append(event.seq)
        if event.seq == 1:
            store.add(session, [make(9)])
    assert seen == [1, 2, 3, 4, 5, 6]


def test_following_a_session_that_is_over_shows_it_and_ends(store: Store, session: str) -> None:
    store.end_session(session, exit_code=0, now_ns=NOW)
    found = follow(store, session, Filter(), lambda _: pytest.fail("waited for a session that is over"))
    assert len(list(found)) == 5
