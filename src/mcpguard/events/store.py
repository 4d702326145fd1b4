"""The event store: one SQLite file per user, written by `run`, read by `log`, `watch` and `sessions` at the same time.

Holds sessions, their rules and their events. A broken file is moved aside and named in `Store.note`, never deleted; a
file of a newer mcpguard is refused. Every failure is a StoreError; who writes decides what a lost event means.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from mcpguard.errors import StoreError
from mcpguard.events import schema
from mcpguard.events.database import connect, default_path, sqlite3, store_error
from mcpguard.events.ids import new_id
from mcpguard.events.sessions import Session, Supervisor
from mcpguard.model import plain_json as json
from mcpguard.model.coverage import Coverage
from mcpguard.model.event import Event
from mcpguard.model.policy import Policy
from mcpguard.model.rule import Origin

_SESSION_COLUMNS = (
    "id, profile, digest, workspace, command, tier, coverage, started_ns, supervisor_pid, supervisor_start, "
    "supervisor_boot, ended_ns, exit_code, unsaved, modes"
)
# Rows in one transaction; others wait for it.
_FORGOTTEN_AT_ONCE = 5_000
_PAGES_AT_ONCE = 5_000
_LAST = "SELECT n, (SELECT COALESCE(MAX(seq), 0) FROM events WHERE session = n) FROM sessions WHERE id = ?"
_INSERT_RULE = "INSERT INTO rules VALUES (?, ?, ?, ?, ?, ?, ?)"


class Store:
    """An open event store. May be used from several threads; one statement runs at a time.

    Attributes:
        path: the database file.
        note: what a person must be told about the opening, such as a broken file that was moved aside; None: nothing.
    """

    def __init__(self, path: str, connection: sqlite3.Connection, note: str | None) -> None:
        self.path = path
        self.note = note
        self._connection = connection
        self._lock = threading.RLock()
        self._rules: dict[str, dict[Origin, int]] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None, *, create: bool = True) -> Store:
        """Open the store for reading and writing.

        Args:
            path: the database file; None: `default_path()`.
            create: make it when it is missing.

        Raises:
            StoreError: missing and `create` is False (`store.empty`), written by a newer mcpguard (`store.newer`),
                somebody else's (`store.not-ours`), or it cannot be opened (`store.unusable`).
        """
        path = os.fspath(path) if path else default_path()
        if not create and not os.path.exists(path):
            raise StoreError(
                "nothing is on record yet",
                why=f"there is no event store at {path}",
                do="run an agent first: mcpguard run AGENT",
                code="store.empty",
            )
        connection, note = connect(path)
        return cls(path, connection, note)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start_session(
        self,
        policy: Policy,
        *,
        command: Sequence[str],
        tier: str,
        coverage: Sequence[Coverage],
        now_ns: int,
        supervisor: Supervisor | None = None,
        session: str = "",
        modes: Sequence[str] = (),
        rules_later: bool = False,
    ) -> str:
        """Begin a session and store the policy's rules; returns its id.

        Args:
            session: the id, where it had to be known before.
            modes: see `Session`.
            rules_later: the caller does that, by `add_rules`: they are many.

        Raises:
            StoreError: it cannot be written.
        """
        who = supervisor or Supervisor.current()
        session = session or new_id(now_ns)
        values = (
            *(session, policy.profile, policy.digest, schema.clean(policy.workspace)),
            *(json.dumps([schema.clean(word) for word in command]), tier, schema.coverage_text(coverage), now_ns),
            *(who.pid, who.start, who.boot, None, None, 0, " ".join(modes)),
        )
        with self._write() as connection:
            marks = ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO sessions ({_SESSION_COLUMNS}) VALUES ({marks})", values)
            if not rules_later:
                self._store_rules(connection, session, policy)
        return session

    def add_rules(self, session: str, policy: Policy) -> None:
        """Store the policy's rules of a session that began without them, before it has events.

        Raises:
            StoreError: it cannot be written; none is stored.
        """
        with self._write() as connection:
            self._store_rules(connection, session, policy)

    def _store_rules(self, connection: sqlite3.Connection, session: str, policy: Policy) -> None:
        number = self.number(session)
        numbers: dict[Origin, int] = {}
        rows: list[tuple[object, ...]] = []
        for origin, because in zip(policy.rules, policy.reasons, strict=True):
            if numbers.setdefault(origin, len(rows)) == len(rows):  # of equal ones the first counts
                rows.append(_rule_row(number, len(rows), origin, because))
        connection.executemany(_INSERT_RULE, rows)
        self._rules[session] = numbers

    def add(self, session: str, events: Sequence[Event]) -> None:
        """Store events in one transaction: all of them or none. Events with seq 0 are numbered in their order.

        Raises:
            StoreError: nothing of this batch was stored.
        """
        if not events:
            return
        known = self._rules.get(session)
        known = None if known is None else dict(known)
        try:
            with self._write() as connection:
                number, seq = self._last(session)
                rows = []
                rules: dict[int, int | None] = {id(None): None}  # by object: few are behind many events
                for event in events:
                    seq = event.seq or seq + 1
                    if id(event.rule) not in rules and event.rule is not None:
                        rules[id(event.rule)] = self._rule_number(session, event.rule)
                    rows.append(schema.event_row(event, number, seq, rules[id(event.rule)]))
                connection.executemany(schema.INSERT_EVENT, rows)
        except BaseException:
            if known is None:
                self._rules.pop(session, None)
            else:
                self._rules[session] = known
            raise

    def end_session(self, session: str, *, exit_code: int, now_ns: int, unsaved: int = 0) -> None:
        """Mark a session as ended in order.

        Raises:
            StoreError: it cannot be written.
        """
        with self._write() as connection:
            connection.execute(
                "UPDATE sessions SET ended_ns = ?, exit_code = ?, unsaved = ? WHERE id = ?",
                (now_ns, exit_code, unsaved, session),
            )

    def sessions(self) -> list[Session]:
        """All sessions, newest first."""
        rows = self.read(f"SELECT {_SESSION_COLUMNS} FROM sessions ORDER BY started_ns DESC, n DESC")
        return [_session_of(row) for row in rows]

    def session(self, text: str | None = None) -> Session:
        """The session with this id or unambiguous beginning of one; None: the latest.

        Raises:
            StoreError: there is none (`store.no-session`), or several begin so (`store.ambiguous-session`).
        """
        exact = self.read(f"SELECT {_SESSION_COLUMNS} FROM sessions WHERE id = ?", (text,))
        if exact:  # a run asks for its own; the others may be thousands
            return _session_of(exact[0])
        found = [s for s in self.sessions() if text is None or s.id.startswith(text)]
        if found and (text is None or len(found) == 1):
            return found[0]
        if found:
            raise StoreError(
                f"{len(found)} sessions begin with {text}",
                why="the first two are " + " and ".join(s.id for s in found[:2]),
                do="give more of the id",
                code="store.ambiguous-session",
            )
        raise StoreError(
            f"there is no session {text}" if text else "no session is on record yet",
            why=f"{self.path} does not hold it",
            do="list them: mcpguard sessions" if text else "run an agent first: mcpguard run AGENT",
            code="store.no-session",
        )

    def size(self) -> int:
        """Bytes that its content takes in the file; what was forgotten and not given back does not count."""
        pages, free, size = (
            int(self.read(f"PRAGMA {name}")[0][0]) for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def count(self, session: str | None = None) -> int:
        """How many events a session has, or all together, from their last numbers: counting millions takes seconds."""
        where, values = ("", ()) if session is None else (" WHERE id = ?", (session,))
        last = "(SELECT MAX(seq) FROM events WHERE events.session = sessions.n)"
        return int(self.read(f"SELECT COALESCE(SUM({last}), 0) FROM sessions{where}", values)[0][0])

    def first_ns(self) -> int | None:
        """When the oldest session began; None: there is none."""
        rows = self.read("SELECT started_ns FROM sessions ORDER BY n LIMIT 1")
        return int(rows[0][0]) if rows else None

    def forget(self, session: str) -> int:
        """Remove some events of a session, then its rules and the session itself.

        Returns:
            How many rows went; 0: nothing of it is left.

        Raises:
            StoreError: it cannot be written.
        """
        with self._write() as connection:
            found = connection.execute("SELECT n FROM sessions WHERE id = ?", (session,)).fetchone()
            if found is None:
                return 0
            chosen = "SELECT seq FROM events WHERE session = ? ORDER BY seq LIMIT ?"
            gone = connection.execute(
                f"DELETE FROM events WHERE session = ? AND seq IN ({chosen})", (*found, *found, _FORGOTTEN_AT_ONCE)
            ).rowcount
            if gone < _FORGOTTEN_AT_ONCE:
                connection.execute("DELETE FROM rules WHERE session = ?", found)
                connection.execute("DELETE FROM sessions WHERE n = ?", found)
            return max(gone, 1)

    def give_back(self, *, whole: bool = False) -> None:
        """Give the room of what was forgotten back to the file system.

        Args:
            whole: write the file anew, which waits for every other writer, and takes as much room again meanwhile.

        Raises:
            StoreError: it cannot be written, or somebody else is writing.
        """
        try:
            with self._lock:
                if whole:
                    self._connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                    self._connection.execute("VACUUM")
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                else:
                    # By `execute` it would give one page back: it has no columns, so nobody steps to its end.
                    self._connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")
        except sqlite3.Error as error:
            raise store_error(error, self.path) from error

    def number(self, session: str) -> int:
        """The row number of a session, the key of its events."""
        rows = self.read("SELECT n FROM sessions WHERE id = ?", (session,))
        if not rows:
            raise StoreError(
                f"there is no session {session}",
                why=f"{self.path} does not hold it",
                do="list them: mcpguard sessions",
                code="store.no-session",
            )
        return int(rows[0][0])

    def last_seq(self, number: int) -> int:
        """The highest event number of a session; 0 when it has none."""
        return int(self.read("SELECT COALESCE(MAX(seq), 0) FROM events WHERE session = ?", (number,))[0][0])

    def _last(self, session: str) -> tuple[int, int]:
        """Row number of a session and its highest event number, within a transaction."""
        found = self._connection.execute(_LAST, (session,)).fetchone()
        if found is None:
            return self.number(session), 0  # it says what is wrong
        return found[0], found[1]

    def read(self, statement: str, values: Sequence[object] = ()) -> list[schema.Row]:
        """Rows of a query, read at once so that no reader holds back the writer.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise store_error(error, self.path) from error

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise store_error(error, self.path) from error
                raise

    def _rule_number(self, session: str, origin: Origin) -> int:
        if session not in self._rules:
            self._rules[session] = self._stored_rules(session)
        known = self._rules[session].get(origin)
        return self._add_rule(session, origin) if known is None else known

    def _stored_rules(self, session: str) -> dict[Origin, int]:
        rows = self.read("SELECT n, profile, file, line, text FROM rules WHERE session = ?", (self.number(session),))
        return {Origin(*row[1:]): row[0] for row in rows}

    def _add_rule(self, session: str, origin: Origin) -> int:
        # The session's other processes add rules, too; while this transaction lasts they do not.
        known = self._rules[session] = {**self._stored_rules(session), **self._rules[session]}
        if origin not in known:
            known[origin] = max(known.values(), default=-1) + 1
            self._connection.execute(_INSERT_RULE, _rule_row(self.number(session), known[origin], origin, ""))
        return known[origin]


def _rule_row(session: int, number: int, origin: Origin, because: str) -> tuple[object, ...]:
    file, text, reason = schema.clean(origin.file), schema.clean(origin.text), schema.clean(because)
    return (session, number, origin.profile, file, origin.line, text, reason)


def _session_of(row: schema.Row) -> Session:
    id_, profile, digest, workspace, command, tier, coverage, started, pid, start, boot, ended, code, unsaved, modes = (
        row
    )
    return Session(
        *(id_, profile, digest, workspace, tuple(json.loads(command)), tier, schema.coverage_of(coverage), started),
        supervisor=Supervisor(pid, start, boot),
        ended_ns=ended,
        exit_code=code,
        unsaved=unsaved,
        modes=tuple(modes.split()),
    )
