"""Questions to the event store: which events, from when, and the ones still to come.

Reads only. Patterns mean what they mean in a profile, so the same words find what the same words forbid.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from fnmatch import fnmatchcase

from mcpguard.errors import PolicyError, UsageError
from mcpguard.events import missing, schema
from mcpguard.events.sessions import State
from mcpguard.events.store import Store
from mcpguard.model.access import Access, Effect, Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.policy import PathRule
from mcpguard.model.values import dataclass
from mcpguard.policy.automaton import Automaton
from mcpguard.policy.patterns import expand

# Rows are read in portions of this size, so that no reader holds the file for long or fills its memory.
PORTION = 1_000
FOLLOW_EVERY_S = 0.25
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events; None: whatever.

    Attributes:
        path: matches the path or the second path of an event; see `path_filter`.
        host: glob on the host name, or on the address.
        since_ns: nanoseconds since the Unix epoch.
        process: glob on the program's name or path, or a PID.
        text: somewhere in the event, upper and lower case the same.
    """

    verdict: Verdict | None = None
    kind: Kind | None = None
    path: Callable[[str], bool] | None = None
    host: str | None = None
    since_ns: int | None = None
    process: str | None = None
    text: str | None = None

    @property
    def has_globs(self) -> bool:
        """Whether `keeps` has something to judge."""
        return any(part is not None for part in (self.path, self.host, self.process, self.text))

    def keeps(self, event: Event) -> bool:
        """What SQL does not judge: globs."""
        if self.path is not None and not any(self.path(p) for p in (event.path, event.target) if p is not None):
            return False
        if self.host is not None and not _any_matches(self.host, event.host, event.address):
            return False
        if self.process is not None and not _any_matches(self.process, event.comm, event.exe, str(event.pid)):
            return False
        return self.text is None or self.text.lower() in _words(event).lower()


def events(store: Store, session: str, wanted: Filter, *, after: int = 0) -> Iterator[Event]:
    """Events of a session in the order of their numbers, and behind them the losses that nobody could write down.

    Args:
        after: only events with a higher number.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    yield from _stored(store, session, wanted, after)
    yield from unwritten(store, session, wanted, after)


def unwritten(store: Store, session: str, wanted: Filter, after: int = 0) -> Iterator[Event]:
    """Losses that nobody could write down, as far as they are wanted; of a session that runs there are none.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    for event in missing.unwritten(store, store.session(session)):
        same = wanted.verdict in (None, event.verdict) and wanted.kind in (None, event.kind)
        late = wanted.since_ns is None or event.time_ns >= wanted.since_ns
        if same and late and event.seq > after and wanted.keeps(event):
            yield event


def _stored(store: Store, session: str, wanted: Filter, after: int) -> Iterator[Event]:
    number = store.number(session)
    where, values = conditions(wanted)
    while True:
        statement = f"{schema.SELECT_EVENT} WHERE e.session = ? AND e.seq > ?{where} ORDER BY e.seq LIMIT {PORTION}"
        rows = store.read(statement, (number, after, *values))
        for row in rows:
            event = schema.event_of(row, session)
            after = event.seq
            if wanted.keeps(event):
                yield event
        if len(rows) < PORTION:
            return


def follow(
    store: Store, session: str, wanted: Filter, wait: Callable[[float], None], *, after: int = 0
) -> Iterator[Event]:
    """Events of a session and those still to come; ends when the session has ended and all is read.

    Args:
        wait: sleeps for so many seconds.
    """
    number = store.number(session)
    while True:
        # Asked before reading: what is written between the two is found in the next round.
        running = store.session(session).state is State.RUNNING
        last = store.last_seq(number)
        if last > after:
            for event in _stored(store, session, wanted, after):
                # More may have come since `last` was asked.
                last = max(last, event.seq)
                yield event
            after = last
        if not running:
            yield from unwritten(store, session, wanted, after)
            return
        wait(FOLLOW_EVERY_S)


def _any_matches(pattern: str, *names: str | None) -> bool:
    return any(fnmatchcase(name.lower(), pattern.lower()) for name in names if name is not None)


def _words(event: Event) -> str:
    rule = event.rule.text if event.rule else None
    parts = (event.op, event.path, event.target, event.host, event.address, event.comm, event.exe, rule, event.detail)
    message = event.mcp and (event.mcp.server, event.mcp.method, event.mcp.tool, event.mcp.arguments, event.mcp.call)
    return "\n".join(part for part in (*parts, *(event.argv or ()), *(message or ())) if part)


def path_filter(pattern: str, home: str) -> Callable[[str], bool]:
    """A pattern as in a profile (a path is a subtree; `*`, `**`, `?`, `[...]`, `~`); one without a leading `/` or `~`
    matches at any depth.

    Raises:
        UsageError: it is no pattern.
    """
    written = pattern if pattern.startswith(("/", "~", "**")) else f"**/{pattern}"
    try:
        absolute = expand(written, "--path", {"home": home})
        automaton = Automaton.build([PathRule(Effect.ALLOW, Access.READ, absolute, (), 1)])
    except PolicyError as error:
        raise UsageError(error.what, why=error.why, do=error.do, code="log.path") from error

    def matches(path: str) -> bool:
        return path.startswith("/") and bool(automaton.decision(automaton.walk(path)).allowed)

    return matches


def since(text: str, now_ns: int) -> int:
    """`30m`, `1h`, `2d` ago, or an RFC 3339 time, as nanoseconds since the Unix epoch.

    Raises:
        UsageError: it is neither.
    """
    if found := re.fullmatch(r"(\d{1,9})([smhdw])", text):
        return now_ns - int(found[1]) * _UNITS[found[2]] * 1_000_000_000
    try:
        # A time without a zone is the person's own.
        when = datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise UsageError(
            f'"{text}" is no time',
            why="--since takes an age or a time",
            do="write 30m, 1h, 2d or 2026-11-23T05:45:01Z",
            code="log.since",
        ) from None
    return int(when.timestamp()) * 1_000_000_000 + when.microsecond * 1_000


def conditions(wanted: Filter) -> tuple[str, list[object]]:
    """What SQL judges of a filter: more of a WHERE on `events e`, beginning with AND, and its values."""
    where, values = "", list[object]()
    for column, value in (("verdict", wanted.verdict), ("kind", wanted.kind)):
        if value is not None:
            where += f" AND e.{column} = ?"
            values.append(value.value)
    if wanted.since_ns is not None:
        where += " AND e.time_ns >= ?"
        values.append(wanted.since_ns)
    return where, values
