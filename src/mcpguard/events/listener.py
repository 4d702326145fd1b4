"""The loop between the kernel's ring of messages and the recorder, in a thread of its own: what is large and takes time to read
must not stand before verdicts. What reads messages is loaded when the first one comes; most sessions have none.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterable
from functools import partial

from mcpguard.events.clock import Clock
from mcpguard.events.missing import loss
from mcpguard.events.recorder import Recorder
from mcpguard.model.event import Event
from mcpguard.wire import decode
from mcpguard.wire.records import MessageRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from mcpguard.events.ends import Ends
    from mcpguard.events.observer import Asked, Observer, Sender

    class Ring(Protocol):
        """A ring buffer that can be waited for."""

        def fileno(self) -> int: ...

        def drain(self) -> list[bytes]:
            """Records that are in it now, oldest first; perhaps not all of them."""
            ...

    class Around(Protocol):
        """What ends servers that the agent talks to and the gate does not know. What these return is told, too."""

        def look(self, events: Iterable[Event]) -> list[Event]:
            """Messages that are told."""
            ...

        @property
        def holds(self) -> bool:
            """Whether a process waits to be judged."""
            ...

        def hold(self, record: MessageRecord, exe: str | None) -> list[Event]:
            """The kernel has stopped who read a question."""
            ...

        def seek(self, asked: Iterable[Asked]) -> None:
            """Have those stand still that have an end where an agent asks, though nobody was seen to read there."""
            ...

        def judge(self, sender_to: Callable[[tuple[int, int]], Sender | None], *, last: bool = False) -> list[Event]:
            """Have those that are held go on, or end them, as soon as it is known which.

            Args:
                last: it is not asked again.
            """
            ...

        def ended(self, pid: int, exe: str | None, input: tuple[int, int]) -> list[Event]:
            """The kernel has ended a server; `input` is what it had as its standard input."""
            ...


WAKE_MS = 250
# The last reading ends when nothing comes any more, or here: what a leftover process goes on sending is not waited for.
LAST_ROUNDS = 64
STALLED_S = 60.0
# What the store has not taken yet; a tree that talks faster than events can be written pays with its own record.
MOST_UNTOLD = 10_000
TOO_MANY = "MCP messages that came faster than they could be written"
DROPPED = "pieces of MCP messages that the kernel dropped: their ring was full"
UNREADABLE = "pieces of MCP messages that could not be read"
LEFT_BEHIND = "MCP messages at least that were not read at the end"


# While somebody is held it is looked more often.
HELD_WAKE_MS = 25


class Listener:
    """Reads the messages of one session until `stop`.

    Attributes:
        failure: the first unexpected error; None when all went well.
    """

    def __init__(
        self,
        ring: Ring,
        session: str,
        recorder: Recorder,
        clock: Clock | None = None,
        hurry: Callable[[], None] = lambda: None,
        ends: Ends | None = None,
    ) -> None:
        """
        Args:
            hurry: has activity read at once: who sends messages must be known when they are told.
            ends: as `Observer` takes it.
        """
        self._hurry = hurry
        self._ends = ends
        self.failure: Exception | None = None
        self._ring = ring
        self._session = session
        self._recorder = recorder
        self._clock = clock or Clock()
        self._observer: Observer | None = None
        self._skipped: list[tuple[tuple[tuple[int, int], ...], bool]] = []
        self._skipped_port: int | None = None
        self._around: Around | None = None
        self._expected = False
        self._unseen: list[Callable[[Around], list[Event]]] = []
        self._skipping = threading.Lock()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="mcpguard-messages", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def skip(self, ends: Iterable[tuple[int, int]], served: bool = True) -> None:
        """These pipes and sockets (`st_dev` and `st_ino` of them) are told by somebody else. May be called by any thread, also
        when the first messages have gone through: they are held back for a moment.

        Args:
            served: else nobody listens there: only what was sent already is not told.
        """
        with self._skipping:
            self._skipped.append((tuple(ends), served))

    def skip_port(self, port: int) -> None:
        """What is said to this port on loopback, and from it, is told by somebody else. To be called early."""
        self._skipped_port = port

    def expect(self) -> None:
        """There is a gate: keep what there is to look at until `show`, as the agent does not wait for that, and for longer what
        the gate may tell of. To be called before the agent starts."""
        self._expected = True

    def show(self, around: Around) -> None:
        """Have every message looked at."""
        self._around = around

    def stop(self) -> bool:
        """Read what is left, end the thread. False: it hangs and was left behind."""
        os.eventfd_write(self._stop, 1)
        self._thread.join(STALLED_S)
        if self._thread.is_alive():
            return False
        os.close(self._stop)
        return True

    def finish(self) -> None:
        """Tell what was held back; to be called when the recorder knows all processes, after `stop`."""
        if self._observer is not None:
            self._guard(lambda: self._tell(self._watching().tick(everything=True), {}))

    def _run(self) -> None:
        poll = select.poll()
        for descriptor in (self._stop, self._ring.fileno()):
            poll.register(descriptor, select.POLLIN)
        stopping = False
        while not stopping:
            # Without messages there is nothing to look after from time to time.
            ready = poll.poll(self._patience_ms())
            stopping = any(descriptor == self._stop for descriptor, _ in ready)
            self._guard(self._step)
        for _ in range(LAST_ROUNDS):
            if not self._guard(self._step):
                break
        else:
            self._tell([], {LEFT_BEHIND: 1})
        self._guard(self._judge_the_last)

    def _patience_ms(self) -> int | None:
        if self._observer is None:
            return None
        return HELD_WAKE_MS if self._around is not None and self._around.holds else WAKE_MS

    def _judge_the_last(self) -> None:
        if self._around is not None and self._around.holds:
            self._tell(self._around.judge(self._watching().sender_to, last=True), {})

    def _step(self) -> bool:
        """Move what is there; False: there was nothing."""
        raw = self._ring.drain()
        if not raw and self._observer is None:
            return False
        if raw:
            self._hurry()
        records: list[MessageRecord] = []
        lost = {DROPPED: 0, UNREADABLE: 0}
        for one in raw:
            try:
                records.append(decode.message(one))
                lost[DROPPED] += records[-1].head.lost_before
            except ValueError:
                lost[UNREADABLE] += 1
        observer = self._watching()
        events = observer.feed(record for record in records if not record.held)
        for record in records:
            if record.ended or record.held:
                events += self._shown(partial(_tell_of, record, observer.exe_of(record.head.pid)))
        if self._around is not None:
            unseen, self._unseen = self._unseen, []
            events += [event for show in unseen for event in show(self._around)]
            self._around.seek(observer.asked())
            if self._around.holds:
                events += self._around.judge(observer.sender_to)
        self._tell(events, lost | observer.take_lost())
        return bool(raw)

    def _watching(self) -> Observer:
        if self._observer is None:
            from mcpguard.events.observer import Observer

            processes = self._recorder.processes
            self._observer = Observer(
                *(self._session, self._clock.epoch_of, self._clock.monotonic_ns, processes.running, self._ends),
                gated=self._expected,
            )
        if self._skipped_port is not None:
            self._observer.skip_port(self._skipped_port)
        with self._skipping:
            skipped, self._skipped = self._skipped, []
        for ends, served in skipped:
            self._observer.skip(ends, served)
        return self._observer

    def _tell(self, events: list[Event], lost: dict[str, int]) -> None:
        now_ns = self._clock.epoch_ns()
        if len(events) > (room := max(0, MOST_UNTOLD - self._recorder.untold)):
            lost = lost | {TOO_MANY: len(events) - room}
            del events[room:]
        events += [loss(now_ns, self._session, what, count) for what, count in lost.items() if count]
        self._recorder.tell([*events, *self._shown(lambda around: around.look(events))] if events else events)

    def _shown(self, show: Callable[[Around], list[Event]]) -> list[Event]:
        """What it says, now or later."""
        if self._around is not None:
            return show(self._around)
        if self._expected and len(self._unseen) < MOST_UNTOLD:
            self._unseen.append(show)
        return []

    def _guard(self, step: Callable[[], bool | None]) -> bool:
        """An unexpected error is kept, because a dead thread would lose everything after it."""
        try:
            return bool(step())
        except Exception as error:
            self.failure = self.failure or error
            self._tell([], {UNREADABLE: 1})
            return True


def _tell_of(record: MessageRecord, exe: str | None, around: Around) -> list[Event]:
    return around.hold(record, exe) if record.held else around.ended(record.head.pid, exe, record.input)
