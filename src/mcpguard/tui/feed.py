"""Reads a session's record beside the screen: what is new comes as one `Portion` a round. The only file here that reads.

Runs in a thread of its own. A record that grows faster than a person reads is not shown line by line: the newest events come,
the others are counted, and the sums hold all of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

from mcpguard.errors import StoreError
from mcpguard.events import activity, missing, query, window
from mcpguard.events.activity import Span
from mcpguard.events.query import Filter
from mcpguard.events.sessions import Session, State
from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind, McpMessage
from mcpguard.policy.compile import DEFAULT
from mcpguard.session import questions
from mcpguard.session.approve import HeldCall, Question, Watch
from mcpguard.session.process_tree import ProcessTable
from mcpguard.tui.totals import Totals

EVERY_S = 0.25
# Lines of the first look, and of one round.
FIRST = 2_000
MOST = 1_000
# Sums are made of this many events at a time, so that a long record shows up bit by bit.
STEP = 50_000
PIECE = 500
_STEP_ASIDE_S = 0.0005
_MEASURE_EVERY = 8
# A session listens a little after it began.
_AGAIN_S = 1.0
_HELD = "held until it is answered here"
_MEASURED = 200


@dataclass(slots=True)
class Portion:
    """What one round found for the stream.

    Attributes:
        events: in order; of a `fresh` portion the beginning of a new stream.
        skipped: events that came before them in this round and are not among them.
        session: its state changed.
        summed, last: how many events are in the sums, and how many there are.
    """

    events: list[Event] = field(default_factory=list)
    fresh: bool = False
    skipped: int = 0
    session: Session | None = None
    summed: int = 0
    last: int = 0
    error: StoreError | None = None


class Turns:
    """One at a time; who looks goes before who adds, and so never waits for more than one piece. To be entered by who looks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looking = False

    def __enter__(self) -> None:
        self._looking = True
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._looking = False
        self._lock.release()

    @contextmanager
    def adding(self) -> Iterator[None]:
        """A thread that adds piece after piece would else take the lock again before the other one has woken up."""
        while self._looking:
            time.sleep(_STEP_ASIDE_S)
        with self._lock:
            yield


class Feed:
    """One session, read until `close`.

    Attributes:
        totals, processes: the sums so far; to be looked at with `lock` held.
    """

    def __init__(self, open_store: Callable[[], Store], session: str, deliver: Callable[[Portion], None]) -> None:
        """
        Args:
            open_store: opens the record; called in the feed's own thread.
            deliver: called there with each portion that holds something.
        """
        self.totals = Totals()
        self.processes = ProcessTable()
        self.lock = Turns()
        self._open = open_store
        self._session = session
        self._deliver = deliver
        self._wake = threading.Event()
        self._closed = False
        self._wanted = Filter()
        self._asked = True
        self._watch: Watch | None = None
        self._again = 0.0
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=5)

    def ask(self, wanted: Filter) -> None:
        """Begin a new stream of the events that match."""
        self._wanted = wanted
        self._asked = True
        self._wake.set()

    def _run(self) -> None:
        try:
            with self._open() as store:
                self._follow(store)
        except StoreError as error:
            self._deliver(Portion(error=error))
        finally:
            if self._watch is not None:
                self._watch.close()

    def _follow(self, store: Store) -> None:
        number = store.number(self._session)
        seen = summed = rounds = 0
        state: State | None = None
        meters: dict[int, psutil.Process] = {}
        while not self._closed:
            # Asked before reading: what is written in between is found in the next round.
            session = store.session(self._session)
            last = store.last_seq(number)
            portion = Portion(last=last)
            if self._asked:
                self._asked = False
                portion.fresh = True
                portion.events = window.newest(store, number, self._session, self._wanted, FIRST, before=last + 1)
            elif last > seen:
                after = max(seen, last - MOST)
                portion.skipped = after - seen
                portion.events = window.between(store, number, self._session, self._wanted, after, last)
            seen = last
            upto = min(last, summed + STEP)
            grew = upto > summed
            if grew:
                self._sum(store, Span(number, summed, upto))
                summed = upto
            if session.state is not state:
                state = session.state
                portion.session = session
            if state is not State.RUNNING and (portion.fresh or portion.session):
                portion.events = [*portion.events, *query.unwritten(store, self._session, self._wanted)]
                with self.lock.adding():
                    self.totals.unwritten = sum(loss.count for loss in missing.unwritten(store, session))
            self._read_answers()
            self._read_held(running=state is State.RUNNING)
            rounds += 1
            if state is State.RUNNING and rounds % _MEASURE_EVERY == 0:
                self._measure(meters)
            portion.summed = summed
            if portion.fresh or portion.events or portion.session or grew:
                self._deliver(portion)
            if summed == last:
                self._wake.wait(EVERY_S)
                self._wake.clear()

    def _sum(self, store: Store, span: Span) -> None:
        """Add a range to the sums, a little at a time, so that the screen never waits for long."""
        totals = self.totals
        whole: list[tuple[Callable[[Any], None], Any]] = [
            (totals.set_rules, activity.rules(store, span.number)),
            (totals.add_sums, activity.sums(store, span)),
            (totals.add_uses, activity.rule_uses(store, span)),
        ]
        pieces: list[tuple[Callable[[Any], None], Sequence[Any]]] = [
            (totals.add_touched, activity.touched(store, span)),
            (totals.add_reached, activity.reached(store, span)),
            (totals.add_started, activity.started(store, span)),
            (totals.add_spoken, activity.spoken(store, span)),
            (totals.add_uncovered, activity.uncovered(store, span, self._session)),
            (self.processes.take, activity.tree(store, span, self._session)),
        ]
        for add, found in pieces:
            whole += [(add, found[at : at + PIECE]) for at in range(0, len(found), PIECE)]
        for add, found in whole:
            with self.lock.adding():
                add(found)

    def _read_answers(self) -> None:
        """Other screens answer too."""
        found = questions.answers(self._session)
        with self.lock.adding():
            self.totals.answers = found

    def _read_held(self, *, running: bool) -> None:
        """While this screen is open, a session that asks holds questions for it."""
        try:
            if self._watch is None:
                if not running or self.totals.answers is None or time.monotonic() < self._again:
                    return
                self._again = time.monotonic() + _AGAIN_S
                self._watch = Watch(self._session)
            news = self._watch.news()
        except (OSError, ValueError, LookupError, TypeError):
            if self._watch is None:
                return
            self._watch.close()
            self._watch, news = None, []
        if news is not None:
            with self.lock.adding():
                calls = self._watch.calls if self._watch is not None else []
                self.totals.set_held([*map(self._event, news), *map(self._call, calls)])

    def _event(self, asked: Question) -> Event:
        """A held question, as the refusal that it becomes unless somebody allows it."""
        return Event(
            asked.since_ns,
            self._session,
            Kind.DNS,
            "query",
            Verdict.DENY,
            pid=asked.pid,
            ppid=asked.ppid,
            comm=asked.comm,
            host=asked.name,
            count=asked.count,
            rule=DEFAULT,
            detail=f"{asked.kind}; {_HELD}",
        )

    def _call(self, held: HeldCall) -> Event:
        """A held call, as the refusal that it becomes unless somebody allows it."""
        message = McpMessage(
            *(held.server, held.transport, "client", held.call, "tools/call"),
            tool=held.tool,
            arguments=held.arguments or None,
            classes=held.classes or None,
        )
        return Event(
            *(held.since_ns, self._session, Kind.MCP, "request", Verdict.DENY),
            pid=held.pid or None,
            comm=held.comm or None,
            detail=f"{_HELD}: {held.why}",
            mcp=message,
        )

    def _measure(self, meters: dict[int, psutil.Process]) -> None:
        with self.lock.adding():
            living = self.processes.living()[:_MEASURED]
        usage = _usage(living, meters)
        with self.lock.adding():
            self.processes.measured(usage)


def _usage(pids: list[int], meters: dict[int, psutil.Process]) -> dict[int, tuple[float, int]]:
    """cpu and memory of what still runs; the first look at a process has no cpu yet."""
    found: dict[int, tuple[float, int]] = {}
    for pid in [pid for pid in meters if pid not in pids]:
        del meters[pid]
    for pid in pids:
        try:
            meter = meters.setdefault(pid, psutil.Process(pid))
            found[pid] = (meter.cpu_percent(None), meter.memory_info().rss)
        except psutil.Error:
            meters.pop(pid, None)
    return found
