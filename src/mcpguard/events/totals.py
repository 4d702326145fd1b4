"""Sums over the events of a session, made by the database: a long session is never read into memory to be counted."""

from __future__ import annotations

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
COULD_NOT_BE_MADE = f"e.verdict = 'deny' AND e.detail LIKE '{NOT_THERE}%'"
LET_THROUGH = "e.verdict = 'audit'"
NOT_STOPPED_ACTS = f"e.verdict = 'audit' AND e.detail LIKE '{NOT_STOPPED}%'"
WOULD_BE_DENIED = (
    f"e.verdict = 'audit' AND (e.detail IS NULL OR NOT (e.detail LIKE '{NOT_STOPPED}%' OR e.detail LIKE '{LISTED}%'))"
)
# The name that a file has after an act: many programs write beside it and rename.
_WRITTEN = "CASE WHEN e.op = 'rename' THEN e.target ELSE e.path END"


def _written(*globs: str) -> str:
    names = " OR ".join(f"{_WRITTEN} GLOB '{glob}'" for glob in globs)
    return f"e.kind = 'file' AND e.verdict = 'allow' AND e.access LIKE '%write%' AND ({names})"


NEW_REPOSITORIES = _written("*/.git/config", "*/.git/config.lock", "*/.git/hooks/*")
# What git's hooks, editors, agents and every start of an environment's Python obey although nobody asks them to.
OBEYED_UNASKED = _written(
    *("*/.pre-commit-config.yaml", "*/lefthook.y*ml", "*/.lefthook.y*ml"),
    *("*/.vscode/*", "*/.idea/*", "*/.mcp.json", "*/.claude/settings*.json"),
    *("*/site-packages/*.pth", "*/site-packages/*customize.py", "*/bin/activate*"),
)
NEW_ENVIRONMENTS = _written("*/pyvenv.cfg")
# What an event without an object is about, without the chain of parents behind it.
_ABOUT = (
    "CASE WHEN COALESCE(e.path, e.address) IS NULL THEN substr(e.detail, 1, instr(e.detail || '; under', '; under') - 1) "
    "END"
)


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
        f"GROUP BY e.kind, e.op, e.access, e.path, e.target, e.address, e.port, e.rule, {_ABOUT} "
        "ORDER BY n DESC, MIN(e.seq)",
        (number,),
    )
    firsts = list({row[2]: row for row in reversed(found)}.values())[::-1]
    others = [row for row in found if row not in firsts]
    return [_group(store, session, number, row[0], row[1]) for row in [*firsts, *others][:most]], len(found)


def paths(store: Store, session: str, condition: str) -> list[str]:
    """The different paths that the events which meet a condition are about, sorted; of a renamed file, the new one.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    statement = f"SELECT DISTINCT {_WRITTEN} AS name FROM events e WHERE e.session = ? AND {condition} ORDER BY name"
    return [row[0] for row in store.read(statement, (store.number(session),))]


def losses(store: Store, session: str) -> list[tuple[str, int]]:
    """What is missing from the record -> how many, by name."""
    rows = store.read(
        "SELECT detail, SUM(count) FROM events WHERE session = ? AND kind = 'loss' GROUP BY detail ORDER BY detail",
        (store.number(session),),
    )
    return [(row[0] or "", int(row[1])) for row in rows]


def denied_by_session(store: Store) -> dict[str, int]:
    """Session id -> denials that are worth a look; sessions without any are absent."""
    rows = store.read(
        f"SELECT s.id, SUM(e.count) FROM events e JOIN sessions s ON s.n = e.session WHERE {DENIED} GROUP BY s.id"
    )
    return {row[0]: int(row[1]) for row in rows}


def _group(store: Store, session: str, number: int, seq: int, count: int) -> Group:
    row = store.read(f"{SELECT_EVENT} WHERE e.session = ? AND e.seq = ?", (number, seq))[0]
    because = store.read(
        "SELECT r.because FROM rules r JOIN events e ON e.session = r.session AND e.rule = r.n "
        "WHERE e.session = ? AND e.seq = ?",
        (number, seq),
    )
    return Group(event_of(row, session), int(count), because[0][0] if because else "")
