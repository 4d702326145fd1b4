"""Who started whom in a session, read from its record."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from mcpguard.events import query
from mcpguard.events.store import Store
from mcpguard.model.event import Event, Kind


class Ancestors:
    """Who started a process, and so on upwards. A number that is used again begins anew with its fork."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._forks: dict[int, list[tuple[int, int]]] = {}
        self._others: dict[int, int] = {}
        for event in events:
            if event.pid is None or event.ppid is None:
                continue
            if event.op == "fork":
                self._forks.setdefault(event.pid, []).append((event.time_ns, event.ppid))
            else:
                self._others.setdefault(event.pid, event.ppid)
        for held in self._forks.values():
            held.sort()

    @staticmethod
    def of_session(store: Store, session: str) -> Ancestors:
        """As the record of a session tells it. Raises StoreError."""
        kinds = (Kind.PROCESS, Kind.EXEC)
        return Ancestors(event for kind in kinds for event in query.events(store, session, query.Filter(kind=kind)))

    def of(self, pid: int, time_ns: int) -> frozenset[int]:
        """The process itself and all above it."""
        chain = {pid}
        while (parent := self._parent(pid, time_ns)) is not None and parent not in chain:
            chain.add(parent)
            pid = parent
        return frozenset(chain)

    def comes_from(self, ancestor: int, since_ns: int, pid: int, time_ns: int) -> bool:
        """Whether a process is another one, or one that this has started from a moment on, however far down."""
        while pid != ancestor:
            parent = self._parent(pid, time_ns)
            if parent is None or (parent == ancestor and self._began(pid, time_ns) < since_ns):
                return False
            pid = parent
        return True

    def _began(self, pid: int, time_ns: int) -> int:
        """When it was forked; 0: no record tells."""
        return max((time for time, _parent in self._forks.get(pid, ()) if time <= time_ns), default=0)

    def until(self, pid: int, time_ns: int) -> int:
        """When a process's number is used again for another one, in ns since the epoch; 1 << 63: in no record.

        Args:
            time_ns: some time at which the process lives.
        """
        later = (time for time, _parent in self._forks.get(pid, ()) if time > time_ns)
        return next(later, 1 << 63)

    def _parent(self, pid: int, time_ns: int) -> int | None:
        held = self._forks.get(pid)
        if held is None:
            return self._others.get(pid)
        return held[max(bisect_right(held, (time_ns, 1 << 62)) - 1, 0)][1]
