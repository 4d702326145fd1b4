"""Sums over the events of a session, made by the database: a long session is never read into memory to be counted."""

from __future__ import annotations

from collections.abc import Sequence

from mcpguard.events.finding import LISTED, NOT_STOPPED, NOT_THERE, QUIET
from mcpguard.events.schema import SELECT_EVENT, event_of
from mcpguard.events.store import Store
from mcpguard.model.event import Event
from mcpguard.model.values import dataclass

# Conditions on `events e`, for `total` and `groups`.
LOUD = f"(e.detail IS NULL OR e.detail NOT LIKE '{QUIET}%')"
DENIED = f"e.verdict = 'deny' AND {LOUD}"
DENIED_QUIETLY = f"e.verdict = 'deny' AND NOT {LOUD}"
OPENED = "e.kind = 'file' AND e.verdict = 'allow' AND e.op IN ('open', 'create')"
STARTED = "e.kind = 'exec' AND e.verdict = 'allow'"
CONNECTED = "e.kind IN ('net', 'unix') AND e.verdict = 'allow' AND e.op IN ('connect', 'sendmsg')"
APPROVED = "e.kind = 'process' AND e.op = 'approve' AND e.verdict = 'allow'"
CALL_APPROVED = (
    "e.kind = 'mcp' AND e.op = 'request' AND e.verdict = 'allow' AND e.detail LIKE 'allowed % in watch, by %'"
)
CALLS_REFUSED = "e.kind = 'mcp' AND e.op = 'request' AND e.verdict = 'deny'"
COULD_NOT_BE_MADE = f"e.verdict = 'deny' AND e.detail LIKE '{NOT_THERE}%'"
LET_THROUGH = "e.verdict = 'audit'"
NOT_STOPPED_ACTS = f"e.verdict = 'audit' AND e.detail LIKE '{NOT_STOPPED}%'"
WOULD_BE_DENIED = (
    f"e.verdict = 'audit' AND {LOUD} "
    f"AND (e.detail IS NULL OR NOT (e.detail LIKE '{NOT_STOPPED}%' OR e.detail LIKE '{LISTED}%'))"
)
# The events that changed something, removals apart, each with the name that the file has after it: many programs write
# beside a file and rename.
_NEW_NAME = "CASE WHEN e.op IN ('rename', 'link') THEN e.target ELSE e.path END"
_CHANGED = (
    "e.session = ? AND e.kind = 'file' AND e.verdict IN ('allow', 'audit') AND e.access LIKE '%write%' "
    "AND e.op NOT IN ('unlink', 'rmdir')"
)
_BY = "e.op, COALESCE(e.comm, '?'), SUM(e.count) FROM events e"
_CHANGES = (
    f"SELECT {_NEW_NAME} AS name, e.detail, e.session, e.rule FROM events e WHERE {_CHANGED} "
    f"UNION ALL SELECT e.target, e.detail, e.session, e.rule FROM events e WHERE {_CHANGED} AND e.op = 'exchange'"
)
# What an event without an object is about, without the chain of parents behind it.
_ABOUT = (
    "CASE WHEN COALESCE(e.path, e.address, e.host) IS NULL "
    "THEN substr(e.detail, 1, instr(e.detail || '; under', '; under') - 1) END"
)
# Which call an MCP message is, whatever its id: to delete one thing is not to delete another.
_CALL = "CASE WHEN json_valid(e.mcp) THEN json_extract(e.mcp, '$.server', '$.method', '$.tool', '$.arguments') END"


@dataclass(frozen=True, slots=True)
class Written:
    """A path that was changed, removals apart: the acts, the programs, and how often, added up."""

    path: str
    ways: tuple[str, ...]
    programs: tuple[str, ...]
    times: int


@dataclass(frozen=True, slots=True)
class Group:
    """The same act on the same object by the same rule.

    Attributes:
        example: the first of them.
        count: how often.
        because: the profile's own reason for the rule; empty when it gives none.
    """

    example: Event
    count: int
    because: str


def total(store: Store, session: str, condition: str) -> int:
    """How many events meet one of the conditions above, counts added up.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    statement = f"SELECT COALESCE(SUM(e.count), 0) FROM events e WHERE e.session = ? AND {condition}"
    return int(store.read(statement, (store.number(session),))[0][0])


def groups(store: Store, session: str, condition: str, most: int) -> tuple[list[Group], int]:
    """The most frequent groups of events that meet a condition, and how many groups there are.

    The most frequent one of each kind comes before a second one of any kind: a storm of one kind hides no other.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    number = store.number(session)
    found = store.read(
        "SELECT MIN(e.seq), SUM(e.count) AS n, e.kind FROM events e "
        f"WHERE e.session = ? AND {condition} "
        f"GROUP BY e.kind, e.op, e.access, e.path, e.target, e.host, e.address, e.port, e.rule, {_ABOUT}, {_CALL} "
        "ORDER BY n DESC, MIN(e.seq)",
        (number,),
    )
    firsts = list({row[2]: row for row in reversed(found)}.values())[::-1]
    others = [row for row in found if row not in firsts]
    return [_group(store, session, number, row[0], row[1]) for row in [*firsts, *others][:most]], len(found)


def written(store: Store, session: str) -> list[Written]:
    """The paths that the session changed and did not only remove, sorted; of a renamed file, the new name.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    number = store.number(session)
    listed = f"(e.detail IS NULL OR e.detail NOT LIKE '{LISTED}%')"
    # Twice as fast as one look with both ends of an exchange, of which there are few.
    rows = store.read(f"SELECT {_NEW_NAME}, {_BY} WHERE {_CHANGED} AND {listed} GROUP BY 1, 2, 3", (number,))
    rows += store.read(
        f"SELECT e.target, {_BY} WHERE {_CHANGED} AND e.op = 'exchange' AND {listed} GROUP BY 1, 2, 3", (number,)
    )
    found: dict[str, tuple[tuple[str, ...], tuple[str, ...], int]] = {}
    for path, way, program, times in rows:
        if path in found:
            ways, programs, before = found[path]
            found[path] = tuple({*ways, way}), tuple({*programs, program}), before + times
        elif path is not None:
            found[path] = (way,), (program,), times
    return [
        Written(path, tuple(sorted(ways)), tuple(sorted(programs)), times)
        for path, (ways, programs, times) in sorted(found.items())
    ]


def renamed(store: Store, session: str) -> list[tuple[str, str]]:
    """(old name, new name) of everything that was renamed, in order; of an exchange both ways.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    rows = store.read(
        "SELECT e.path, e.target, e.op FROM events e WHERE e.session = ? AND e.kind = 'file' "
        "AND e.op IN ('rename', 'exchange') AND e.verdict IN ('allow', 'audit') "
        "AND e.path IS NOT NULL AND e.target IS NOT NULL ORDER BY e.seq",
        (store.number(session),),
    )
    return [
        pair for path, target, op in rows for pair in ((path, target), (target, path))[: 1 if op == "rename" else 2]
    ]


def made_and_moved(store: Store, session: str) -> list[tuple[str, str, str | None]]:
    """(act, path, new name) of what made, moved or removed a name below the folders `.cache` and `.npm`, in order.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    near = (
        "(e.path LIKE '%/.cache/%' OR e.path LIKE '%/.npm/%' OR e.target LIKE '%/.cache/%' OR e.target LIKE '%/.npm/%')"
    )
    rows = store.read(
        "SELECT e.op, e.path, e.target FROM events e WHERE e.session = ? AND e.kind = 'file' "
        "AND e.op IN ('create', 'mkdir', 'mknod', 'symlink', 'link', 'rename', 'exchange', 'unlink', 'rmdir') "
        f"AND e.verdict IN ('allow', 'audit') AND e.path IS NOT NULL AND {near} ORDER BY e.seq",
        (store.number(session),),
    )
    return [(op, path, target) for op, path, target in rows]


def not_stopped(store: Store, session: str) -> list[tuple[str, str]]:
    """Paths that were changed against the policy, because this host could not stop it, each with the reason of the rule."""
    number = store.number(session)
    rows = store.read(
        "SELECT c.name, MAX(COALESCE(NULLIF(r.because, ''), r.text, 'against the policy')) "
        f"FROM ({_CHANGES}) c LEFT JOIN rules r ON r.session = c.session AND r.n = c.rule "
        f"WHERE c.name IS NOT NULL AND c.detail LIKE '{NOT_STOPPED}%' GROUP BY c.name ORDER BY c.name",
        (number, number),
    )
    return [(path, why) for path, why in rows]


def wrote(store: Store, session: str, names: Sequence[str]) -> bool:
    """Whether the session changed, made or removed any of these paths; a `*` at the end stands for everything below.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    met = " OR ".join("substr({0}, 1, ?) = ?" if name.endswith("*") else "{0} = ?" for name in names)
    values = [value for name in names for value in ((len(name) - 1, name[:-1]) if name.endswith("*") else (name,))]
    rows = store.read(
        "SELECT 1 FROM events e WHERE e.session = ? AND e.kind = 'file' AND e.verdict IN ('allow', 'audit') "
        f"AND e.access LIKE '%write%' AND ({met.format('e.path')} OR {met.format('e.target')}) LIMIT 1",
        (store.number(session), *values, *values),
    )
    return bool(rows)


def has_rules_of(store: Store, session: str, profile: str) -> bool:
    """Whether the session's policy holds what a built-in profile keeps readonly or denies."""
    rows = store.read(
        "SELECT 1 FROM rules WHERE session = ? AND profile = ? AND file LIKE 'builtin:%' AND text LIKE 'readonly %' LIMIT 1",
        (store.number(session), profile),
    )
    return bool(rows)


def losses(store: Store, session: str) -> list[tuple[str, int]]:
    """What is missing from the record -> how many, by name."""
    rows = store.read(
        "SELECT detail, SUM(count) FROM events WHERE session = ? AND kind = 'loss' GROUP BY detail ORDER BY detail",
        (store.number(session),),
    )
    return [(row[0] or "", int(row[1])) for row in rows]


def denied_by_session(store: Store) -> dict[str, int]:
    """Session id -> denials that are worth a look; sessions without any are absent."""
    # Session by session, as the index has it; all events at once would be read one by one.
    denied = f"(SELECT SUM(e.count) FROM events e WHERE e.session = s.n AND {DENIED})"
    rows = store.read(f"SELECT s.id, {denied} FROM sessions s")
    return {row[0]: int(row[1]) for row in rows if row[1] is not None}


def _group(store: Store, session: str, number: int, seq: int, count: int) -> Group:
    row = store.read(f"{SELECT_EVENT} WHERE e.session = ? AND e.seq = ?", (number, seq))[0]
    because = store.read(
        "SELECT r.because FROM rules r JOIN events e ON e.session = r.session AND e.rule = r.n "
        "WHERE e.session = ? AND e.seq = ?",
        (number, seq),
    )
    return Group(event_of(row, session), int(count), because[0][0] if because else "")
