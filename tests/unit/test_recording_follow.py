"""What the agent does before anybody reads waits in the rings; the rules of its session are stored with the first look."""

from __future__ import annotations

import mmap
import os
import socket
import time
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, make_policy

from mcpguard.errors import StoreError
from mcpguard.events.activity import rules
from mcpguard.events.ids import new_id
from mcpguard.events.query import Filter, events
from mcpguard.events.recorder import FORGOTTEN
from mcpguard.events.store import Store
from mcpguard.model.policy import Policy
from mcpguard.session import run
from mcpguard.session.recording import Recording
from mcpguard.session.resolver import Feed
from mcpguard.wire import _abi


class Pump:
    """Reads nothing."""

    began = 0

    def __init__(self, _sources: object, _recorder: object) -> None:
        pass

    def start(self) -> None:
        Pump.began += 1


@pytest.fixture
def attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recording:
    """A record whose rings are mapped."""
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    monkeypatch.setattr("mcpguard.events.pump.Pump", Pump)
    monkeypatch.setattr(Pump, "began", 0)
    made = Recording.begin(new_id(time.time_ns()), make_policy(*OPEN_POLICY), ["agent"], "3 landlock", ())
    made._first, made._first_ns = 4711, time.monotonic_ns()
    made._rings = dict.fromkeys(("mg_denials", "mg_activity"))  # type: ignore[assignment]
    return made


def stored_rules(session: str) -> list[str]:
    with Store.open() as store:
        return [origin.text for origin, _because in rules(store, store.number(session)).values()]


def test_the_session_is_on_record_before_its_rules_and_they_come_once(attached: Recording) -> None:
    assert stored_rules(attached.session) == []
    attached.follow()
    told = stored_rules(attached.session)
    assert told == list(dict.fromkeys(origin.text for origin in make_policy(*OPEN_POLICY).rules))
    attached.follow()
    assert (stored_rules(attached.session), Pump.began) == (told, 1)


def test_nothing_is_read_of_what_is_not_attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    monkeypatch.setattr("mcpguard.events.pump.Pump", Pump)
    monkeypatch.setattr(Pump, "began", 0)
    made = Recording.begin(new_id(time.time_ns()), make_policy(*OPEN_POLICY), ["agent"], "3 landlock", ())
    made.follow()
    assert Pump.began == 0
    assert stored_rules(made.session) == []


def test_a_store_that_takes_no_rules_keeps_nobody_from_reading(
    attached: Recording, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_store: Store, _session: str, _policy: Policy) -> None:
        raise StoreError("full", why="the disk is full", do="", code="store.unusable")

    monkeypatch.setattr(Store, "add_rules", refuse)
    attached.follow()
    assert Pump.began == 1
    assert "rules of the session could not be stored: the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize("silences", [0, 2])
def test_what_is_needed_later_is_imported_while_somebody_is_waited_for_and_no_longer(
    silences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[str] = []
    monkeypatch.setattr(run, "__import__", imported.append, raising=False)
    answers = iter([True] * silences + [False])
    run._import_while(lambda: next(answers))
    assert imported == list(run._LATER[:silences])


@pytest.mark.parametrize(("told", "asked"), [({"exchanged": False}, 0), ({"exchanged": True}, 1), ({}, 1)])
def test_only_where_the_broker_saw_that_nothing_was_exchanged_nobody_looks(
    told: dict[str, bool], asked: int, attached: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    monkeypatch.setattr("mcpguard.events.flows.read_entries", lambda fd, *_what: looks.append(fd) or [])
    attached.follow()
    attached._pump, attached._counters = None, None
    attached.take_final(told)
    assert len(looks) == asked


class DrainedRing:
    """What the child wrote before the word to go, its canary's acts among it; the kernel had not put the ring into its slot
    when the child began."""

    def __init__(self, *_where: object, **_beginning: object) -> None:
        self._records = [_abi.MG_HEAD.pack(1, _abi.MG_RECORD_FILE, 0, os.getpid(), 1, 0, 0, b"canary")]

    def drain(self) -> list[bytes]:
        taken, self._records = self._records, []
        return taken


def test_what_the_child_repeated_before_the_agent_began_is_not_missing(
    attached: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcpguard.session.recording.Ring", DrainedRing)
    monkeypatch.setattr("mcpguard.events.flows.read_entries", lambda *_what: [])
    last_of_child = 60
    with open(os.memfd_create("counters"), "r+b") as counters, open(os.memfd_create("flows"), "r+b") as flows:
        counters.write(_abi.MG_COUNTERS.pack(last_of_child, *(0,) * 11).ljust(mmap.PAGESIZE, b"\0"))
        counters.flush()
        rings = dict.fromkeys(("mg_denials", "mg_activity"), -1)
        descriptors = {**rings, "mg_counters": counters.fileno(), "mg_flows": flows.fileno()}
        facts = {"rings": dict.fromkeys(rings, 4096), "pid": os.getpid(), "cgroup": "/", "canary_pid": os.getpid()}
        here, there = socket.socketpair()
        with here, there:
            attached.attach(descriptors, facts, Feed(here, [], -1), {})
        attached.follow()
        attached._pump = None
        attached.take_final({"sums": [(12, 2), (last_of_child, 1), (last_of_child + 1, 4)]})
    with Store.open() as store:
        found = [(one.count, one.detail) for one in events(store, attached.session, Filter())]
    assert found == [(4, FORGOTTEN)]
