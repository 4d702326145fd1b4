"""Decisions that are on record before they are acted upon, and in the store soon after.

A line of a file in the user's state directory takes a tenth of the time of a transaction. It survives whoever is killed: what
is still in a file that no gate holds any more is put in the store by whoever comes next. No arguments stand in it, and they
are all that such an event lacks.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from mcpguard.errors import StoreError
from mcpguard.events.mcp import Talk
from mcpguard.events.missing import loss
from mcpguard.events.query import Filter, events
from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind, Peer
from mcpguard.model.rule import Origin
from mcpguard.profile.store import state_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOST = "MCP messages that could not be stored"
LATE = "its arguments are not on record: the gate was ended"
# Of lines that are not in the store yet.
_MOST_BYTES = 16 << 20


def folder() -> Path:
    """Where the files are. No guarded process reaches it."""
    return state_directory() / "mcp-journal"


class Journal:
    """One file. Whoever has made it holds a lock on it while they live."""

    def __init__(self, session: str) -> None:
        """Raises OSError: it cannot be made."""
        place = folder()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{session}.{os.urandom(6).hex()}"
        begun = place / f".{name}"
        self._file = os.open(begun, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        begun.rename(place / name)  # whoever finds the name finds it locked
        self._bytes = 0

    def write(self, decision: Mapping[str, Any]) -> None:
        """Have a line in the file when this returns.

        Raises:
            OSError: it is not.
        """
        line = b"\n" + json.dumps(decision).encode() + b"\n"  # what of one before it found no room spoils no other
        self._bytes += len(line)
        if self._bytes > _MOST_BYTES or os.write(self._file, line) != len(line):
            raise OSError(0, "there is no room for it")

    def count(self, lost: int) -> None:
        """Have in the file that so many events are not in the store, and never will be.

        Raises:
            OSError: it is not.
        """
        self.write({"lost": lost, "time_ns": time.time_ns()})

    def clear(self) -> None:
        """All of it is in the store."""
        if self._bytes:
            with contextlib.suppress(OSError):  # who recovers it finds all of it in the store
                os.ftruncate(self._file, 0)
            self._bytes = 0


def recover(store: Store | None = None) -> None:
    """Put into the store what gates that have ended left behind; what cannot be stored stays for the next time."""
    for path in _left_behind():
        with contextlib.suppress(OSError, StoreError), _locked(path):
            lines = [line for line in path.read_bytes().splitlines() if line]
            if lines:
                opened = store or Store.open(create=False)
                try:
                    _add(opened, path.name.partition(".")[0], lines)
                except StoreError as error:
                    if error.code != "store.no-session":  # who forgot the session forgot this, too
                        raise
                finally:
                    if store is None:
                        opened.close()
            path.unlink()


def _left_behind() -> list[Path]:
    try:
        return [path for path in folder().iterdir() if not path.name.startswith(".")]
    except OSError:
        return []


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Raises OSError: somebody else holds it, so it is in use."""
    held = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(held)


def _add(store: Store, session: str, lines: list[bytes]) -> None:
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # half of a line, from a full disk
            found.append(_event(session, json.loads(line)))
    if not found:
        return
    since = min(event.time_ns for event in found)
    # The gate may have been ended between its transaction and its next word to the file.
    known = {one.mcp.call for one in events(store, session, Filter(kind=Kind.MCP, since_ns=since)) if one.mcp}
    store.add(session, [event for event in found if event.mcp is None or event.mcp.call not in known])


def _event(session: str, told: Mapping[str, Any]) -> Event:
    if "lost" in told:
        return loss(int(told["time_ns"]), session, LOST, int(told["lost"]))
    client, peer = (Peer(*one) if one else None for one in (told["client"], told["peer"]))
    rule = told["rule"]
    return Talk(session, told["server"], told["transport"], client, peer).request(
        told["time_ns"],
        told["sender"],
        told["method"],
        told["names"],
        id=told["id"],
        call=told["call"],
        classes=frozenset(told["classes"]),
        verdict=Verdict(told["verdict"]),
        rule=Origin(*rule) if rule else None,
        detail="; ".join(word for word in (told["detail"], LATE) if word),
    )
