"""The loop between the kernel's rings and the recorder, in a thread of the `run` process.

Drains until told to stop, then once more. Nothing here may end or hold up the guarded run: a failure is counted and
told at the end.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from mcpguard.errors import KernelError
from mcpguard.events.recorder import Recorder
from mcpguard.wire.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Ring(Protocol):
        """A ring buffer that can be waited for."""

        def fileno(self) -> int: ...

        def drain(self) -> list[bytes]:
            """Records that are in it now, oldest first; perhaps not all of them."""
            ...

        def unread(self) -> int:
            """How many complete records are in it now."""
            ...

        def filled(self) -> float:
            """Which part of it is taken."""
            ...


WAKE_MS = 250
# Activity may gather for so long: what the tree does in a moment it does undisturbed, and many records cost less at once.
# Denials do not wait, nor does a ring that fills.
GATHER_MS = 250
GATHER_LOOK_MS = 20
GATHER_FILLED = 1 / 2
# The last drain may take as long as it moves on. When nothing moves for so long, a disk or a network file system hangs.
STALLED_S = 60.0
LOOK_S = 1.0
PROGRESS_AFTER_S = 1.0
LAST_ROUNDS = 100
# More than a ring holds; a tree that writes faster than we read is read again in the next step.
MOST_BATCHES = 16
UNREADABLE = "records that could not be read"
OUTRUN = "records at least that were written faster at the end than they could be read"
FAILED = "records that came with an unexpected error"


# Makes a record of the bytes of one; raises ValueError or KernelError for bytes that are none.
Decode = Callable[[bytes], Record]


def _poll(descriptors: Iterable[int]) -> select.poll:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return poll


class Pump:
    """Moves records from rings to a recorder until `stop`.

    Attributes:
        failure: the first unexpected error; None when all went well.
    """

    def __init__(self, rings: Mapping[str, tuple[Ring, Decode]], recorder: Recorder) -> None:
        """
        Args:
            rings: name -> ring, and what makes records of its bytes. Name the ring of denials first: it is never left waiting,
                and what is in it is drained before the activity that explains it, so a process is known by the time its
                denial is judged. What happened after it was read waits for the next time: a denial of before may be in that.
        """
        self.failure: Exception | None = None
        self._rings = dict(rings)
        self._recorder = recorder
        self._early: list[Record] = []
        self._drained = 0
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._hurry = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="mcpguard-events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def hurry(self) -> None:
        """Have what is in the rings read now, by its own thread. Also after `stop`: then it is nothing."""
        os.eventfd_write(self._hurry, 1)

    def stop(self, progress: Callable[[], None] | None = None) -> bool:
        """Drain once more, write all, end the thread. False: it hangs and was left behind, with the recorder.

        Args:
            progress: called once, in the caller's thread, when that takes longer than PROGRESS_AFTER_S.
        """
        os.eventfd_write(self._stop, 1)
        self._thread.join(PROGRESS_AFTER_S)
        if progress is not None and self._thread.is_alive():
            progress()
        seen, since = self._moved, time.monotonic()
        while self._thread.is_alive():
            self._thread.join(LOOK_S)
            if self._moved != seen:
                seen, since = self._moved, time.monotonic()
            elif time.monotonic() - since > STALLED_S:
                return False
        os.close(self._stop)
        return True

    def behind(self) -> int:
        """How many records are drained and not recorded, or not even drained."""
        return self._drained - self._recorder.taken + sum(ring.unread() for ring, _ in self._rings.values())

    @property
    def _moved(self) -> tuple[int, int]:
        return self._drained, self._recorder.taken

    def _run(self) -> None:
        descriptors = [self._stop, self._hurry, *(ring.fileno() for ring, _ in self._rings.values())]
        anything, urgent = _poll(descriptors), _poll(descriptors[:3])
        stopping = False
        while not stopping:
            ready = anything.poll(0 if self._early else WAKE_MS)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._hurry)
            if self._guard(self._step):
                ready += self._gather(urgent)
            stopping = any(descriptor == self._stop for descriptor, _ in ready)
        # A ring hands out a bounded batch at a time; what a leftover process goes on writing ends with the bound.
        for _ in range(LAST_ROUNDS):
            if not self._guard(self._step):
                break
        else:
            left = len(self._early) + sum(ring.unread() for ring, _ in self._rings.values())
            self._recorder.lost(OUTRUN, left)
        self._guard(self._recorder.finish)

    def _gather(self, urgent: select.poll) -> list[tuple[int, int]]:
        """Wait until something urgent comes, and no longer than activity may gather; what was ready."""
        until = time.monotonic() + GATHER_MS / 1000
        while not (ready := urgent.poll(GATHER_LOOK_MS)) and time.monotonic() < until:
            if any(ring.filled() > GATHER_FILLED for ring, _ in self._rings.values()):
                break
        return ready

    def _step(self) -> bool:
        """Move what is there; False: there was nothing."""
        records, self._early = self._early, []
        until_ns: int | None = None
        lost: dict[str, int] = {}
        for name, (ring, decode) in self._rings.items():
            drained, empty_ns = self._read(ring, lost)
            for raw in drained:
                try:
                    record = decode(raw)
                except Exception as error:
                    # Whatever it is: what was drained with it is in no ring any more, and must not be lost for it.
                    if not isinstance(error, (KernelError, ValueError)):
                        self.failure = self.failure or error
                    lost[UNREADABLE] = lost.get(UNREADABLE, 0) + 1
                    continue
                if record.head.lost_before:
                    dropped = f"records that were dropped: {name} was full"
                    lost[dropped] = lost.get(dropped, 0) + record.head.lost_before
                early = until_ns is not None and record.head.when_ns > until_ns
                (self._early if early else records).append(record)
                self._drained += 1
            until_ns = until_ns or empty_ns
        records.sort(key=lambda record: record.head.when_ns)
        if not records and not lost:
            self._recorder.tick()
            return bool(self._early)
        try:
            self._recorder.feed(records, lost)
        except Exception:
            self._recorder.lost(FAILED, len(records))
            raise
        return True

    def _read(self, ring: Ring, lost: dict[str, int]) -> tuple[list[bytes], int]:
        """All that is in a ring, and when it was empty, of CLOCK_MONOTONIC as in a record.

        What explains a denial may stand behind a batch of other records, and must be known with it. What came out of a ring,
        or of others, is not lost because one cannot be read.
        """
        drained: list[bytes] = []
        empty_ns = 0
        try:
            for _ in range(MOST_BATCHES):
                empty_ns = time.monotonic_ns()
                batch = ring.drain()
                if not batch:
                    break
                drained += batch
        except Exception as error:
            self.failure = self.failure or error
            lost[UNREADABLE] = lost.get(UNREADABLE, 0) + 1
        return drained, empty_ns

    def _guard(self, step: Callable[[], bool | None]) -> bool:
        """Run a step; an unexpected error is kept for the end, because a dead pump would lose everything after it."""
        try:
            return bool(step())
        except Exception as error:
            self.failure = self.failure or error
            return True
