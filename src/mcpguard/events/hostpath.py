"""Which object a path named: joined, symlinks followed, as the kernel does, in the host's view.

Looks at the file system now, a moment after the call, so a swapped symlink can mislead it: the answer explains a
refusal that the kernel has already made and never makes one. Opens nothing, follows nothing by itself (`readlink`
only).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from pathlib import Path

from mcpguard.model.values import dataclass

MAX_LINKS = 40
_PROC = re.compile(r"/proc/(?P<pid>\d+)(?:/task/\d+)?/(?P<link>root|cwd|exe|fd/\d+)")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose words are read.

    Attributes:
        pid, tid: what `/proc/self` and `/proc/thread-self` stand for.
        cwd: directory that the call started from, for when /proc/PID/cwd cannot be read any more; empty: unknown.
    """

    pid: int
    tid: int
    cwd: str = ""


def resolve(
    base: str, path: str, caller: Caller, *, follow: bool, was: Callable[[str], str | None] = lambda _link: None
) -> str:
    """Absolute path of the object, without symlinks, `.` or `..` as far as they can be read.

    Args:
        base: directory that a relative `path` starts from; the object itself when `path` is empty.
        path: the string that the program gave.
        follow: whether a symlink in the last component is followed.
        was: what a link pointed to at the time, for links that are known to have been there; asked before the file system.
    """
    text = path if path.startswith("/") else f"{base}/{path}" if path else base
    # A closing slash asks for the directory behind a link.
    follow = follow or (path.endswith("/") and path != "/")
    todo = deque(text.split("/"))
    done: list[str] = []
    links = 0
    while todo:
        name = todo.popleft()
        if name in ("", "."):
            continue
        if name == "..":
            del done[-1:]
            continue
        done.append(name)
        if not (follow or any(todo)) or links >= MAX_LINKS:
            continue
        here = "/" + "/".join(done)
        target = was(here) or _target(here, caller)
        if target is None:
            continue
        links += 1
        done.pop()
        if target.startswith("/"):
            done.clear()
        todo.extendleft(reversed(target.split("/")))
    return "/" + "/".join(done)


def _target(path: str, caller: Caller) -> str | None:
    """What the link at `path` points to; None: it is none, or it cannot be read."""
    if path == "/proc/self":
        return f"/proc/{caller.pid}"
    if path == "/proc/thread-self":
        return f"/proc/{caller.pid}/task/{caller.tid}"
    found = _PROC.fullmatch(path) if path.startswith("/proc/") else None
    if found and found["link"] == "root":
        return "/"
    try:
        target = str(Path(path).readlink())
    except (OSError, ValueError):
        own = found and found["link"] == "cwd" and int(found["pid"]) == caller.pid
        return caller.cwd or None if own else None
    if found:
        # `pipe:[123]` and the like are names of no path.
        return target.removesuffix(" (deleted)") if target.startswith("/") else None
    return target
