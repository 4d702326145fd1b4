"""Equal events summed up within bounds, so that a storm of them costs one row each interval and little memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from mcpguard.events.habits import EVERY_PROCESS, MAY_SORT, SORTING_PORTS, SORTS, SWEEP, looks_at_all_processes
from mcpguard.model.event import Event, Kind
from mcpguard.model.values import dataclass, field, replace

# (process, address) pairs whose TCP ports are remembered.
MAX_PEERS = 4_096
_LOOPBACK = ("127.0.0.1", "::1")


class Sums:
    """Events that are written once per interval, with their count."""

    def __init__(self) -> None:
        self._events: dict[Hashable, tuple[Event, int]] = {}

    def __len__(self) -> int:
        return len(self._events)

    def add(self, key: Hashable, event: Event) -> None:
        first, count = self._events.get(key, (event, 0))
        self._events[key] = (first, count + event.count)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._events

    def take(self, keys: Iterable[Hashable] | None = None) -> list[Event]:
        """The sums of these keys (None: all, in the order of their first sight); they begin again."""
        chosen = list(self._events) if keys is None else [key for key in keys if key in self._events]
        taken = map(self._events.pop, chosen)
        return [event if event.count == count else replace(event, count=count) for event, count in taken]


class Repeats:
    """Events whose first one is written at once, and equal ones within an interval as a sum at its end."""

    def __init__(self, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self._since: dict[Hashable, int] = {}
        self._new = Sums()
        self._again = Sums()

    def __len__(self) -> int:
        return len(self._since)

    def add(self, key: Hashable, event: Event, now_ns: int) -> None:
        fresh = key not in self._since
        if fresh:
            self._since[key] = now_ns
        # The first of this interval has not been taken yet when its key is still among the new ones.
        (self._new if fresh or key in self._new else self._again).add(key, event)

    def take_new(self) -> list[Event]:
        """First ones since the last call, with the equal ones that came along."""
        return self._new.take()

    def take_due(self, now_ns: int, *, everything: bool = False) -> list[Event]:
        """Sums whose interval is over; their keys count as first ones again."""
        due = [key for key, since in self._since.items() if everything or now_ns - since >= self._interval_ns]
        for key in due:
            del self._since[key]
        return self._again.take(due)


class Quiet:
    """Ordinary habits, one event per process and kind of act: written when the process ends or the interval is over.

    Looks at the environment of other processes are a habit of `ps` and the like. Those of another program come out as what
    they are: one denial each, or one for all when there are many. So does a refused datagram socket whose process does not
    connect to the same address over TCP, and does not listen on that port of this host.
    """

    def __init__(self, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self._held: dict[tuple[Hashable, ...], _Held] = {}
        self._peers: dict[tuple[int | None, str | None], set[int | None]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def note(self, event: Event) -> None:
        """Remember where a process connects to over TCP or listens, allowed or not: it may have sorted addresses for that."""
        if event.kind is not Kind.NET or event.protocol != "tcp" or event.op not in ("connect", "bind"):
            return
        # A server sorts the addresses that it could listen on; a socket to a wildcard is one to loopback.
        for address in (event.address,) if event.op == "connect" else _LOOPBACK:
            self._peers.setdefault((event.pid, address), set()).add(event.port)
        while len(self._peers) > MAX_PEERS:
            del self._peers[next(iter(self._peers))]

    def add(self, event: Event, now_ns: int) -> None:
        key = (event.pid, event.kind, event.op, event.detail, event.address, event.port)
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = _Held(event, now_ns)
        else:
            held.event = replace(
                held.event, count=held.event.count + event.count, path=_common(held.event.path, event.path)
            )
        if len(held.each) < SWEEP or event.path in held.each:
            first, count = held.each.get(event.path, (event, 0))
            held.each[event.path] = (first, count + event.count)

    def take_process(self, pid: int) -> list[Event]:
        """What one process did; it has ended."""
        return self._take([key for key in self._held if key[0] == pid])

    def take_due(self, now_ns: int, *, everything: bool = False) -> list[Event]:
        """What has been held for the interval."""
        return self._take(
            [key for key, held in self._held.items() if everything or now_ns - held.since_ns >= self._interval_ns]
        )

    def _take(self, keys: list[tuple[Hashable, ...]]) -> list[Event]:
        return [event for held in map(self._held.pop, keys) for event in held.events(self._sorted_for)]

    def _sorted_for(self, event: Event) -> bool:
        ports = self._peers.get((event.pid, event.address), set())
        return bool(ports) if (event.port or 0) in SORTING_PORTS else event.port in ports


@dataclass(slots=True)
class _Held:
    """A habit so far: the sum, and what it consists of as long as that is little."""

    event: Event
    since_ns: int
    each: dict[str | None, tuple[Event, int]] = field(default_factory=dict)

    def events(self, sorted_for: Callable[[Event], bool]) -> list[Event]:
        detail = self.event.detail or ""
        if detail.startswith(MAY_SORT):
            rest = detail.removeprefix(MAY_SORT)
            known = SORTS + rest if sorted_for(self.event) else rest.removeprefix("; ") or None
            return [replace(self.event, detail=known)]
        if not detail.startswith(EVERY_PROCESS) or looks_at_all_processes(self.event.exe):
            return [self.event]
        under = detail.removeprefix(EVERY_PROCESS).removeprefix("; ") or None
        if len(self.each) >= SWEEP:
            return [replace(self.event, detail=under)]
        return [replace(event, count=count, detail=under) for event, count in self.each.values()]


def _common(first: str | None, second: str | None) -> str | None:
    """`/proc/*/environ` for /proc/12/environ and /proc/13/environ."""
    if first is None or second is None or first == second:
        return first
    left, right = first.split("/"), second.split("/")
    if len(left) != len(right):
        return first
    return "/".join(a if a == b else "*" for a, b in zip(left, right, strict=True))
