"""Moves to another mount: whether a folder was to move, which a rule forbids, or a file, which programs copy.

The call does not say which. What the tree does to the name next does: only what is no folder can be unlinked.
"""

from __future__ import annotations

import posixpath
import stat
from pathlib import Path

from mcpguard.events.permissions import lstat
from mcpguard.model.event import Event
from mcpguard.model.values import dataclass

# More at once are reported without a second look: each is compared with all that the tree does meanwhile.
MOST = 50
# What takes a folder, or what lies in it, away from its name.
_TAKES = frozenset({"rename", "exchange", "rmdir"})


@dataclass(slots=True)
class _Held:
    path: str
    names: tuple[str, ...]
    event: Event
    old: bool = False
    gone: bool = False


class Moves:
    """Refusals that wait for what happens next. In doubt it was a folder, and the refusal is reported."""

    def __init__(self) -> None:
        self._held: list[_Held] = []
        self._told: list[Event] = []

    def hold(self, event: Event, way: tuple[str, ...]) -> bool:
        """False: there is nothing to wait for, it is to be reported.

        Args:
            way: what `way` says of its path.
        """
        if event.path is None or len(self._held) >= MOST or is_folder(event.path):
            return False
        self._held.append(_Held(event.path, tuple(map(posixpath.basename, way)), event))
        return True

    def happened(self, op: str, path: str, target: str | None) -> None:
        """The tree changed something at these names.

        A folder that was to move can only make room for a file when it, or one above it, is taken away. That is known by its
        last name: which folders lead there is what can be seen now, and links can have led elsewhere.
        """
        for held in tuple(self._held) if self._held else ():
            if held.path == path and op == "unlink":
                self._held.remove(held)
                continue
            names = held.names if op in _TAKES else held.names[:-1] if op == "unlink" else ()
            if any(end is not None and posixpath.basename(end) in names for end in (path, target)):
                self._held.remove(held)
                self._told.append(held.event)

    def take(self, *, everything: bool = False) -> list[Event]:
        """Those to be reported; called once an interval. What nothing happened to for a whole one is what it was.

        What is gone by now may have gone since the last record was read: the next ones say how, so there is one interval more.
        """
        for held in tuple(self._held):
            if not (held.old or everything):
                held.old = True
                continue
            folder = is_folder(held.path)
            if folder is None and not (held.gone or everything):
                held.gone = True
                continue
            self._held.remove(held)
            if folder is not False:
                self._told.append(held.event)
        told, self._told = self._told, []
        return told


def way(base: str, path: str, resolved: str) -> tuple[str, ...]:
    """Every name on the way to a path, the path itself at the end; empty when a link leads there, or may have.

    Args:
        base, path: as in a `PathCallRecord`.
        resolved: the path without links, as far as can be seen now.
    """
    names: list[str] = []
    found: list[str] = []
    for name in (path if path.startswith("/") else f"{base}/{path}").split("/"):
        if name == "..":
            del names[-1:]
        elif name not in ("", "."):
            names.append(name)
            found.append("/" + "/".join(names))
    straight = found[-1:] == [resolved] and not any(Path(one).is_symlink() for one in found[:-1])
    return tuple(found) if straight else ()


def is_folder(path: str) -> bool | None:
    """None: there is nothing, or it cannot be seen."""
    found = lstat(path)
    return None if found is None else stat.S_ISDIR(found.st_mode)
