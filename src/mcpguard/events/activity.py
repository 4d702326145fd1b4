"""What a session did, summed up by the database for a range of event numbers: files, destinations, programs, rules.

Each function reads the events above `after` up to `last`, so that a screen can add what is new to what it has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from mcpguard.events.schema import SELECT_EVENT, event_of
from mcpguard.events.store import Store
from mcpguard.events.totals import DENIED_QUIETLY, LOUD
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.rule import Origin

# The act of an event that tells of bytes, and those that begin what it tells of.
TRAFFIC = "traffic"
_BEGINS = ("connect", "sendmsg")
# More paths than a person looks at; the rest is counted.
MAX_PATHS = 50_000
# Of one span; a person answers a few.
MAX_UNCOVERED = 1_000
_RANGE = "e.session = ? AND e.seq > ? AND e.seq <= ?"


class Span(NamedTuple):
    """Which events: those of a session (`Store.number`) with numbers above `after` up to `last`."""

    number: int
    after: int
    last: int


class Touched(NamedTuple):
    """A path and how often it was opened or changed; `access` as in an event."""

    path: str
    access: str
    verdict: Verdict
    times: int


class Reached(NamedTuple):
    """A destination, an own address, or a unix socket, and how often; bytes where they are known (see `with_bytes`)."""

    kind: Kind
    op: str
    host: str
    address: str
    port: int
    protocol: str
    verdict: Verdict
    times: int
    last_ns: int
    bytes_sent: int | None = None
    bytes_received: int | None = None


class Started(NamedTuple):
    """A program, how often it was started, and the words of the last time."""

    path: str
    verdict: Verdict
    times: int
    argv: tuple[str, ...]
    pid: int
    last_ns: int


class Spoken(NamedTuple):
    """A method of an MCP server, of `tools/call` and the like one tool, and how often it was asked for.

    `tool` is empty where there is none; `sender` asked: `client`, or `server`. `failed` counts answers that say something went
    wrong, `took_ns` adds up the times of all answers.
    """

    server: str
    transport: str
    sender: str
    method: str
    tool: str
    times: int
    denied: int
    answered: int
    failed: int
    took_ns: int
    last_ns: int


class RuleUse(NamedTuple):
    """A rule of the session and how often it decided; `rule` is its number."""

    rule: int
    verdict: Verdict
    times: int


class Uncovered(NamedTuple):
    """The newest of the same refusals that no rule covered, and how many there were."""

    event: Event
    times: int


class Sum(NamedTuple):
    """Events of one kind and verdict, counts added up; `routine`: how many were refusals that programs do without."""

    kind: Kind
    verdict: Verdict
    times: int
    routine: int


def sums(store: Store, span: Span) -> list[Sum]:
    """How much happened. Raises StoreError, as all of these."""
    rows = store.read(
        f"SELECT e.kind, e.verdict, SUM(e.count), SUM(CASE WHEN {DENIED_QUIETLY} THEN e.count ELSE 0 END) FROM events e "
        f"WHERE {_RANGE} GROUP BY e.kind, e.verdict",
        span,
    )
    return [Sum(Kind(kind), Verdict(verdict), int(times), int(routine)) for kind, verdict, times, routine in rows]


def touched(store: Store, span: Span) -> list[Touched]:
    """Paths, refused ones first; at most MAX_PATHS rows."""
    rows = store.read(
        "SELECT e.path, COALESCE(e.access, ''), e.verdict, SUM(e.count) FROM events e "
        f"WHERE {_RANGE} AND e.kind IN ('file', 'exec') AND e.path IS NOT NULL "
        f"GROUP BY e.path, e.access, e.verdict ORDER BY e.verdict = 'allow' LIMIT {MAX_PATHS}",
        span,
    )
    return [Touched(path, access, Verdict(verdict), int(count)) for path, access, verdict, count in rows]


def reached(store: Store, span: Span) -> list[Reached]:
    """Destinations, own addresses and unix sockets."""
    rows = store.read(
        "SELECT e.kind, e.op, COALESCE(e.host, ''), COALESCE(e.address, e.path, ''), COALESCE(e.port, 0), "
        "COALESCE(e.protocol, ''), e.verdict, SUM(e.count), MAX(e.time_ns), SUM(e.bytes_sent), SUM(e.bytes_received) "
        "FROM events e "
        f"WHERE {_RANGE} AND e.kind IN ('net', 'unix', 'dns') GROUP BY 1, 2, 3, 4, 5, 6, 7 LIMIT {MAX_PATHS}",
        span,
    )
    return [
        Reached(Kind(kind), op, host, address, port, protocol, Verdict(verdict), int(times), last, sent, received)
        for kind, op, host, address, port, protocol, verdict, times, last, sent, received in rows
    ]


def with_bytes(found: Iterable[Reached]) -> list[Reached]:
    """With bytes on the line of the destination that they belong to, and not on a line of their own.

    The kernel counts by address. Where several names led to one, bytes stand with the name that they were recorded by; where
    nothing else tells of it, as of those who came to us, they keep their own line.
    """
    lines: list[Reached] = []
    traffic: list[Reached] = []
    for one in found:
        (traffic if one.op == TRAFFIC else lines).append(one)
    by_place: dict[tuple[str, int, str], list[int]] = {}
    for number, line in enumerate(lines):
        if line.kind is Kind.NET and line.op in _BEGINS and line.verdict is not Verdict.DENY:
            by_place.setdefault(_place(line), []).append(number)
    for one in traffic:
        numbers = by_place.get(_place(one))
        if not numbers:
            lines.append(one)
            continue
        at = next((number for number in numbers if lines[number].host == one.host), numbers[0])
        line = lines[at]
        lines[at] = line._replace(
            bytes_sent=(line.bytes_sent or 0) + (one.bytes_sent or 0),
            bytes_received=(line.bytes_received or 0) + (one.bytes_received or 0),
        )
    return lines


def _place(one: Reached) -> tuple[str, int, str]:
    # What MPTCP sends are packets of TCP.
    return one.address, one.port, "tcp" if one.protocol == "mptcp" else one.protocol


def started(store: Store, span: Span) -> list[Started]:
    """Programs; SQLite takes the other columns of a group from the row of its MAX."""
    rows = store.read(
        "SELECT COALESCE(e.path, '?'), e.verdict, SUM(e.count), e.argv, COALESCE(e.pid, 0), MAX(e.time_ns) FROM events e "
        f"WHERE {_RANGE} AND e.kind = 'exec' GROUP BY e.path, e.verdict LIMIT {MAX_PATHS}",
        span,
    )
    return [
        Started(path, Verdict(verdict), int(count), tuple(json.loads(argv or "[]")), pid, last)
        for path, verdict, count, argv, pid, last in rows
    ]


def rule_uses(store: Store, span: Span) -> list[RuleUse]:
    """How often each rule decided."""
    rows = store.read(
        f"SELECT e.rule, e.verdict, SUM(e.count) FROM events e WHERE {_RANGE} AND e.rule IS NOT NULL GROUP BY 1, 2",
        span,
    )
    return [RuleUse(int(rule), Verdict(verdict), int(count)) for rule, verdict, count in rows]


def tree(store: Store, span: Span, session: str) -> list[Event]:
    """The events that the process tree is made from: starts, forks, ends and refusals, in order."""
    rows = store.read(
        f"{SELECT_EVENT} WHERE {_RANGE} AND (e.kind IN ('process', 'exec') OR e.verdict = 'deny') ORDER BY e.seq", span
    )
    return [event_of(row, session) for row in rows]


def spoken(store: Store, span: Span) -> list[Spoken]:
    """What was asked of MCP servers, and what came of it, in the order of first times. Raises StoreError, as all of these."""
    part = "json_extract(e.mcp, '$.{}')".format
    # An answer counts for whoever asked.
    asker = f"CASE WHEN e.op = 'response' THEN IIF({part('sender')} = 'client', 'server', 'client') ELSE {part('sender')} END"
    failed = f"e.op = 'response' AND {part('error')} IS NOT NULL"
    rows = store.read(
        f"SELECT {part('server')}, MIN({part('transport')}), {asker}, {part('method')}, COALESCE({part('tool')}, ''), "
        "SUM(e.op != 'response'), SUM(e.op != 'response' AND e.verdict = 'deny'), SUM(e.op = 'response'), "
        f"SUM({failed}), SUM(COALESCE({part('duration_ns')}, 0)), MAX(e.time_ns) FROM events e "
        f"WHERE {_RANGE} AND e.kind = 'mcp' AND {part('method')} IS NOT NULL GROUP BY 1, 3, 4, 5 ORDER BY MIN(e.seq)",
        span,
    )
    return [Spoken(*row) for row in rows]


def uncovered(store: Store, span: Span, session: str) -> list[Uncovered]:
    """What was refused because no rule covers it, each object once, in the order of first times; at most MAX_UNCOVERED."""
    rows = store.read(
        "SELECT MAX(e.seq), SUM(e.count) FROM events e JOIN rules r ON r.session = e.session AND r.n = e.rule "
        f"WHERE {_RANGE} AND e.verdict = 'deny' AND r.file = 'default' AND {LOUD} "
        "GROUP BY e.kind, e.op, e.access, e.path, e.target, e.host, e.address, e.port, e.protocol, "
        # A question for an address is one; that for another record of the name, which may be the newest, is none.
        "e.kind = 'dns' AND (e.detail || ';' LIKE 'A;%' OR e.detail || ';' LIKE 'AAAA;%') "
        f"ORDER BY MIN(e.seq) LIMIT {MAX_UNCOVERED}",
        span,
    )
    found = []
    for seq, times in rows:
        (row,) = store.read(f"{SELECT_EVENT} WHERE e.session = ? AND e.seq = ?", (span.number, seq))
        found.append(Uncovered(event_of(row, session), int(times)))
    return found


def rules(store: Store, number: int) -> dict[int, tuple[Origin, str]]:
    """Every rule of the session: number -> (where it stands, because)."""
    rows = store.read("SELECT n, profile, file, line, text, because FROM rules WHERE session = ? ORDER BY n", (number,))
    return {n: (Origin(profile, file, line, text), because) for n, profile, file, line, text, because in rows}
