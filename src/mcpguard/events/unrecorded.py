"""Runs that are not in the event store, because it could not be had when they began: a line for each, in a file beside it."""

from __future__ import annotations

import contextlib
import json
import os

from mcpguard.events.database import default_path
from mcpguard.model.values import dataclass

NAME = "unrecorded.jsonl"
MAX_BYTES = 1 << 20
# How much of an id is its time: `20261123-054501`.
_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Unrecorded:
    """A run without a record; its id tells when it began."""

    session: str
    profile: str
    why: str


def note(session: str, profile: str, why: str) -> None:
    """Add a line. A disk that takes nothing does not take this either: then only the run itself said it."""
    line = json.dumps({"session": session, "profile": profile, "why": why}) + "\n"
    with contextlib.suppress(OSError):
        path = _path()
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < MAX_BYTES:
                os.write(fd, line.encode())
        finally:
            os.close(fd)


def since(session: str = "") -> list[Unrecorded]:
    """Those that began in the second of the run with this id or later, oldest first; without one, all.

    What follows the second in an id is by chance: it puts nothing in order.
    """
    found = []
    with contextlib.suppress(OSError):
        with open(_path(), encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                value = json.loads(line)
                found.append(Unrecorded(str(value["session"]), str(value["profile"]), str(value["why"])))
    return [one for one in found if one.session[:_SECONDS] >= session[:_SECONDS]]


def words(session: str = "") -> str | None:
    """One line about those that began after the run with this id; None: there are none."""
    found = since(session)
    if not found:
        return None
    last = found[-1]
    begin = "one run is not on record:" if len(found) == 1 else f"{len(found)} runs are not on record, the last is"
    return f"{begin} {last.session} (profile {last.profile}): {last.why}"


def _path() -> str:
    return f"{os.path.dirname(default_path())}/{NAME}"
