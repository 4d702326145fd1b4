"""Opening the event store's file: its modes, its tables, and what happens to one that is broken.

Everything is made with mode 0600 in a folder of mode 0700 before SQLite touches it. A broken file is moved aside,
never deleted.
"""

from __future__ import annotations

import os
import stat

from mcpguard.errors import StoreError
from mcpguard.events import schema
from mcpguard.profile import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3 as sqlite3
else:
    try:
        # All that is used of `sqlite3`, which brings `datetime` besides, and makes converters that nobody needs.
        import _sqlite3 as sqlite3
    except ImportError:
        import sqlite3

# How long a write waits for another run's write; the rings go on filling meanwhile, so not long.
BUSY_TIMEOUT_S = 1.0
# The code of the error when that was not long enough.
BUSY = "store.busy"
_SIDE_FILES = ("-wal", "-shm")


def default_path() -> str:
    """`$MCPGUARD_HOME/state/events.db`, else `$XDG_STATE_HOME/mcpguard/events.db` (`~/.local/state` by default)."""
    return f"{places.state()}/events.db"


def connect(path: str) -> tuple[sqlite3.Connection, str | None]:
    """An open database with our tables, and a note when a broken one had to be moved aside.

    Raises:
        StoreError: as for `Store.open`.
    """
    try:
        _prepare(path)
        try:
            return _connect(path), None
        except sqlite3.DatabaseError as error:
            if not _is_broken(error):
                raise
            note = _move_aside(path, error)
            _prepare(path)
            return _connect(path), note
    except (OSError, sqlite3.Error) as error:
        raise store_error(error, path) from error


def _prepare(path: str) -> None:
    """Make the folder (0700) and the file (0600) before SQLite does, and take looser modes away."""
    parent = os.path.dirname(path)
    os.makedirs(parent, mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise StoreError(
                f"{path} is not our event store",
                why=f"it is not a regular file of user {os.geteuid()}",
                do="move it away, or set XDG_STATE_HOME to a folder of your own",
                code="store.not-ours",
            )
        if found.st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    folder = os.stat(parent)
    if folder.st_uid == os.geteuid() and folder.st_mode & 0o077:
        os.chmod(parent, 0o700)


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        if os.stat(path).st_size == 0:  # later it would mean nothing, and wait for whoever writes
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        # The file survives a kill of any process; only a power cut may cost the last transactions.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA trusted_schema = OFF")
        _ensure_schema(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _ensure_schema(connection: sqlite3.Connection, path: str) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > schema.VERSION:
        raise StoreError(
            f"the event store was written by a newer mcpguard ({path})",
            why=f"it has format {version}; this mcpguard knows up to {schema.VERSION}",
            do="update mcpguard, or move the file away",
            code="store.newer",
        )
    if version == 0:
        _create_tables(connection)
    elif version < schema.VERSION:
        _migrate(connection)
    if connection.execute("PRAGMA application_id").fetchone()[0] != schema.APPLICATION_ID:
        raise sqlite3.DatabaseError("it is a database of another program")
    # Touch every table, so that a torn file shows at once and not in the middle of a run.
    for table in ("sessions", "rules", "events"):
        connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchall()


def _create_tables(connection: sqlite3.Connection) -> None:
    """Two runs may begin at once: the second one finds the tables made when it gets the lock."""
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0:
        for statement in (schema.TABLES + schema.STATISTICS).split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {schema.VERSION}")
    connection.execute("COMMIT")


def _migrate(connection: sqlite3.Connection) -> None:
    """Make the tables those of this version; another run may have done it when the lock is had."""
    connection.execute("BEGIN IMMEDIATE")
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    try:
        for version in range(found, schema.VERSION):
            for statement in schema.MIGRATIONS[version].split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {max(found, schema.VERSION)}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _is_broken(error: sqlite3.DatabaseError) -> bool:
    """The file itself is bad; OperationalError (busy, full, no permission) says nothing about its content."""
    missing_table = isinstance(error, sqlite3.OperationalError) and "no such" in str(error)
    return missing_table or not isinstance(error, sqlite3.OperationalError)


def _move_aside(path: str, error: sqlite3.Error) -> str:
    from datetime import UTC, datetime

    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    aside = f"{path}.broken-{stamp}-{os.getpid()}"
    for suffix in ("", *_SIDE_FILES):
        if os.path.exists(path + suffix):
            os.rename(path + suffix, aside + suffix)
    return f"the event store was broken ({error}); it is kept as {aside}, and a new one was begun"


def store_error(error: Exception, path: str) -> StoreError:
    """What a failure of the file or the database means to a person."""
    text = str(error)
    code, do = "store.unusable", f"look at {os.path.dirname(path)}: its owner, its mode and the file system"
    if "full" in text or "No space" in text:
        code, do = "store.full", f"free some space on the file system of {os.path.dirname(path)}"
    elif "locked" in text or "busy" in text:
        code, do = BUSY, "try again; another mcpguard was writing"
    elif isinstance(error, sqlite3.DatabaseError) and _is_broken(error):
        code, do = "store.broken", "the next run moves it aside and begins a new one"
    return StoreError("the event store cannot be used", why=f"{path}: {text}", do=do, code=code)
