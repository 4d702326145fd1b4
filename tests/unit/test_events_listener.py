"""The loop that reads messages: it tells the recorder, within bounds, and ends with nothing left."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, make_policy

from mcpguard.events import listener as listening
from mcpguard.events import query
from mcpguard.events.listener import DROPPED, TOO_MANY, UNREADABLE, Listener
from mcpguard.events.observer import Asked
from mcpguard.events.processes import Process
from mcpguard.events.recorder import Recorder
from mcpguard.events.store import Store
from mcpguard.model.event import Event, Kind
from mcpguard.wire import _abi
from mcpguard.wire.records import MessageRecord


class Ring:
    """Bytes in place of the kernel's ring; readable while there are some."""

    def __init__(self) -> None:
        self._ready = os.eventfd(0, os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._samples: list[bytes] = []

    def put(self, *samples: bytes) -> None:
        with self._lock:
            self._samples += samples
        os.eventfd_write(self._ready, 1)

    def fileno(self) -> int:
        return self._ready

    def drain(self) -> list[bytes]:
        with self._lock:
            taken, self._samples = self._samples, []
        if taken:
            os.eventfd_read(self._ready)
        return taken


def sample(text: bytes, offset: int, lost_before: int = 0, fate: int = 0) -> bytes:
    head = _abi.MG_HEAD.pack(time.monotonic_ns(), _abi.MG_RECORD_MESSAGE, lost_before, 10, 10, 1, 0, b"agent")
    fixed = _abi.MG_MESSAGE.pack(head, offset, 5, 5, 0, 7, 7, len(text), 0, 0, 0, _abi.MG_PIPE, 0, 0, fate)
    return fixed + text


class World:
    def __init__(self, path: Path) -> None:
        self.store = Store.open(path)
        policy = make_policy(*OPEN_POLICY)
        self.session = self.store.start_session(policy, command=("a",), tier="3", coverage=(), now_ns=time.time_ns())
        self.recorder = Recorder(self.store, self.session, policy, Process(10, 1, "/usr/bin/agent", ("agent",)))
        self.ring = Ring()
        self.listener = Listener(self.ring, self.session, self.recorder)
        self.listener.start()

    def end(self) -> list[Event]:
        assert self.listener.stop()
        self.listener.finish()
        self.recorder.finish()
        return list(query.events(self.store, self.session, query.Filter()))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "events.db")


def until(holds: Callable[[], bool]) -> None:
    for _ in range(500):
        if holds():
            return
        time.sleep(0.02)
    pytest.fail("it never came to be")


def ask(id: int) -> bytes:
    return b'{"jsonrpc":"2.0","id":%d,"method":"tools/list"}\n' % id


def test_what_was_said_is_on_record_and_what_was_not_seen_is_counted(world: World) -> None:
    world.ring.put(sample(ask(1), 0), b"no record", sample(ask(2), len(ask(1)), lost_before=3))
    events = world.end()
    assert [event.mcp.id for event in events if event.mcp] == ["1", "2"]
    assert [event.exe for event in events if event.mcp] == ["/usr/bin/agent"] * 2
    assert {event.detail: event.count for event in events if event.kind is Kind.LOSS} == {DROPPED: 3, UNREADABLE: 1}
    assert world.listener.failure is None


def test_nothing_said_nothing_told(world: World) -> None:
    assert world.end() == [] and world.listener._observer is None


def test_a_tree_that_talks_too_fast_pays_with_its_own_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "MOST_UNTOLD", 5)
    text = b"".join(map(ask, range(20)))
    world.ring.put(sample(text, 0))
    events = world.end()
    assert len([event for event in events if event.mcp]) == 5
    assert [event.count for event in events if event.detail == TOO_MANY] == [15]


def test_what_somebody_else_tells_is_left_out_when_they_say_so_later(world: World) -> None:
    world.ring.put(sample(ask(1), 0))
    until(lambda: world.listener._observer is not None)
    world.listener.skip([(os.makedev(0, 7), 5)])
    assert world.end() == []


def test_what_comes_before_there_is_somebody_to_show_it_to_is_shown_then(world: World) -> None:
    """The agent has started, and who ends its servers has not yet."""
    seen: list[int] = []
    sought: list[int] = []

    class Around:
        def look(self, events: Iterable[Event]) -> list[Event]:
            return []

        holds = False

        def hold(self, record: MessageRecord, exe: str | None) -> list[Event]:
            seen.append(-record.head.pid)
            return []

        def seek(self, asked: Iterable[Asked]) -> None:
            sought.extend(one.sender.peer.pid for one in asked)

        def judge(self, sender_to: Callable[[tuple[int, int]], object], *, last: bool = False) -> list[Event]:
            return []

        def ended(self, pid: int, exe: str | None, input: tuple[int, int]) -> list[Event]:
            seen.append(pid)
            return []

    world.listener.expect()
    world.ring.put(sample(ask(1), 0, fate=_abi.MG_ENDED), sample(ask(1), 0, fate=_abi.MG_HELD))
    until(lambda: len(world.listener._unseen) == 2)
    world.listener.show(Around())
    events = world.end()
    assert seen == [10, -10] and set(sought) == {10}
    assert len([event for event in events if event.mcp]) == 1, "what was read was told when it was sent"
