"""Unix sockets that exist on this host now and that the policy refuses."""

from __future__ import annotations

import os
from collections.abc import Callable

_PATH_FIELD = 7


def bound_paths(table: str = "/proc/net/unix") -> list[str]:
    """Canonical paths of all bound pathname sockets that still have their file, sorted. Abstract ones are left out."""
    found: set[str] = set()
    with open(table, encoding="utf-8", errors="surrogateescape") as lines:
        next(lines, None)
        for line in lines:
            fields = line.rstrip("\n").split(None, _PATH_FIELD)
            if len(fields) > _PATH_FIELD and fields[_PATH_FIELD].startswith("/"):
                path = os.path.realpath(fields[_PATH_FIELD])
                if os.path.lexists(path):
                    found.add(path)
    return sorted(found)


def refused(allowed: Callable[[str], bool]) -> list[str]:
    """Bound sockets that `allowed` says no to."""
    return [path for path in bound_paths() if not allowed(path)]
