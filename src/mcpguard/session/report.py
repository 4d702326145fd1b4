"""What a session did, for whoever was away: changes, programs, destinations, refusals, and what could run later.

Reads the record as the user; decides nothing. The text, JSON and page of `mcpguard report` are made from this.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple, TypeVar

from mcpguard.events import activity, totals
from mcpguard.events.activity import Reached, Span, Spoken, Started
from mcpguard.events.effects import calls
from mcpguard.events.sessions import Session
from mcpguard.events.store import Store
from mcpguard.events.totals import Group
from mcpguard.model.access import Verdict
from mcpguard.model.paths import is_below
from mcpguard.model.values import dataclass, replace
from mcpguard.session.approvals import Approval, approvals
from mcpguard.session.git_head import POINTERS, committed, repository_of
from mcpguard.session.process_tree import ProcessTable
from mcpguard.session.run_later import PACKAGES, Later, run_later
from mcpguard.session.run_later_now import now, scripts_since
from mcpguard.session.summary import Summary, summarise

Row = TypeVar("Row")
MOST = 500
_MOST_READ = 500_000
# Columns of the timeline.
SLICES = 120
# An open for writing may change nothing, but a person wants to know of it.
_WORDS = {
    "open": "written",
    "create": "created",
    "truncate": "written",
    "unlink": "removed",
    "rmdir": "removed",
    "rename": "renamed away",
    "exchange": "exchanged",
    "mkdir": "created",
    "mknod": "created",
    "symlink": "created",
    "link": "created",
}


@dataclass(frozen=True, slots=True)
class Change:
    """A path that was changed: in which ways, and by which programs."""

    path: str
    ways: tuple[str, ...]
    programs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """A piece of the session's time: events allowed and refused in it, counts added up."""

    began_ns: int
    allowed: int
    denied: int


class Unlike(NamedTuple):
    """A call of an MCP tool that did something else than it said."""

    call: str
    server: str
    tool: str
    words: str


@dataclass(frozen=True, slots=True)
class Report:
    """One session. Lists hold at most MOST rows; `left_out` says how many more there were, by list."""

    session: Session
    summary: Summary
    changes: tuple[Change, ...]
    programs: tuple[Started, ...]
    destinations: tuple[Reached, ...]
    denials: tuple[Group, ...]
    would_be_denied: tuple[Group, ...]
    not_stopped: tuple[Group, ...]
    timeline: tuple[Slice, ...]
    processes: ProcessTable
    later: tuple[Later, ...]
    left_out: dict[str, int]
    approvals: tuple[Approval, ...] = ()
    spoken: tuple[Spoken, ...] = ()
    mismatches: tuple[Unlike, ...] = ()

    @property
    def outside_workspace(self) -> tuple[Change, ...]:
        """Changes that are not in the project."""
        return tuple(change for change in self.changes if not is_below(change.path, self.session.workspace))


def report(store: Store, session: str) -> Report:
    """Read a session's record.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    found = store.session(session)
    number = store.number(session)
    span = Span(number, 0, store.last_seq(number))
    left_out: dict[str, int] = {}
    table = ProcessTable()
    table.take(activity.tree(store, span, session))
    programs = sorted(activity.started(store, span), key=lambda one: (one.verdict is Verdict.ALLOW, -one.times))
    reached = sorted(
        activity.with_bytes(activity.reached(store, span)), key=lambda one: (one.verdict is Verdict.ALLOW, -one.times)
    )
    return Report(
        session=found,
        summary=summarise(store, session),
        changes=_bounded("changes", _changes(store, span), left_out),
        programs=_bounded("programs", programs, left_out),
        destinations=_bounded("destinations", reached, left_out),
        denials=_groups("denials", store, session, totals.DENIED, left_out),
        would_be_denied=_groups("would_be_denied", store, session, totals.WOULD_BE_DENIED, left_out),
        not_stopped=_groups("not_stopped", store, session, totals.NOT_STOPPED_ACTS, left_out),
        timeline=_timeline(store, span),
        processes=table,
        later=tuple(_looked_at(store, session, one) for one in _bounded("later", run_later(store, session), left_out)),
        left_out=left_out,
        spoken=_bounded("mcp", activity.spoken(store, span), left_out),
        mismatches=_bounded("mismatches", _mismatches(store, session, span), left_out),
        approvals=_bounded("approvals", approvals(store, session, MOST * 2), left_out),
    )


def _looked_at(store: Store, session: str, one: Later) -> Later:
    """With what is in it now; of a package's scripts, those that the last commit has not, when the session made no commit."""
    if one.kind != PACKAGES.kind or (repository := repository_of(one.path)) is None:
        return replace(one, now=now(one))
    folders = [f"{repository}/.git", repository, *map(str, Path(repository).parents)]
    if totals.wrote(store, session, [*folders, *(f"{repository}/.git/{name}" for name in POINTERS)]):
        return replace(one, now=now(one))
    return replace(one, now=scripts_since(one.path, committed(one.path, repository)))


def _bounded(name: str, rows: list[Row], left_out: dict[str, int]) -> tuple[Row, ...]:
    if len(rows) > MOST:
        left_out[name] = len(rows) - MOST
    return tuple(rows[:MOST])


def _groups(name: str, store: Store, session: str, condition: str, left_out: dict[str, int]) -> tuple[Group, ...]:
    found, kinds = totals.groups(store, session, condition, MOST)
    if kinds > len(found):
        left_out[name] = kinds - len(found)
    return tuple(found)


def _mismatches(store: Store, session: str, span: Span) -> list[Unlike]:
    """Each once for a call. A record that holds very much is not gone through for it."""
    if span.last - span.after > _MOST_READ:
        return []
    found: dict[Unlike, None] = {}
    for call in calls(store, session):
        if (message := call.request.mcp) is None:
            continue
        for one in call.mismatches:
            found[Unlike(call.id, message.server or "", message.tool or "", one.words)] = None
    return [*found]


def _changes(store: Store, span: Span) -> list[Change]:
    """By path. Where a file came to be by a rename, that is said of its new name."""
    rows = store.read(
        "SELECT e.path, e.target, e.op, COALESCE(e.comm, '?') FROM events e "
        "WHERE e.session = ? AND e.seq > ? AND e.seq <= ? AND e.kind = 'file' AND e.verdict IN ('allow', 'audit') "
        "AND e.access LIKE '%write%' AND e.path IS NOT NULL GROUP BY 1, 2, 3, 4 ORDER BY MIN(e.seq)",
        span,
    )
    ways: dict[str, Counter[str]] = {}
    programs: dict[str, Counter[str]] = {}
    for path, target, op, program in rows:
        for place, word in ((path, _WORDS.get(op, "attributes")), (target, "renamed to")):
            if place is None or place.startswith("/dev/"):
                continue
            # Of a repository's own files a person wants to know only that there were some.
            place, inside, _ = place.partition("/.git/")
            place, word = (f"{place}/.git", "inside") if inside else (place, word)
            ways.setdefault(place, Counter())[word] += 1
            programs.setdefault(place, Counter())[program] += 1
    return [Change(path, tuple(sorted(ways[path])), tuple(sorted(programs[path]))) for path in sorted(ways)]


def _timeline(store: Store, span: Span) -> tuple[Slice, ...]:
    """The time from the first to the last event in equal pieces."""
    ((first, last),) = store.read(
        "SELECT MIN(e.time_ns), MAX(e.time_ns) FROM events e WHERE e.session = ? AND e.seq > ? AND e.seq <= ?", span
    )
    if first is None:
        return ()
    size = max(1, (last - first) // SLICES + 1)
    rows = store.read(
        f"SELECT (e.time_ns - {first}) / {size}, e.verdict = 'allow', SUM(e.count) FROM events e "
        "WHERE e.session = ? AND e.seq > ? AND e.seq <= ? GROUP BY 1, 2",
        span,
    )
    counts: dict[int, list[int]] = {}
    for piece, allowed, count in rows:
        counts.setdefault(int(piece), [0, 0])[0 if allowed else 1] += int(count)
    pieces = range((last - first) // size + 1)
    return tuple(Slice(first + piece * size, *counts.get(piece, (0, 0))) for piece in pieces)
