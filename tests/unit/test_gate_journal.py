"""Decisions are on record before they are acted upon, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from events_help import OPEN_POLICY, begin, make_policy
from gate_help import call, rule

from mcpguard.events.mcp import Talk
from mcpguard.events.query import Filter, events
from mcpguard.events.store import Store
from mcpguard.gate import journal
from mcpguard.gate.conversation import Conversation
from mcpguard.gate.journal import Journal, recover
from mcpguard.gate.ledger import Ledger
from mcpguard.mcp.judge import Judge, Taint
from mcpguard.mcp.masking import bounded
from mcpguard.mcp.policy import McpPolicy
from mcpguard.model.access import Effect
from mcpguard.model.event import Event, Peer

ANSWER = b'{"jsonrpc":"2.0","id":1,"result":{}}'


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    with Store.open() as made:
        yield made


@pytest.fixture
def session(store: Store) -> str:
    return begin(store, make_policy(*OPEN_POLICY))


def conversation(session: str, ledger: Ledger) -> Conversation:
    policy = McpPolicy((rule(Effect.ALLOW, "*", "*"), rule(Effect.DENY, "*", "forbidden")))
    judge = Judge(policy, "s", {"echo": ["write"]}, {}, Taint({}), os.path.realpath)
    return Conversation(judge, Talk(session, "s", "stdio", Peer(7, "/bin/agent"), Peer(8, "/bin/server")), ledger)


def kept(store: Store, session: str) -> list[Event]:
    return list(events(store, session, Filter()))


def killed_after(session: str, lines: list[bytes], *, flushed: bool = False) -> None:
    """Another process lets messages pass, and is killed."""
    pid = os.fork()
    if not pid:
        try:
            with Store.open() as own:
                ledger = Ledger(own, session, Journal(session))
                talk = conversation(session, ledger)
                for line in lines:
                    talk.take(0, line.strip())
                if flushed:  # all but the last word to the journal
                    ledger._journal = None
                    ledger.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_what_a_killed_gate_decided_is_on_record_without_its_arguments(store: Store, session: str) -> None:
    killed_after(session, [call("echo", {"secret": "canary"}), call("forbidden", {"a": 1}, id="x")])
    assert kept(store, session) == []
    assert "canary" not in "".join(path.read_text() for path in journal.folder().iterdir())
    recover()
    allowed, denied = kept(store, session)
    assert (allowed.verdict.value, denied.verdict.value, denied.rule and denied.rule.text) == (
        "allow",
        "deny",
        "*/forbidden",
    )
    assert allowed.mcp and denied.mcp
    assert (allowed.mcp.tool, allowed.mcp.classes, allowed.mcp.arguments, allowed.pid) == ("echo", "write", None, 7)
    assert (denied.mcp.id, denied.mcp.server, denied.mcp.peer) == ('"x"', "s", Peer(8, "/bin/server"))
    assert journal.LATE in (allowed.detail or "") and len(allowed.mcp.call or "") == 10
    recover()
    assert len(kept(store, session)) == 2 and not list(journal.folder().iterdir())


def test_what_is_in_the_store_already_is_not_there_twice(store: Store, session: str) -> None:
    killed_after(session, [call("echo", {"a": 1})], flushed=True)
    (before,) = kept(store, session)
    assert before.mcp and before.mcp.arguments == '{"a":1}'
    recover()
    assert kept(store, session) == [before]


def test_the_line_is_there_before_the_message_goes_on_and_goes_when_the_store_has_it(
    store: Store, session: str
) -> None:
    ledger = Ledger(store, session, Journal(session))
    talk = conversation(session, ledger)
    line = call("echo", {"a": 1}).strip()
    assert talk.take(0, line) == (line, None)
    (path,) = journal.folder().iterdir()
    decision = json.loads(path.read_bytes())
    assert (decision["verdict"], decision["names"], decision["method"]) == ("allow", {"name": "echo"}, "tools/call")
    recover(store)  # it is in use
    assert path.exists() and kept(store, session) == []
    assert talk.take(1, ANSWER) == (ANSWER, None)
    ledger.flush()
    asked, answered = kept(store, session)
    assert path.read_bytes() == b"" and asked.mcp and answered.mcp
    assert asked.mcp.arguments == '{"a":1}' and asked.mcp.call == answered.mcp.call
    assert 0 <= answered.mcp.duration_ns < 60_000_000_000


@pytest.mark.parametrize("works", [True, False])
def test_where_the_journal_takes_nothing_the_store_does_and_else_nobody_is_asked(
    works: bool, store: Store, session: str
) -> None:
    ledger = Ledger(store, session, Journal(session))
    talk = conversation(session, ledger)
    assert ledger._journal is not None
    os.dup2(os.open("/dev/full", os.O_WRONLY), ledger._journal._file)
    if not works:
        store.read("PRAGMA query_only = ON")
    line = call("echo", {"a": 1}).strip()
    onward, back = talk.take(0, line)
    assert (onward == line) is works
    assert len(kept(store, session)) == works
    assert works or b"cannot be put on record" in (back or b"")


def test_once_the_store_failed_each_decision_waits_for_it(store: Store, session: str) -> None:
    """Else the journal would grow for as long as the disk has room, and nobody would know."""
    ledger = Ledger(store, session, Journal(session))
    talk = conversation(session, ledger)
    assert talk.take(0, call("echo", id=1).strip())[0] is not None
    store.read("PRAGMA query_only = ON")
    ledger.flush()
    assert talk.take(0, call("echo", id=2).strip())[0] is None
    store.read("PRAGMA query_only = OFF")
    assert talk.take(0, call("echo", id=3).strip())[0] is not None
    assert [one.mcp and one.mcp.id for one in kept(store, session)] == ["1", "3"]


def test_the_last_answers_wait_while_another_holds_the_store(
    store: Store, session: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ledger = Ledger(store, session, Journal(session))
    talk = conversation(session, ledger)
    assert talk.take(0, call("echo", id=1).strip())[0] is not None and talk.take(1, ANSWER)[0] is not None
    store.read("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(next(tmp_path.rglob("events.db")), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    add, tried = Store.add, 0

    def added(*given: Any) -> Any:
        nonlocal tried
        tried += 1
        if tried == 3:
            other.execute("ROLLBACK")
        return add(*given)

    monkeypatch.setattr(Store, "add", added)
    ledger.flush()
    assert kept(store, session) == [] and ledger.behind, "the control"
    assert ledger.finish(60)
    assert [one.op for one in kept(store, session)] == ["request", "response"] and not ledger.behind
    other.close()


def test_nobody_waits_at_the_end_for_a_store_that_takes_nothing(
    store: Store, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(store, session, Journal(session))
    assert conversation(session, ledger).take(0, call("echo", id=1).strip())[0] is not None
    store.read("PRAGMA query_only = ON")
    add, tried = Store.add, []
    monkeypatch.setattr(Store, "add", lambda *given: (tried.append(1), add(*given)))
    assert ledger.finish(3600), "what is in the journal is on record"
    assert ledger.behind and len(tried) == 1


@pytest.mark.parametrize("room", [True, False])
def test_what_the_gate_could_not_write_is_counted_where_its_decisions_are(
    room: bool, store: Store, session: str
) -> None:
    """Answers and notifications are in no journal."""
    ledger = Ledger(store, session, Journal(session))
    assert ledger._journal is not None
    talk = conversation(session, ledger)
    assert talk.take(0, call("echo", id=1).strip())[0] is not None and talk.take(1, ANSWER)[0] is not None
    for _ in range(3):
        talk.take(0, b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
    if not room:
        os.dup2(os.open("/dev/full", os.O_WRONLY), ledger._journal._file)
    store.read("PRAGMA query_only = ON")
    assert ledger.finish(0) is room, "else the session says it"
    os.close(ledger._journal._file)
    store.read("PRAGMA query_only = OFF")
    recover(store)
    found = [(one.op, one.count, one.detail) for one in kept(store, session) if one.mcp is None]
    assert found == ([("lost", 4, journal.LOST)] if room else [])
    assert [one.mcp.id for one in kept(store, session) if one.mcp] == ["1"], "the decision is there either way"
    assert not list(journal.folder().iterdir())


def test_without_a_journal_what_is_left_is_not_counted_anywhere(store: Store, session: str) -> None:
    ledger = Ledger(store, session)
    talk = conversation(session, ledger)
    assert ledger.finish(0)
    talk.take(0, b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
    store.read("PRAGMA query_only = ON")
    assert not ledger.finish(0)


@pytest.mark.parametrize("how", ["pushed out", "not made"])
def test_a_decision_whose_event_is_lost_stays_in_the_journal(how: str, store: Store, session: str) -> None:
    """A full disk and a flood of notifications, or an event that cannot be made, take no call off the record."""
    mine = Journal(session)
    ledger = Ledger(store, session, mine)
    talk = conversation(session, ledger)
    assert talk.take(0, call("echo").strip())[0] is not None
    store.read("PRAGMA query_only = ON")
    if how == "not made":
        store.read("PRAGMA query_only = OFF")
        ledger.note(lambda: json.loads("{"))
        ledger.flush()
    for _ in range(2 * 2048 if how == "pushed out" else 0):
        talk.take(0, b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
    store.read("PRAGMA query_only = OFF")
    ledger.flush()
    assert any(event.detail and "could not be stored" in event.detail for event in kept(store, session))
    assert not [event for event in kept(store, session) if event.mcp and event.mcp.call]
    os.close(mine._file)
    recover(store)
    (found,) = [event for event in kept(store, session) if event.mcp and event.mcp.call]
    assert found.mcp and found.mcp.tool == "echo"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null\n[]\n{}\n", b"\xff\n", b'{"time_ns": 1}\n', b'{"lost": "x", "time_ns": 1}\n']
)
def test_what_is_no_decision_is_let_go(content: bytes, store: Store, session: str) -> None:
    killed_after(session, [call("echo")])
    (path,) = journal.folder().iterdir()
    path.write_bytes(path.read_bytes() + content)
    recover()
    assert len(kept(store, session)) == 1 and not list(journal.folder().iterdir())


def test_of_a_session_that_was_forgotten_nothing_stays(store: Store, session: str) -> None:
    killed_after(session, [call("echo")])
    while store.forget(session):
        pass
    recover()
    assert not list(journal.folder().iterdir())


def test_a_link_in_its_place_is_not_followed(store: Store, session: str, tmp_path: Path) -> None:
    journal.folder().mkdir(parents=True)
    other = tmp_path / "other"
    other.write_text("{}")
    (journal.folder() / "s.x").symlink_to(other)
    recover()
    assert other.read_text() == "{}"


def test_of_long_messages_that_wait_to_be_stored_little_is_kept(store: Store, session: str) -> None:
    """And what is stored of them is the same."""
    ledger = Ledger(store, session, Journal(session))
    talk = conversation(session, ledger)
    text, told = "x" * 900_000, "it failed " * 90_000
    tracemalloc.start()
    for number in (1, 2):
        assert talk.take(0, call("echo", {"text": text, "more": [text, 1]}, id=number).strip())[0]
        result = {"content": [{"type": "text", "text": told}], "isError": True}
        assert talk.take(1, json.dumps({"jsonrpc": "2.0", "id": number, "result": result}).encode())[0]
        assert ledger.behind
    waits, _most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert waits < len(text) // 2
    ledger.flush()
    asked, answered, _, _ = sorted(kept(store, session), key=lambda event: event.time_ns)
    assert asked.mcp and answered.mcp
    assert (asked.mcp.arguments, asked.mcp.cut) == bounded({"text": text, "more": [text, 1]})
    assert answered.mcp.error == told[:256] and answered.mcp.result_bytes and answered.mcp.result_bytes > len(told)
