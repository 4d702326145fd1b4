"""From records to stored events: sums, denials at once, losses, bounds, and a store that fails."""

from __future__ import annotations

import dataclasses
import errno
import gc
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from events_help import (
    OPEN_POLICY,
    SECOND,
    START_EPOCH_NS,
    Bench,
    call,
    connection,
    ended,
    executed,
    forked,
    head,
    make_policy,
    opened,
    refused,
    unix,
)

from mcpguard.errors import StoreError
from mcpguard.events import database
from mcpguard.events import recorder as recorder_module
from mcpguard.events.finding import REPEATS_OF_OPENS
from mcpguard.events.missing import STORE
from mcpguard.events.recorder import QUIET_INTERVAL_NS
from mcpguard.model.access import Access, Effect, Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.wire.records import SumRecord


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def denials(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.verdict is Verdict.DENY]


def environ(pid: int, reader: int) -> object:
    return foreign("environ", pid, reader)


def foreign(what: str, pid: int, reader: int) -> object:
    return refused("open", f"/proc/{pid}/{what}", errno.EACCES, who=head(reader, 1000, "ps"))


def break_store(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(session: str, events: Sequence[Event]) -> None:
        raise StoreError("no", why="database or disk is full", do="", code="store.full")

    monkeypatch.setattr(bench.store, "add", refuse)


def test_a_denial_is_stored_when_its_batch_is_taken(bench: Bench) -> None:
    bench.feed(refused("open", "/ws/secret/key", errno.EACCES))
    found = bench.events()
    assert [(e.verdict, e.path, e.errno, e.count) for e in found] == [(Verdict.DENY, "/ws/secret/key", "EACCES", 1)]


def test_a_denial_names_the_process_its_program_and_its_parents(bench: Bench) -> None:
    bench.feed(
        forked(1001),
        executed(1001, "/bin/bash", "bash"),
        forked(1002, parent=1001),
        executed(1002, "/bin/cat", "cat", "key"),
        refused("open", "/ws/secret/key", errno.EACCES, who=head(1002, 1001, "cat")),
    )
    (denial,) = denials(bench.events())
    assert (denial.pid, denial.ppid, denial.exe, denial.comm) == (1002, 1001, "/bin/cat", "cat")
    assert denial.detail == "under bash[1001] < claude[1000]"


def test_equal_denials_of_one_batch_are_one_event_with_a_count(bench: Bench) -> None:
    bench.feed(*[refused("open", "/ws/secret/key", errno.EACCES)] * 7)
    assert [event.count for event in bench.events()] == [7]


def test_equal_denials_of_an_interval_add_up_to_their_number(bench: Bench) -> None:
    for _ in range(10):
        bench.feed(refused("open", "/ws/secret/key", errno.EACCES))
    assert [event.count for event in bench.events()] == [1]
    bench.clock.forward(1.1)
    bench.recorder.tick()
    assert [event.count for event in bench.events()] == [1, 9]


def test_after_the_interval_the_same_denial_is_stored_at_once_again(bench: Bench) -> None:
    bench.feed(refused("open", "/ws/secret/key", errno.EACCES))
    bench.clock.forward(1.1)
    bench.recorder.tick()
    bench.feed(refused("open", "/ws/secret/key", errno.EACCES))
    assert [event.count for event in bench.events()] == [1, 1]


def test_denials_of_different_errors_objects_or_processes_stay_apart(bench: Bench) -> None:
    bench.feed(
        refused("open", "/ws/secret/a", errno.EACCES),
        refused("open", "/ws/secret/a", errno.EPERM),
        refused("open", "/ws/secret/b", errno.EACCES),
        refused("open", "/ws/secret/a", errno.EACCES, who=head(2000)),
    )
    assert len(bench.events()) == 4


def test_opens_are_summed_by_process_object_and_access(bench: Bench) -> None:
    bench.feed(
        opened("/ws/a", count=3),
        opened("/ws/a"),
        opened("/ws/a", Access.WRITE),
        opened("/ws/a", who=head(1001)),
        opened("/ws/b"),
    )
    assert bench.events() == [], "sums are written once per interval"
    bench.clock.forward(1.1)
    bench.recorder.tick()
    found = [(e.pid, e.path, e.access, e.count) for e in bench.events()]
    assert found == [
        (1000, "/ws/a", "read", 4),
        (1000, "/ws/a", "write", 1),
        (1001, "/ws/a", "read", 1),
        (1000, "/ws/b", "read", 1),
    ]


def test_counts_over_all_intervals_add_up_to_the_number_of_opens(bench: Bench) -> None:
    for _ in range(50):
        bench.feed(opened("/ws/a", count=2), opened("/ws/b"))
        bench.clock.forward(0.3)
    total = sum(event.count for event in bench.all_events())
    assert total == 150


def test_an_event_has_the_time_of_its_record(bench: Bench) -> None:
    bench.clock.forward(10)
    bench.feed(refused("open", "/ws/secret/key", errno.EACCES, who=head(when_ns=103 * SECOND)))
    assert bench.events()[0].time_ns == START_EPOCH_NS + 3 * SECOND


def test_a_clock_that_was_set_counts_from_the_next_records_on(bench: Bench) -> None:
    bench.feed(refused("open", "/ws/secret/a", errno.EACCES))
    bench.clock.set(5)
    bench.feed(refused("open", "/ws/secret/b", errno.EACCES))
    first, second = bench.events()
    assert second.time_ns - first.time_ns == 5 * SECOND


def test_the_kernels_verdict_on_a_destination_is_kept_with_rule_and_host(bench: Bench) -> None:
    bench.names["192.0.2.7"] = "evil.example"
    bench.feed(connection("192.0.2.7", Verdict.DENY, rule=2))
    (found,) = bench.events()
    assert (found.kind, found.op, found.host, found.address, found.port) == (
        *(Kind.NET, "connect", "evil.example", "192.0.2.7", 443),
    )
    assert found.rule == bench.policy.rules[2]


def test_a_denied_destination_without_a_rule_is_denied_by_the_default(bench: Bench) -> None:
    bench.feed(connection("192.0.2.7", Verdict.DENY))
    assert bench.events()[0].rule == bench.policy.rules[0]


def test_an_allowed_own_listener_has_no_rule(bench: Bench) -> None:
    (found,) = bench.all_events(connection("127.0.0.1", Verdict.ALLOW))
    assert found.rule is None


def test_a_denied_unix_socket_is_stored_at_once(bench: Bench) -> None:
    bench.feed(unix("@/tmp/.X11-unix/X0", Verdict.DENY))
    assert [(e.kind, e.path) for e in bench.events()] == [(Kind.UNIX, "@/tmp/.X11-unix/X0")]


def test_forks_starts_and_ends_are_on_record(bench: Bench) -> None:
    found = bench.all_events(forked(1001), executed(1001, "/ws/tool", "tool", "-x"), ended(1001, 3 << 8))
    assert [(e.kind, e.op, e.pid, e.ppid) for e in found] == [
        (Kind.PROCESS, "fork", 1001, 1000),
        (Kind.EXEC, "exec", 1001, 1000),
        (Kind.PROCESS, "exit", 1001, 1000),
    ]
    assert found[1].argv == ("tool", "-x")
    assert found[2].detail == "status 3"


def test_looks_at_every_process_are_one_event_per_process_and_quiet_for_who_lists_processes(bench: Bench) -> None:
    bench.feed(executed(2001, "/usr/bin/python3"), executed(2002, "/usr/bin/ps"), executed(2003, "/usr/bin/lsof"))
    bench.feed(*[environ(pid, 2001) for pid in range(4_194_400, 4_194_500)])
    bench.feed(*[environ(pid, 2002) for pid in range(4_194_400, 4_194_403)])
    bench.feed(*[foreign("fd", pid, 2003) for pid in range(4_194_400, 4_194_450)])
    assert denials(bench.events()) == []
    bench.feed(ended(2001))
    (alarm,) = denials(bench.events())
    assert (alarm.pid, alarm.count, alarm.path) == (2001, 100, "/proc/*/environ")
    assert not (alarm.detail or "").startswith("quiet")
    bench.clock.forward(QUIET_INTERVAL_NS / SECOND)
    bench.recorder.tick()
    listed = denials(bench.events())[1:]
    assert [event.count for event in listed] == [3, 50], "a process that lives on shows up too"
    assert all((event.detail or "").startswith("quiet") for event in listed)


def test_looks_at_other_parts_of_processes_by_any_other_program_are_alarms_at_once(bench: Bench) -> None:
    bench.feed(executed(2001, "/ws/lsof"), *[foreign("fd", pid, 2001) for pid in range(4_194_400, 4_194_410)])
    found = denials(bench.events())
    assert len(found) == 10
    assert not any((event.detail or "").startswith("quiet") for event in found)


@pytest.mark.parametrize("exe", ["/usr/bin/cat", "/ws/ps"])
def test_looks_at_the_environment_of_a_few_processes_are_denials_of_their_own(bench: Bench, exe: str) -> None:
    bench.feed(executed(2001, exe), environ(4_194_400, 2001), environ(4_194_400, 2001), environ(4_194_401, 2001))
    bench.feed(ended(2001))
    found = denials(bench.events())
    assert [(e.path, e.count) for e in found] == [("/proc/4194400/environ", 2), ("/proc/4194401/environ", 1)]
    assert [(e.detail or "").startswith("quiet") for e in found] == [False, False]


def test_refusals_of_plain_permissions_are_counted_and_not_stored(bench: Bench) -> None:
    bench.feed(refused("open", "/ws/missing", errno.ENOENT), call("signal", errno.ESRCH, 1))
    assert bench.all_events() == []
    assert bench.recorder.counters.plain == 2


def test_records_that_the_kernel_dropped_become_a_loss_event(bench: Bench) -> None:
    bench.feed(opened("/ws/a", who=head(lost=40)), opened("/ws/a", who=head(lost=2)))
    losses = [e for e in bench.all_events() if e.kind is Kind.LOSS]
    assert [e.count for e in losses] == [42]
    assert bench.recorder.counters.lost == 42


def test_losses_that_the_caller_names_are_not_counted_twice(bench: Bench) -> None:
    bench.recorder.feed([opened("/ws/a", who=head(lost=5))], {"denials": 5})
    losses = [e for e in bench.all_events() if e.kind is Kind.LOSS]
    assert [(e.count, e.detail) for e in losses] == [(5, "denials")]


def test_an_act_that_was_not_stopped_is_stored_at_once(bench: Bench) -> None:
    bench.feed(refused("create", "/ws/ro/new", 0, access=Access.WRITE))
    (found,) = bench.events()
    assert found.verdict is Verdict.AUDIT
    assert found.detail == "not stopped: it did not exist at launch"


def test_a_hundred_thousand_records_stay_within_memory_and_all_are_counted(bench: Bench) -> None:
    most = 0
    for batch in range(100):
        bench.feed(*[opened(f"/ws/{batch}/{n}") for n in range(1000)])
        most = max(most, sum(isinstance(found, Event) for found in gc.get_objects()))
    bench.recorder.finish()
    rows = bench.store.read("SELECT COUNT(*), SUM(count) FROM events WHERE verdict = 'allow'")
    assert rows[0] == (100_000, 100_000)
    assert most <= recorder_module.MAX_SUMS + 1000


def test_a_storm_of_different_denials_stays_within_memory_and_loses_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_SUMS", 100)
    for batch in range(20):
        bench.feed(*[refused("open", f"/ws/secret/{batch}-{n}", errno.EACCES) for n in range(100)])
    assert len(denials(bench.all_events())) == 2000


def test_a_store_that_fails_neither_raises_nor_loses_what_fits_until_it_works_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        break_store(bench, broken)
        bench.feed(refused("open", "/ws/secret/key", errno.EACCES))
        bench.clock.forward(2)
        bench.recorder.tick()
    assert bench.recorder.failure is not None
    bench.recorder.finish()
    assert len(denials(bench.events())) == 1
    assert bench.recorder.warning is None


def test_what_a_failing_store_does_not_take_is_counted_and_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MAX_WAITING", 10)
    with monkeypatch.context() as broken:
        break_store(bench, broken)
        bench.feed(*[refused("open", f"/ws/secret/{n}", errno.EACCES) for n in range(25)])
    assert bench.recorder.counters.unsaved == 15
    bench.recorder.finish()
    found = bench.events()
    assert [e.path for e in denials(found)] == [f"/ws/secret/{n}" for n in range(10)]
    assert [e.count for e in found if e.kind is Kind.LOSS] == [15]
    assert bench.recorder.warning == "15 events could not be stored: database or disk is full"


def test_a_store_that_never_works_ends_with_every_event_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    break_store(bench, monkeypatch)
    bench.feed(refused("open", "/ws/secret/key", errno.EACCES), opened("/ws/a", count=4))
    bench.recorder.finish()
    assert bench.recorder.counters.unsaved == 5


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Bench, sqlite3.Connection]]:
    """A store that another connection has begun to write to."""
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.01)
    bench = Bench(tmp_path)
    other = sqlite3.connect(bench.store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield bench, other
    other.close()


def test_a_lock_on_the_store_is_waited_for_at_the_end(
    locked: tuple[Bench, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, other = locked
    bench.feed(refused("open", "/ws/secret/key", errno.EACCES))
    assert bench.events() == []
    add, tries = bench.store.add, 0

    def release_later(session: str, events: Sequence[Event]) -> None:
        nonlocal tries
        tries += 1
        if tries == 3:
            other.execute("ROLLBACK")
        add(session, events)

    monkeypatch.setattr(bench.store, "add", release_later)
    bench.recorder.finish()
    assert [e.path for e in bench.events()] == ["/ws/secret/key"]
    assert bench.recorder.warning is None


def test_a_lock_that_stays_costs_events_that_are_counted(locked: tuple[Bench, sqlite3.Connection]) -> None:
    bench, other = locked
    bench.feed(refused("open", "/ws/secret/key", errno.EACCES), opened("/ws/a", count=4))
    bench.recorder.finish()
    assert bench.recorder.counters.unsaved == 5
    other.execute("ROLLBACK")
    bench.store.end_session(bench.session, exit_code=0, now_ns=START_EPOCH_NS, unsaved=5)
    assert [(e.kind, e.count, e.detail) for e in bench.events()] == [(Kind.LOSS, 5, STORE)], "told by whoever reads it"


def test_a_failing_store_is_not_asked_again_for_every_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    break_store(bench, monkeypatch)
    bench.feed(refused("open", "/ws/secret/0", errno.EACCES))
    monkeypatch.setattr(bench.store, "add", lambda *_: pytest.fail("asked again within the interval"))
    bench.feed(refused("open", "/ws/secret/1", errno.EACCES))


def test_in_audit_mode_what_the_policy_would_deny_is_audited(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make_policy(*OPEN_POLICY, audit=True))
    found = bench.all_events(opened("/etc/hostname"))
    assert [(e.verdict, e.rule, e.detail) for e in found] == [(Verdict.AUDIT, bench.policy.rules[0], None)]


def test_what_the_kernel_counted_and_did_not_send_is_added_at_the_end(bench: Bench) -> None:
    read = dataclasses.replace(opened("/ws/a"), series=7)
    denied = dataclasses.replace(refused("open", "/ws/secret/key", errno.EACCES, count=4), series=8)
    plain = dataclasses.replace(refused("open", "/ws/missing", errno.ENOENT), series=9)
    bench.feed(read, denied, plain)
    bench.recorder.add_sums([SumRecord(7, 10), SumRecord(8, 100), SumRecord(9, 1000), SumRecord(77, 5)])
    found = bench.all_events()
    assert sum(e.count for e in denials(found)) == 104
    assert sum(e.count for e in found if e.path == "/ws/a") == 11
    assert bench.recorder.counters.plain == 1001
    assert [(e.count, e.detail) for e in found if e.kind is Kind.LOSS] == [(5, recorder_module.FORGOTTEN)]


def test_a_refusal_counts_as_often_as_the_kernel_says(bench: Bench) -> None:
    bench.feed(
        refused("open", "/ws/secret/key", errno.EACCES, count=4),
        dataclasses.replace(call("bpf", errno.EPERM), count=5),
        dataclasses.replace(unix("@x", Verdict.DENY), count=6),
    )
    assert [event.count for event in bench.events()] == [4, 5, 6]


def test_the_memory_of_aggregates_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MAX_SERIES", 10)
    bench = Bench(tmp_path)
    bench.feed(*[dataclasses.replace(opened(f"/ws/{n}"), series=n) for n in range(1, 101)])
    bench.recorder.add_sums([SumRecord(1, 1), SumRecord(100, 1)])
    found = bench.all_events()
    assert [e.count for e in found if e.path == "/ws/100"] == [2]
    assert [(e.count, e.detail) for e in found if e.kind is Kind.LOSS] == [(1, REPEATS_OF_OPENS)]


def test_opens_do_not_push_refusals_or_busy_files_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_SERIES", 10)
    bench = Bench(tmp_path)
    bench.feed(dataclasses.replace(refused("open", "/ws/secret/key", errno.EACCES), series=1))
    for n in range(3, 103):
        busy = dataclasses.replace(opened("/ws/busy"), series=2)
        bench.feed(busy, dataclasses.replace(opened(f"/ws/{n}"), series=n))
    bench.recorder.add_sums([SumRecord(1, 7), SumRecord(2, 9)])
    found = bench.all_events()
    assert sum(e.count for e in denials(found)) == 8
    assert sum(e.count for e in found if e.path == "/ws/busy") == 109
    assert not [e for e in found if e.kind is Kind.LOSS]


def test_after_a_loss_unknown_repeats_are_not_taken_for_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MAX_SERIES", 1)
    bench = Bench(tmp_path)
    bench.feed(*[dataclasses.replace(opened(f"/ws/{n}", who=head(lost=1)), series=n) for n in (1, 2)])
    bench.recorder.add_sums([SumRecord(1, 1)])
    assert recorder_module.FORGOTTEN in [e.detail for e in bench.all_events()]


def test_a_denied_socket_that_does_not_exist_is_quiet_and_one_that_exists_is_not(bench: Bench, tmp_path: Path) -> None:
    there = tmp_path / "socket"
    there.touch()
    found = denials(bench.all_events(unix(f"{tmp_path}/missing", Verdict.DENY), unix(str(there), Verdict.DENY)))
    assert {e.path: (e.detail or "").startswith("quiet") for e in found} == {
        f"{tmp_path}/missing": True,
        str(there): False,
    }


def test_a_record_that_cannot_be_judged_is_counted_and_the_rest_of_its_batch_is_stored(bench: Bench) -> None:
    unknown_rule = connection("192.0.2.1", Verdict.DENY, rule=999)
    found = bench.all_events(unknown_rule, refused("open", "/ws/secret/key", errno.EACCES))
    assert [e.path for e in denials(found)] == ["/ws/secret/key"]
    assert [(e.count, e.detail) for e in found if e.kind is Kind.LOSS] == [(1, recorder_module.UNJUDGED)]
    assert isinstance(bench.recorder.bug, IndexError)


def test_a_record_is_judged_by_the_policy_of_its_time(bench: Bench) -> None:
    """The pump may come to it after the policy changed; and a number of the new policy is known as soon as it can come."""
    more = make_policy(*OPEN_POLICY, (Effect.ALLOW, Access.READ, "/srv/notes"))
    bench.recorder.adopt(more, 200 * SECOND)
    bench.feed(
        opened("/srv/notes", who=head(when_ns=100 * SECOND)),
        connection("192.0.2.1", Verdict.DENY, 0),
        opened("/srv/notes", who=head(when_ns=300 * SECOND)),
        opened("/ws/file", who=head(when_ns=301 * SECOND)),
        dataclasses.replace(connection("192.0.2.2", Verdict.ALLOW, 4), head=head(when_ns=302 * SECOND)),
    )
    bench.recorder.finish()
    judged = [(event.path or event.address, event.verdict, event.rule and event.rule.line) for event in bench.events()]
    assert sorted(judged, key=str) == sorted(
        [
            ("/srv/notes", Verdict.AUDIT, 0),
            ("192.0.2.1", Verdict.DENY, 0),
            ("/srv/notes", Verdict.ALLOW, 14),
            ("/ws/file", Verdict.ALLOW, 11),
            ("192.0.2.2", Verdict.ALLOW, 14),
        ],
        key=str,
    )


def test_what_is_told_is_stored_with_its_rule(bench: Bench) -> None:
    rule = make_policy(*OPEN_POLICY, (Effect.ALLOW, Access.READ, "/srv/notes")).rules[-1]
    told = Event(
        START_EPOCH_NS, bench.session, Kind.PROCESS, "approve", Verdict.ALLOW, rule=rule, detail="once, by x[1]"
    )
    bench.recorder.tell([told])
    bench.recorder.tick()
    (stored,) = bench.events()
    assert (stored.op, stored.rule, stored.detail) == ("approve", rule, "once, by x[1]")
