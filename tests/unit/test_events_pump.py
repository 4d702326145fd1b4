"""The loop between rings and recorder: order, the last drain, and failures that must not hurt."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from events_help import SECOND, Bench, executed, head, opened, refused

from mcpguard.errors import KernelError
from mcpguard.events import pump as pump_module
from mcpguard.events.pump import FAILED, OUTRUN, UNREADABLE, Pump
from mcpguard.model.access import Verdict
from mcpguard.model.event import Kind
from mcpguard.wire import decode
from mcpguard.wire.records import Record

DENIED = refused("open", "/ws/secret/key", errno.EACCES, who=head(1001, 1000, "cat", when_ns=102 * SECOND))


# As the real ring, it hands out a bounded batch at a time.
LIMIT = 100
ROOM = 1000


class FakeRing:
    """Holds indexes of records; readable while it holds any."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._held: list[bytes] = []
        self.drained = threading.Event()

    def fileno(self) -> int:
        return self._reader

    def put(self, *raw: bytes) -> None:
        with self._lock:
            self._held += raw
            os.write(self._writer, b"x")

    def drain(self) -> list[bytes]:
        with self._lock:
            held, self._held = self._held[:LIMIT], self._held[LIMIT:]
            if held and not self._held:
                os.read(self._reader, 1000)
        self.drained.set()
        return held

    def unread(self) -> int:
        with self._lock:
            return len(self._held)

    def filled(self) -> float:
        return self.unread() / ROOM


class Setup:
    def __init__(self, bench: Bench, records: list[Record]) -> None:
        self.bench = bench
        self.records = records
        self.denials, self.activity = FakeRing(), FakeRing()
        self.pump = Pump(
            {"denials": (self.denials, self.decode), "activity": (self.activity, self.decode)}, bench.recorder
        )

    def decode(self, raw: bytes) -> Record:
        if not raw.isdigit():
            raise KernelError("decoding", errno.EPROTO, do="")
        return self.records[int(raw)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@contextmanager
def started(setup: Setup) -> Iterator[Pump]:
    setup.pump.start()
    yield setup.pump
    assert setup.pump.stop()


def eventually(condition: Callable[[], bool], wake: threading.Event) -> None:
    """Wait for drains until it holds."""
    for _ in range(200):
        if condition():
            return
        wake.wait(1)
        wake.clear()
    raise AssertionError("it never came")


def test_a_denial_reaches_the_store_while_the_run_goes_on(bench: Bench) -> None:
    setup = Setup(bench, [DENIED])
    with started(setup):
        setup.denials.put(b"0")
        eventually(lambda: len(bench.events()) == 1, setup.denials.drained)


def test_a_ring_that_cannot_be_read_costs_nothing_of_another_and_is_told(bench: Bench) -> None:
    setup = Setup(bench, [DENIED])
    setup.activity.drain = broken  # type: ignore[method-assign]
    with started(setup):
        setup.denials.put(b"0")
    found = bench.events()
    assert [event.verdict for event in found if event.kind is Kind.FILE] == [Verdict.DENY]
    assert {event.detail for event in found if event.kind is Kind.LOSS} == {UNREADABLE}


def test_what_follows_a_denial_is_known_after_it(bench: Bench) -> None:
    """It was refused after the ring of denials was read, and what the program did then was there when the other one was."""
    setup = Setup(bench, [])
    fed: list[str] = []
    bench.recorder.feed = lambda records, _lost=None: fed.extend(one.head.comm for one in records)  # type: ignore[method-assign]
    drain = setup.activity.drain

    def late() -> list[bytes]:
        """Before it is drained for the first time, the tree is refused something and does something else."""
        if not setup.records:
            for n, (ring, comm) in enumerate(((setup.denials, "refused"), (setup.activity, "then"))):
                setup.records.append(opened("/ws/a", who=head(1001, 1000, comm, when_ns=time.monotonic_ns())))
                ring.put(str(n).encode())
        return drain()

    setup.activity.drain = late  # type: ignore[method-assign]
    with started(setup):
        eventually(lambda: len(fed) == 2, setup.denials.drained)
    assert fed == ["refused", "then"]


def test_what_follows_the_last_denial_is_on_record_too(bench: Bench) -> None:
    """The pump is stopped after it read the ring of denials for the last time, and before it read the other one."""
    setup = Setup(bench, [])
    fed: list[str] = []
    bench.recorder.feed = lambda records, _lost=None: fed.extend(one.head.comm for one in records)  # type: ignore[method-assign]
    drain = setup.activity.drain

    drains: list[None] = []

    def last() -> list[bytes]:
        drains.extend([None] * stopping.is_set())
        if len(drains) == 2 and not setup.records:  # the first is of the step that the stop wakes
            setup.records.append(opened("/ws/a", who=head(1001, 1000, "last", when_ns=time.monotonic_ns())))
            setup.activity.put(b"0")
        return drain()

    stopping = threading.Event()
    setup.activity.drain = last  # type: ignore[method-assign]
    with started(setup):
        stopping.set()
    assert fed == ["last"]


def broken() -> list[bytes]:
    raise KernelError("mmap(ring buffer)", errno.ENOMEM, do="")


def test_a_denial_does_not_wait_for_activity_to_gather(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "GATHER_MS", 3_600_000)
    setup = Setup(bench, [DENIED, opened("/ws/a")])
    with started(setup):
        setup.activity.put(b"1")
        eventually(lambda: setup.activity.unread() == 0, setup.activity.drained)
        setup.denials.put(b"0")
        eventually(lambda: any(e.verdict is Verdict.DENY for e in bench.events()), setup.denials.drained)
        setup.activity.put(b"1")
    assert sum(event.count for event in bench.events() if event.op == "open" and event.verdict is Verdict.ALLOW) == 2


def test_records_of_all_rings_are_taken_in_the_order_of_time(bench: Bench) -> None:
    start = executed(1001, "/bin/cat", "cat", when_ns=101 * SECOND)
    setup = Setup(bench, [DENIED, start])
    setup.denials.put(b"0")
    setup.activity.put(b"1")
    with started(setup):
        pass
    (denial,) = [event for event in bench.events() if event.verdict is Verdict.DENY]
    assert denial.exe == "/bin/cat", "the start came from the other ring and happened before"


def test_what_is_in_the_rings_at_the_end_is_stored(bench: Bench) -> None:
    setup = Setup(bench, [opened("/ws/a")])
    with started(setup):
        setup.activity.put(*[b"0"] * 500)
    assert sum(event.count for event in bench.events()) == 500


def test_bytes_that_are_no_record_are_counted_as_lost(bench: Bench) -> None:
    setup = Setup(bench, [DENIED])
    with started(setup):
        setup.denials.put(b"no number", b"0")
    found = bench.events()
    assert [(e.count, e.detail) for e in found if e.kind is Kind.LOSS] == [(1, UNREADABLE)]
    assert len(found) == 2


def test_an_error_of_the_decoder_that_nobody_foresaw_costs_one_record(bench: Bench) -> None:
    def decode_or_fail(raw: bytes) -> Record:
        if raw == b"odd":
            raise struct.error("unpack requires a buffer of 8 bytes")
        return DENIED

    ring = FakeRing()
    pump = Pump({"denials": (ring, decode_or_fail)}, bench.recorder)
    ring.put(b"0", b"odd", b"0")
    pump.start()
    assert pump.stop()
    assert isinstance(pump.failure, struct.error)
    found = bench.events()
    assert [e.count for e in found if e.verdict is Verdict.DENY] == [2]
    assert [(e.count, e.detail) for e in found if e.kind is Kind.LOSS] == [(1, UNREADABLE)]


def test_what_a_ring_dropped_is_a_loss_that_names_the_ring(bench: Bench) -> None:
    setup = Setup(bench, [opened("/ws/a", who=head(lost=7))])
    with started(setup):
        setup.activity.put(b"0")
    (loss,) = [event for event in bench.events() if event.kind is Kind.LOSS]
    assert loss.count == 7
    assert "activity" in (loss.detail or "")


def test_an_unexpected_error_is_kept_and_its_records_counted_and_the_pump_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(bench, [DENIED])
    feed = bench.recorder.feed
    failed = threading.Event()

    def fail_once(*arguments: object) -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("a bug")
        feed(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.recorder, "feed", fail_once)
    with started(setup):
        setup.denials.put(b"0")
        assert failed.wait(60)
        setup.denials.put(b"0")
    assert str(setup.pump.failure) == "a bug"
    found = bench.events()
    assert [(e.count, e.detail) for e in found if e.kind is Kind.LOSS] == [(1, FAILED)]
    assert len(found) == 2


def test_a_pump_whose_store_is_gone_still_stops(bench: Bench) -> None:
    setup = Setup(bench, [DENIED])
    bench.store.close()
    with started(setup):
        setup.denials.put(b"0")
    assert bench.recorder.counters.unsaved == 1
    assert bench.recorder.warning is not None


def test_bytes_that_the_real_decoder_cannot_read_do_not_take_the_rest_of_their_batch_along(bench: Bench) -> None:
    def decode_real(raw: bytes) -> Record:
        return DENIED if raw == b"0" else decode.record(raw)

    ring = FakeRing()
    pump = Pump({"denials": (ring, decode_real)}, bench.recorder)
    ring.put(b"torn", b"0")
    pump.start()
    assert pump.stop()
    assert pump.failure is None
    found = bench.events()
    assert [e.path for e in found if e.verdict is Verdict.DENY] == ["/ws/secret/key"]
    assert [(e.count, e.detail) for e in found if e.kind is Kind.LOSS] == [(1, UNREADABLE)]


def test_who_waits_for_the_last_writes_is_told_so_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    calls: list[None] = []

    def progress() -> None:
        calls.append(None)
        told.set()

    def finish() -> None:
        assert told.wait(60)

    monkeypatch.setattr(pump_module, "PROGRESS_AFTER_S", 0.0)
    monkeypatch.setattr(bench.recorder, "finish", finish)
    setup = Setup(bench, [])
    setup.pump.start()
    assert setup.pump.stop(progress)
    assert setup.pump.failure is None
    assert len(calls) == 1


def test_a_last_drain_may_take_as_long_as_it_moves_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "PROGRESS_AFTER_S", 0.0)
    monkeypatch.setattr(pump_module, "LOOK_S", 0.1)
    monkeypatch.setattr(pump_module, "STALLED_S", 3.0)
    feed = bench.recorder.feed

    def slowly(records: list[Record], lost: dict[str, int]) -> None:
        for record in records:
            time.sleep(0.5)
            feed([record], lost)

    monkeypatch.setattr(bench.recorder, "feed", slowly)
    setup = Setup(bench, [DENIED])
    setup.denials.put(*[b"0"] * 6)
    with started(setup):
        pass
    assert sum(event.count for event in bench.events()) == 6


def test_a_pump_that_hangs_is_left_behind_and_what_it_did_not_record_is_known(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump_module, "PROGRESS_AFTER_S", 0.0)
    monkeypatch.setattr(pump_module, "LOOK_S", 0.05)
    monkeypatch.setattr(pump_module, "STALLED_S", 0.2)
    answers, hangs = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        hangs.set()
        answers.wait(60)

    monkeypatch.setattr(bench.recorder, "feed", hang)
    setup = Setup(bench, [DENIED])
    setup.denials.put(b"0", b"0")
    setup.pump.start()
    assert hangs.wait(60)
    setup.denials.put(b"0")
    assert not setup.pump.stop()
    assert setup.pump.behind() == 3
    answers.set()


def test_what_a_leftover_process_writes_faster_than_it_is_read_is_a_loss(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump_module, "LAST_ROUNDS", 3)
    setup = Setup(bench, [DENIED])
    drain = setup.denials.drain

    def refilled() -> list[bytes]:
        setup.denials.put(*[b"0"] * 2 * LIMIT)
        return drain()

    monkeypatch.setattr(setup.denials, "drain", refilled)
    with started(setup):
        pass
    (loss,) = [event for event in bench.events() if event.kind is Kind.LOSS]
    assert loss.detail == OUTRUN
    assert loss.count == setup.denials.unread() > 0


def test_nobody_is_told_when_the_last_writes_are_quick(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(pump_module, "PROGRESS_AFTER_S", 60.0)
    setup = Setup(bench, [])
    setup.pump.start()
    assert setup.pump.stop(lambda: calls.append(None))
    assert calls == []


def test_a_ring_that_fills_does_not_wait_for_more_to_gather(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "GATHER_MS", 3_600_000)
    setup = Setup(bench, [opened("/ws/a")])
    with started(setup):
        setup.activity.put(b"0")
        eventually(lambda: setup.activity.unread() == 0, setup.activity.drained)
        setup.activity.put(*[b"0"] * int(ROOM * pump_module.GATHER_FILLED + 1))
        eventually(lambda: setup.activity.unread() == 0, setup.activity.drained)


def test_who_hurries_does_not_wait_for_activity_to_gather(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "GATHER_MS", 3_600_000)
    setup = Setup(bench, [opened("/ws/a")])
    with started(setup):
        for _ in range(3):
            setup.activity.put(b"0")
            setup.pump.hurry()
            eventually(lambda: setup.activity.unread() == 0, setup.activity.drained)
    setup.pump.hurry()
