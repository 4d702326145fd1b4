"""Records of one session into the event store, in batches and within bounded memory.

Denials are written at once per batch; opens and traffic are summed up per interval. What cannot be stored is counted,
never waited for: a broken or full store neither stops nor slows the guarded run.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Sized

from mcpguard.errors import StoreError
from mcpguard.events.clock import Clock
from mcpguard.events.database import BUSY
from mcpguard.events.finding import REPEATS_OF_OPENS, is_not_stopped, is_quiet
from mcpguard.events.missing import STORE, loss
from mcpguard.events.processes import Process, ProcessTable
from mcpguard.events.series import SeriesMemory
from mcpguard.events.store import Store
from mcpguard.events.tally import Quiet, Repeats, Sums
from mcpguard.events.translate import Translator
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.policy import Policy
from mcpguard.model.values import dataclass, replace
from mcpguard.wire.records import CallRecord, ExitRecord, FlowRecord, PathCallRecord, Record, SumRecord

INTERVAL_NS = 1_000_000_000
# A program that looks at every process once (`ps`) is done long before; one that goes on looking shows up meanwhile.
QUIET_INTERVAL_NS = 5 * INTERVAL_NS
FLOWS_INTERVAL_NS = 5 * INTERVAL_NS
# An event in memory is about 600 bytes: these bounds keep the recorder below some 30 MB.
MAX_SUMS = 10_000
MAX_WAITING = 10_000
# After so many records it is looked whether a bound is met.
_LOOK_EVERY = 64
# More than the kernel's own maps of aggregates hold.
MAX_SERIES = 40_000
UNJUDGED = "records that could not be judged"
FORGOTTEN = "repeats of something that is no longer remembered"
RING = "records that the kernel's ring had no room for"
# A write waits a second for another program's lock, and so often at the end.
LOCK_ATTEMPTS = 10


@dataclass(slots=True)
class Counters:
    """What did not become an event of its own.

    Attributes:
        plain: refusals that ordinary permissions explain.
        lost: records that never arrived (dropped by the kernel's rings, or unreadable).
        unsaved: events that could not be stored.
    """

    plain: int = 0
    lost: int = 0
    unsaved: int = 0


class Recorder:
    """Takes records, keeps the store up to date. One thread at a time.

    Attributes:
        counters: what did not become an event of its own.
        failure: the last StoreError; None when every write went well.
        bug: the first unexpected error of a record; None when all could be judged.
        taken: records that were taken so far.
    """

    def __init__(
        self,
        store: Store,
        session_id: str,
        policy: Policy,
        first_process: Process,
        clock: Clock | None = None,
        *,
        names: Mapping[str, str] | None = None,
        flows: Callable[[], Iterable[FlowRecord]] = tuple,
    ) -> None:
        """
        Args:
            first_process: what the launcher started; the root of every chain of parents.
            names: address -> host name, of those that need no looking up.
            flows: asked now and then for what was exchanged with whom since the last time.
        """
        self.counters = Counters()
        self.failure: StoreError | None = None
        self.bug: Exception | None = None
        self.taken = 0
        self._store = store
        self._session = session_id
        self._clock = clock or Clock()
        self._translator = Translator(
            *(session_id, policy, first_process, {} if names is None else names, self._clock.epoch_of, self._began_ns())
        )
        self._urgent = Repeats(INTERVAL_NS)
        self._quiet = Quiet(QUIET_INTERVAL_NS)
        self._sums = Sums()
        self._series = SeriesMemory(MAX_SERIES)
        self._losses: dict[str, int] = {}
        self._waiting_denials: list[Event] = []
        self._waiting: list[Event] = []
        self._held: tuple[Sized, ...] = (self._quiet, self._urgent, self._sums, self._waiting)
        self._told: deque[Event] = deque()
        self._due_ns = self._clock.monotonic_ns() + INTERVAL_NS
        self._retry_ns = 0
        self._flows = flows
        self._flows_due_ns = self._clock.monotonic_ns() + FLOWS_INTERVAL_NS

    @property
    def processes(self) -> ProcessTable:
        """Who is who, as far as records have told. Another thread may ask it."""
        return self._translator.processes

    def adopt(self, policy: Policy, since_ns: int) -> None:
        """See `Translator.adopt`."""
        self._translator.adopt(policy, since_ns)

    def tell(self, events: Iterable[Event]) -> None:
        """Put on record what no record of the kernel tells of. May be called by another thread."""
        self._told.extend(events)

    @property
    def untold(self) -> int:
        """How many told events are not taken yet."""
        return len(self._told)

    def feed(self, records: Sequence[Record], lost: Mapping[str, int] | None = None) -> None:
        """Take a batch, in the order of time.

        Args:
            lost: name of a ring -> records that it dropped meanwhile; None: they are summed up from the records.
        """
        now_ns = self._clock.monotonic_ns()
        self._translator.begin_batch()
        for record in records:
            self.taken += 1
            try:
                self._take(record, now_ns)
            except Exception as error:
                # One record that nobody foresaw must not take the denials behind it along.
                self.bug = self.bug or error
                self.lost(UNJUDGED, 1)
        if lost is None:
            lost = {RING: sum(record.head.lost_before for record in records)}
        for source, count in lost.items():
            self.lost(source, count)
        self._waiting_denials += self._urgent.take_new()
        if self._waiting_denials:
            self._write(now_ns)
        self.tick()

    def tick(self) -> None:
        """Write what is due; call it at least once a second while nothing comes."""
        now_ns = self._clock.monotonic_ns()
        if self._told:
            self._take_told()
            self._write(now_ns)
        if now_ns >= self._due_ns:
            self._due_ns = now_ns + INTERVAL_NS
            self._settle(now_ns)
            self._flush(now_ns, everything=False)

    def add_sums(self, sums: Iterable[SumRecord]) -> None:
        """Take what the kernel had counted and not sent when the session ended; call it before `finish`."""
        now_ns = self._clock.monotonic_ns()
        forgotten: Counter[str] = Counter()
        for repeat in sums:
            if repeat.series not in self._series:
                # A series whose first record never arrived can be anything; without a loss it is one of those let go.
                opens = self._series.forgot_only_opens and not self.counters.lost
                forgotten[REPEATS_OF_OPENS if opens else FORGOTTEN] += repeat.count
                continue
            event = self._series.get(repeat.series)
            if event is None:
                self.counters.plain += repeat.count
            else:
                self._sort(replace(event, count=repeat.count), now_ns)
        for what, count in forgotten.items():
            self.lost(what, count)

    def lost(self, source: str, count: int) -> None:
        """Note records that never arrived."""
        if count > 0:
            self.counters.lost += count
            self._losses[source] = self._losses.get(source, 0) + count

    def finish(self) -> None:
        """Write all that is left. A lock is waited for; what cannot be written then is counted as unsaved."""
        self._take_flows(self._clock.monotonic_ns())
        self._settle(self._clock.monotonic_ns(), everything=True)
        self._retry_ns = 0
        self._flush(self._clock.monotonic_ns(), everything=True)
        for _ in range(LOCK_ATTEMPTS):
            if not (self._waiting_denials or self._waiting) or (self.failure and self.failure.code != BUSY):
                break
            self._retry_ns = 0
            self._write(self._clock.monotonic_ns())
        for waiting in (self._waiting_denials, self._waiting):
            self._drop(waiting, len(waiting))
        losses = self._take_losses()
        with contextlib.suppress(StoreError):  # the session's own row has the number, too
            self._store.add(self._session, losses)

    @property
    def warning(self) -> str | None:
        """One line for the end of the run when events were not stored; None: all of them were."""
        if self.counters.unsaved == 0:
            return None
        why = self.failure.why if self.failure else "unknown"
        return f"{self.counters.unsaved} events could not be stored: {why}"

    def _began_ns(self) -> int:
        try:
            return self._store.session(self._session).started_ns
        except StoreError:
            return self._clock.epoch_ns()

    def _take(self, record: Record, now_ns: int) -> None:
        event = self._translator.event(record)
        repeats = getattr(record, "series", 0) in self._series
        self._remember(record, event)
        # What was repeated is only counted, and may be another object each time.
        if event is None or (not repeats and self._translator.waits(event)):
            self.counters.plain += _count(record)
        else:
            self._quiet.note(event)
            self._sort(event, now_ns, record.head.said)
        if isinstance(record, ExitRecord):
            self._waiting_denials += self._quiet.take_process(record.head.pid)
        if self.taken % _LOOK_EVERY == 0 and max(map(len, self._held)) >= MAX_SUMS:
            self._flush(now_ns, everything=True)

    def _remember(self, record: Record, event: Event | None) -> None:
        """Which aggregate of the kernel stands for what: the rest of its count comes at the end, with its number
        alone."""
        series = getattr(record, "series", 0)
        if series:
            self._series.note(series, event)

    def _sort(self, event: Event, now_ns: int, said: int = 0) -> None:
        """Equal acts of an interval are one, unless a message of MCP was sent in between: each call shows what it did."""
        if is_quiet(event):
            self._quiet.add(event, now_ns)
        elif event.verdict is Verdict.DENY or is_not_stopped(event):
            self._urgent.add((said, _same(event)), event, now_ns)
        elif event.kind in (Kind.FILE, Kind.NET, Kind.UNIX, Kind.DNS):
            self._sums.add((said, _same(event)), event)
        else:
            self._waiting.append(event)

    def _settle(self, now_ns: int, *, everything: bool = False) -> None:
        """Take what had to wait for what came after it."""
        for event in self._translator.settled(everything=everything):
            self.counters.plain -= event.count
            self._sort(event, now_ns)

    def _take_told(self) -> None:
        while self._told:
            self._waiting.append(self._told.popleft())

    def _take_flows(self, now_ns: int) -> None:
        self._flows_due_ns = now_ns + FLOWS_INTERVAL_NS
        self._waiting += [self._translator.traffic(record) for record in self._flows()]

    def _flush(self, now_ns: int, *, everything: bool) -> None:
        self._take_told()
        if now_ns >= self._flows_due_ns:
            self._take_flows(now_ns)
        self._waiting_denials += self._urgent.take_new()
        self._waiting_denials += self._urgent.take_due(now_ns, everything=everything)
        self._waiting_denials += self._quiet.take_due(now_ns, everything=everything)
        self._waiting += self._sums.take()
        self._waiting += self._take_losses()
        self._write(now_ns)

    def _take_losses(self) -> list[Event]:
        now_ns = self._clock.epoch_ns()
        events = [loss(now_ns, self._session, source, count) for source, count in self._losses.items()]
        self._losses.clear()
        return events

    def _write(self, now_ns: int) -> None:
        if now_ns >= self._retry_ns:
            try:
                # Denials first: when the disk fills between the two, they are in.
                for waiting in (self._waiting_denials, self._waiting):
                    self._store.add(self._session, waiting)
                    waiting.clear()
            except StoreError as error:
                self.failure = error
                self._retry_ns = now_ns + INTERVAL_NS
        for waiting in (self._waiting_denials, self._waiting):
            self._drop(waiting, len(waiting) - MAX_WAITING)

    def _drop(self, waiting: list[Event], excess: int) -> None:
        """Give up the newest: the oldest of a storm tell how it began."""
        if excess > 0:
            dropped = sum(max(event.count, 1) for event in waiting[-excess:])
            del waiting[-excess:]
            self.counters.unsaved += dropped
            self._losses[STORE] = self._losses.get(STORE, 0) + dropped


def _count(record: Record) -> int:
    return record.count if isinstance(record, PathCallRecord | CallRecord) else 1


def _same(event: Event) -> tuple[Hashable, ...]:
    """What makes two events one with a count."""
    # An act without an object is told apart by its words alone: a raw socket from a packet socket, one signal from another.
    about = event.detail if event.path is None and event.address is None else None
    return (
        *(about, event.host if event.kind is Kind.DNS else None),
        *(event.pid, event.kind, event.op, event.verdict, event.access, event.path, event.target),
        *(event.address, event.port, event.protocol, event.errno, event.exe),
    )
