"""What the screen is drawn from: the process table, the sums, the filter line."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
from records import AGENT, CHILD, Recorded

from mcpguard.errors import UsageError
from mcpguard.events.activity import Touched
from mcpguard.events.query import Filter
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.session import process_tree as processes
from mcpguard.session.process_tree import ProcessTable
from mcpguard.tui import filters, totals
from mcpguard.tui.feed import Turns
from mcpguard.tui.totals import Totals


def process(op: str, pid: int, ppid: int, now: int = 1, verdict: Verdict = Verdict.ALLOW) -> Event:
    kind = Kind.FILE if verdict is Verdict.DENY else Kind.PROCESS
    return Event(now, "s", kind, op, verdict, pid=pid, ppid=ppid, exe="/bin/sh", comm="sh")


def test_a_parent_that_is_heard_of_later_takes_its_children() -> None:
    table = ProcessTable()
    table.take([process("open", 12, 11, verdict=Verdict.DENY), process("fork", 11, 10), process("fork", 10, 1)])
    assert table.roots == [10]
    assert [p.pid for p in table.chain(12)] == [12, 11, 10]


def test_a_number_that_is_used_again_is_another_process() -> None:
    table = ProcessTable()
    table.take([process("fork", 10, 1), process("fork", 11, 10), process("exit", 11, 10), process("fork", 11, 10, 5)])
    again = table.get(11)
    assert again is not None and again.ended_ns is None and again.started_ns == 5
    assert table.living() == [10, 11]


def test_what_takes_the_number_of_a_parent_hides_nothing_and_adopts_nobody() -> None:
    """A tree can have its own numbers come again; two that each name the other as parent would be below no root."""
    table = ProcessTable()
    table.take(
        [process("fork", 10, 1), process("fork", 11, 10, 2), process("fork", 12, 10, 2), process("exit", 10, 1, 3)]
    )
    table.take([process("fork", 10, 11, 4)])
    assert reached(table) == {10, 11, 12} and table.roots == [11, 12]
    assert [one.pid for one in table.chain(10)] == [10, 11]
    assert [one.pid for one in table.chain(12)] == [12]
    table.take([process("exit", pid, 1, 5) for pid in (10, 11, 12)])
    assert not table.living() and len(table) == 3


def test_what_takes_the_number_of_a_parent_that_was_never_seen_hides_nothing() -> None:
    """As that of the broker, once that is gone."""
    table = ProcessTable()
    table.take([process("fork", 10, 99, 1), process("fork", 11, 10, 2), process("fork", 99, 11, 3)])
    assert reached(table) == {10, 11, 99} and table.roots == [10]


def test_nobody_is_below_itself_or_below_the_number_of_nobody() -> None:
    """Else who looks for the top of a tree would look for ever, and with that the screen."""
    table = ProcessTable()
    refused = [process("open", pid, 0, verdict=Verdict.DENY) for pid in (30, 0)]
    table.take([process("fork", 20, 10), process("fork", 10, 10), *refused])
    table.take([process("fork", 40, 0), process("fork", 10, 10), process("exit", 10, 10), process("fork", 10, 10)])
    assert reached(table) == {0, 10, 20, 30, 40}
    assert {0, 10, 30, 40} <= set(table.roots)


def test_a_line_of_processes_that_fork_and_end_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As daemons do it, again and again: each has a child that runs, and all but the last one have ended."""
    monkeypatch.setattr(processes, "MAX_ENDED", 20)
    table = ProcessTable()
    table.take([process("fork", 10, 1), process("fork", 100, 10)])
    for pid in range(101, 1_100):
        table.take([process("fork", pid, pid - 1, pid), process("exit", pid - 1, 1, pid)])
        if pid == 102:
            table.take([process("open", pid, 101, pid, verdict=Verdict.DENY)])
    assert len(table) <= 23 and table.roots == [10] and reached(table) == {*table._known}
    assert {10, 102, 1_099} <= reached(table), "what runs, and what was refused something"
    assert [one.pid for one in table.chain(102)] == [102, 10]
    assert sum(one.folded for one in table._known.values()) + len(table) == 1_001, "each is counted"


def test_what_was_started_by_the_second_of_a_number_is_below_that_one() -> None:
    table = ProcessTable()
    table.take(
        [process("fork", 10, 1), process("exit", 10, 1, 2), process("fork", 11, 10, 4), process("fork", 10, 1, 3)]
    )
    assert table.roots == [10] and [one.pid for one in table.chain(11)] == [11, 10]


def reached(table: ProcessTable) -> set[int]:
    """What lies below the roots, each once."""
    waiting, found = list(table.roots), []
    while waiting:
        here = table.get(waiting.pop())
        assert here is not None and here.pid not in found
        found.append(here.pid)
        waiting += here.children
    return set(found)


def test_a_program_that_calls_itself_otherwise_is_told_by_both_names() -> None:
    table = ProcessTable()
    for pid, exe, argv in ((10, "/usr/bin/git", ("git", "log")), (11, "/ws/evil", ("/usr/bin/git", "log"))):
        table.take([replace(process("exec", pid, 1), kind=Kind.EXEC, exe=exe, argv=argv)])
    assert [found.name for pid in (10, 11) if (found := table.get(pid))] == ["git log", "evil as git log"]


def test_a_chain_of_parents_is_bounded() -> None:
    table = ProcessTable()
    table.take([process("fork", pid, pid - 1) for pid in range(10, 3_000)])
    assert [one.pid for one in table.chain(2_999)] == list(range(2_999, 2_999 - processes.MAX_CHAIN, -1))


def test_who_looks_waits_for_one_piece_of_who_adds() -> None:
    """Who adds holds it nearly all the time, and would go on to its end before anybody else got it."""
    turns, added, ended = Turns(), [0], threading.Event()

    def add() -> None:
        while not ended.is_set():
            with turns.adding():
                added[0] += 1
                sum(range(20_000))

    adding = threading.Thread(target=add)
    adding.start()
    try:
        while not added[0]:
            time.sleep(0.001)
        for _ in range(20):
            with turns:
                before = added[0]
                time.sleep(0.002)
                assert added[0] == before
    finally:
        ended.set()
        adding.join(60)


def test_the_table_is_bounded_and_keeps_denials_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MAX_ENDED", 20)
    table = ProcessTable()
    table.take([process("fork", 10, 1)])
    for pid in range(100, 1_100):
        table.take([process("fork", pid, 10), process("exit", pid, 10)])
        if pid == 100:
            table.take([process("open", pid, 10, verdict=Verdict.DENY)])
    root = table.get(10)
    assert root is not None and len(table) <= 22
    children, ended = table.shown_children(root)
    assert [child.pid for child in children] == [100]
    assert ended == 999


def test_paths_are_bounded_and_what_is_left_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "MAX_PATHS", 3)
    sums = Totals()
    sums.add_touched([Touched(f"/a/f{number}", "read", Verdict.ALLOW, 1) for number in range(5)])
    assert (sums.path_count, sums.paths_left_out) == (3, 3)


def test_rates_are_those_of_the_last_minute() -> None:
    sums = Totals()
    sums.tick(100, 50)
    sums.tick(101, 80)
    sums.tick(103, 90)
    assert list(sums.rates)[-4:] == [0, 30, 0, 10]


def test_the_feed_reads_the_record_of_a_story(recorded: Recorded) -> None:
    recorded.story()
    table = ProcessTable()
    from mcpguard.events import activity

    number = recorded.store.number(recorded.id)
    span = activity.Span(number, 0, recorded.store.last_seq(number))
    table.take(activity.tree(recorded.store, span, recorded.id))
    agent, child = table.get(AGENT), table.get(CHILD)
    assert agent is not None and agent.name == "agent --now" and agent.denied == 1
    assert child is not None and child.denied == 1 and child.ended_ns is not None
    half = activity.Span(number, 0, 4)
    rest = activity.Span(number, 4, span.last)
    both = sum(one.times for part in (half, rest) for one in activity.touched(recorded.store, part))
    assert both == sum(one.times for one in activity.touched(recorded.store, span))


def test_a_filter_line_is_read() -> None:
    wanted = filters.parse('verdict:deny kind:net process:git "two words"', "/home/u")
    assert (wanted.verdict, wanted.kind, wanted.process, wanted.text) == (Verdict.DENY, Kind.NET, "git", "two words")
    assert not filters.parse("", "/home/u").has_globs


@pytest.mark.parametrize("line", ["verdict:x", "kind:x", "path:", "path:[", "'"])
def test_a_wrong_filter_line_says_what_to_write(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        filters.parse(line, "/home/u")
    assert caught.value.why and caught.value.do


@pytest.mark.parametrize(
    "name", ["verdict:deny", "verdict:x", "path:/etc/x", "kind:", "text:a", "text", 'a "b', "read_file"]
)
def test_what_a_server_calls_its_tool_is_text_in_a_filter(name: str) -> None:
    wanted = filters.parse(filters.exactly(name, kind="mcp"), "/home/u")
    assert wanted == Filter(kind=Kind.MCP, text=name)
