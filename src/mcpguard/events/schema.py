"""The event store's tables, and events as their rows.

Pure: no connection is opened here. A change of TABLES needs a new VERSION and a step in MIGRATIONS.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from mcpguard.model import plain_json as json
from mcpguard.model.access import Verdict
from mcpguard.model.coverage import Coverage, Strength
from mcpguard.model.event import Event, Kind, McpMessage, Peer
from mcpguard.model.rule import Origin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Row = Sequence[Any]

VERSION = 6
# "mcpg": tells our file from any other SQLite database at that place.
APPLICATION_ID = 0x6D637067

TABLES = """
CREATE TABLE sessions (
  n INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  profile TEXT NOT NULL,
  digest TEXT NOT NULL,
  workspace TEXT NOT NULL,
  command TEXT NOT NULL,
  tier TEXT NOT NULL,
  coverage TEXT NOT NULL,
  started_ns INTEGER NOT NULL,
  ended_ns INTEGER,
  exit_code INTEGER,
  unsaved INTEGER NOT NULL DEFAULT 0,
  supervisor_pid INTEGER NOT NULL,
  supervisor_start INTEGER NOT NULL,
  supervisor_boot TEXT NOT NULL,
  modes TEXT NOT NULL DEFAULT ''
);
CREATE TABLE rules (
  session INTEGER NOT NULL REFERENCES sessions(n),
  n INTEGER NOT NULL,
  profile TEXT NOT NULL,
  file TEXT NOT NULL,
  line INTEGER NOT NULL,
  text TEXT NOT NULL,
  because TEXT NOT NULL,
  PRIMARY KEY (session, n)
) WITHOUT ROWID;
CREATE TABLE events (
  session INTEGER NOT NULL REFERENCES sessions(n),
  seq INTEGER NOT NULL,
  time_ns INTEGER NOT NULL,
  kind TEXT NOT NULL,
  op TEXT NOT NULL,
  verdict TEXT NOT NULL,
  access TEXT,
  path TEXT,
  target TEXT,
  host TEXT,
  address TEXT,
  port INTEGER,
  protocol TEXT,
  pid INTEGER,
  ppid INTEGER,
  exe TEXT,
  comm TEXT,
  argv TEXT,
  rule INTEGER,
  count INTEGER NOT NULL,
  errno TEXT,
  detail TEXT,
  mcp TEXT,
  bytes_sent INTEGER,
  bytes_received INTEGER,
  PRIMARY KEY (session, seq)
) WITHOUT ROWID;
CREATE INDEX events_by_verdict ON events (session, verdict, seq);
CREATE INDEX events_by_kind ON events (session, kind, seq);
"""
# What the database would have to be told of each new store, or it reads all events of a session to find its few refusals: rows,
# rows of a session, and of those with the same kind or verdict. Its own ANALYZE would read everything to say so.
STATISTICS = """
PRAGMA analysis_limit = 1;
ANALYZE;
DELETE FROM sqlite_stat1;
INSERT INTO sqlite_stat1 VALUES
  ('events', 'events', '1000000 20000 1'),
  ('events', 'events_by_kind', '1000000 20000 2000 1'),
  ('events', 'events_by_verdict', '1000000 20000 200 1'),
  ('sessions', NULL, '50');
ANALYZE sqlite_master
"""
# What makes the tables of a version those of the next.
MIGRATIONS = {
    1: "ALTER TABLE events ADD COLUMN mcp TEXT",
    2: "ALTER TABLE sessions ADD COLUMN modes TEXT NOT NULL DEFAULT ''",
    3: "ALTER TABLE events ADD COLUMN bytes_sent INTEGER",
    4: "ALTER TABLE events ADD COLUMN bytes_received INTEGER",
    5: STATISTICS,
}

EVENT_COLUMNS = [
    "session",
    "seq",
    "time_ns",
    "kind",
    "op",
    "verdict",
    "access",
    "path",
    "target",
    "host",
    "address",
    "port",
    "protocol",
    "pid",
    "ppid",
    "exe",
    "comm",
    "argv",
    "rule",
    "count",
    "errno",
    "detail",
    "mcp",
    "bytes_sent",
    "bytes_received",
]
MCP_KEYS = (
    *("server", "transport", "sender", "call", "method", "id", "tool", "arguments", "cut", "classes"),
    *("result_bytes", "error", "error_code", "duration_ns", "client", "peer"),
)
INSERT_EVENT = f"INSERT INTO events ({', '.join(EVENT_COLUMNS)}) VALUES ({', '.join('?' * len(EVENT_COLUMNS))})"
# Rules come with their event: a reader that follows a session needs no copy that could be stale.
SELECT_EVENT = (
    f"SELECT {', '.join('e.' + column for column in EVENT_COLUMNS)}, r.profile, r.file, r.line, r.text "
    "FROM events e LEFT JOIN rules r ON r.session = e.session AND r.n = e.rule"
)


def clean(text: str) -> str:
    """Text that every database and JSON reader takes: bytes that were no UTF-8 become `\\xNN`."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # halves of characters, as JSON can name them
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _clean(text: str | None) -> str | None:
    # Asked six times for each event: most texts are as they should be.
    return text if text is None or text.isascii() else clean(text)


def event_row(event: Event, session: int, seq: int, rule: int | None) -> Row:
    """The values of EVENT_COLUMNS for one event."""
    argv = None if event.argv is None else json.dumps([clean(word) for word in event.argv], ensure_ascii=False)
    return (
        *(session, seq, event.time_ns, event.kind._value_, event.op, event.verdict._value_, event.access),
        *(_clean(event.path), _clean(event.target), _clean(event.host), event.address, event.port, event.protocol),
        *(event.pid, event.ppid, _clean(event.exe), _clean(event.comm), argv, rule, event.count),
        *(event.errno, _clean(event.detail), _mcp_text(event.mcp), event.bytes_sent, event.bytes_received),
    )


def event_of(row: Row, session: str) -> Event:
    """The event of one row of SELECT_EVENT."""
    fields = dict(zip(EVENT_COLUMNS, row, strict=False))
    profile, file, line, text = row[len(EVENT_COLUMNS) :]
    fields["session"] = session
    fields["kind"] = Kind(fields["kind"])
    fields["verdict"] = Verdict(fields["verdict"])
    fields["argv"] = None if fields["argv"] is None else tuple(json.loads(fields["argv"]))
    fields["rule"] = None if fields["rule"] is None else _origin(profile, file, line, text)
    fields["mcp"] = None if fields["mcp"] is None else _mcp_of(json.loads(fields["mcp"]))
    return Event(**fields)


# A few rules are behind many events, of which a screen keeps thousands.
_origin = lru_cache(maxsize=1_024)(Origin)


def _mcp_text(message: McpMessage | None) -> str | None:
    return None if message is None else clean(json.dumps(mcp_fields(message), ensure_ascii=False))


def mcp_fields(message: McpMessage) -> dict[str, Any]:
    """What is known of a message; keys without a value are absent."""
    found = {name: getattr(message, name) for name in MCP_KEYS}
    for end in ("client", "peer"):
        peer = found[end]
        found[end] = peer and {"pid": peer.pid} | ({"exe": clean(peer.exe)} if peer.exe else {})
    found["cut"] = message.cut or None
    return {key: clean(value) if isinstance(value, str) else value for key, value in found.items() if value is not None}


def _mcp_of(fields: dict[str, Any]) -> McpMessage:
    peers: dict[str, Any] = {end: Peer(**fields[end]) for end in ("client", "peer") if end in fields}
    return McpMessage(**(fields | peers))


def coverage_text(coverage: Sequence[Coverage]) -> str:
    """Coverage as the JSON that the sessions table keeps."""
    return json.dumps(
        [
            {"kind": c.kind, "strength": c.strength.value, "by": c.by, "gaps": list(c.gaps), "fix": c.fix}
            for c in coverage
        ],
        ensure_ascii=False,
    )


def coverage_of(text: str) -> tuple[Coverage, ...]:
    """The reverse of `coverage_text`."""
    return tuple(
        Coverage(c["kind"], Strength(c["strength"]), c["by"], tuple(c["gaps"]), c["fix"]) for c in json.loads(text)
    )
