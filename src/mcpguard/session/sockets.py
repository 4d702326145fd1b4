"""Unix sockets that exist on this host now and that the policy refuses."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from mcpguard.kernel.resolve import real_path

_PATH_FIELD = 7
_LOOK_S = 2.0


def bound_paths(table: str = "/proc/net/unix") -> list[str]:
    """Canonical paths of all bound pathname sockets that still have their file, sorted. Abstract ones are left out."""
    found: set[str] = set()
    with open(table, encoding="utf-8", errors="surrogateescape") as lines:
        next(lines, None)
        for line in lines:
            fields = line.rstrip("\n").split(None, _PATH_FIELD)
            if len(fields) > _PATH_FIELD and fields[_PATH_FIELD].startswith("/"):
                path = real_path(fields[_PATH_FIELD])
                if path is not None:
                    found.add(path)
    return sorted(found)


class LaterSockets:
    """Looks every two seconds for sockets that were not there at launch, and has the refused ones hidden.

    By its own name such a socket is refused at once; through a symlink it could be reached until it is hidden.
    """

    def __init__(self, allowed: Callable[[str], bool], known: list[str], hide: Callable[[list[str]], None]) -> None:
        self._allowed = allowed
        self._known = set(known)
        self._hide = hide
        self._stop = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._watch, name="sockets", daemon=True).start()

    def close(self) -> None:
        self._stop.set()

    def hidden(self) -> list[str]:
        """Sockets that were hidden from the session, which nothing takes back while it runs."""
        return sorted(self._known)

    def follow(self, allowed: Callable[[str], bool]) -> None:
        """Ask somebody else what is refused."""
        self._allowed = allowed

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            new = [path for path in refused(self._allowed) if path not in self._known]
            if new:
                self._known.update(new)
                with contextlib.suppress(OSError):
                    self._hide(new)


def refused(allowed: Callable[[str], bool]) -> list[str]:
    """Bound sockets that `allowed` says no to."""
    return [path for path in bound_paths() if not allowed(path)]
