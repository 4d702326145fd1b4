"""Which object a path named: joined, symlinks followed, as the kernel does, in the host's view.

Looks at the file system now, a moment after the call, so a swapped symlink can mislead it: the answer explains a
refusal that the kernel has already made and never makes one. Opens nothing, follows nothing by itself (`readlink`
only).
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable

from mcpguard.model.values import dataclass
from mcpguard.wire.records import Head

MAX_LINKS = 40
MAX_FOLDERS = 8_192
_PROC = r"/proc/(?P<pid>[0-9]+)(?:/task/[0-9]+)?/(?P<link>root|cwd|exe|fd/[0-9]+)"
# The first one that a name has, as the kernel finds it (`mg_named_descriptor`): other digits than these are none to it.
_DESCRIPTOR = re.compile(r"/fd/([0-9]{1,7})(?=/|\Z)")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose words are read.

    Attributes:
        pid, tid: what `/proc/self` and `/proc/thread-self` stand for.
        cwd: where the process stood when the call was made: it may have gone elsewhere since; empty: unknown.
        descriptor, behind: a descriptor of its own, and the path that it stood for when the call was made; negative: none.
    """

    pid: int
    tid: int
    cwd: str = ""
    descriptor: int = -1
    behind: str = ""


def caller_of(head: Head, base: str, path: str, cwd: str) -> Caller:
    """Who made a call, and what the kernel told with it (`PathCallRecord`)."""
    behind = path.startswith("/") and base.startswith("/") and base != "/"
    found = _DESCRIPTOR.search(path) if behind else None
    return Caller(head.pid, head.tid, cwd, int(found[1]), base) if found else Caller(head.pid, head.tid, cwd)


def resolve(
    base: str, path: str, caller: Caller, *, follow: bool, was: Callable[[str], str | None] = lambda _link: None
) -> str:
    """Absolute path of the object, without symlinks, `.` or `..` as far as they can be read; from a link of /proc on that
    cannot be read any more, the text as the program gave it.

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
            if any(todo) and here.startswith("/proc/") and re.fullmatch(_PROC, here):
                # Nobody can tell any more where it led. The name stays as it was given: what `..` takes away is not known.
                return "/" + "/".join([*done, *todo])
            continue
        links += 1
        done.pop()
        if target.startswith("/"):
            done.clear()
        todo.extendleft(reversed(target.split("/")))
    return "/" + "/".join(done)


class Folders:
    """Resolves many paths of one moment: each folder is read once, as of most paths only the last name is new.

    What it knows is of the moment when it was read. `forget` before records that were made later.
    """

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def forget(self) -> None:
        self._known.clear()

    def resolve(self, base: str, path: str, caller: Caller, *, follow: bool) -> str:
        """The same as the function `resolve`."""
        text = path if path.startswith("/") else f"{base}/{path}" if path else base
        folder, _, name = text.rpartition("/")
        if name in ("", ".", ".."):
            return resolve(base, path, caller, follow=follow)
        known = self._known.get(folder)
        if known is None:
            known, own = self._read(folder, caller)
            if own:
                return resolve(base, path, caller, follow=follow)
        here = f"{known}/{name}"
        return here if not follow or _target(here, caller) is None else resolve(base, path, caller, follow=follow)

    def _read(self, folder: str, caller: Caller) -> tuple[str, bool]:
        """What a folder is, and whether it is that to this caller only: the way to it leads through /proc."""
        asked: list[str] = []
        known = resolve(folder, "", caller, follow=True, was=asked.append).rstrip("/")
        own = any(f"{name}/".startswith("/proc/") for name in asked)
        if not own and len(self._known) < MAX_FOLDERS:
            self._known[folder] = known
        return known, own


def _target(path: str, caller: Caller) -> str | None:
    """What the link at `path` points to; None: it is none, or it cannot be read."""
    if path == "/proc/self":
        return f"/proc/{caller.pid}"
    if path == "/proc/thread-self":
        return f"/proc/{caller.pid}/task/{caller.tid}"
    found = re.fullmatch(_PROC, path) if path.startswith("/proc/") else None
    if found and found["link"] == "root":
        return "/"
    if found and found["link"] == f"fd/{caller.descriptor}" and int(found["pid"]) == caller.pid:
        return caller.behind
    if found and found["link"] == "cwd" and int(found["pid"]) == caller.pid and caller.cwd:
        return caller.cwd
    try:
        target = os.readlink(path)
    except (OSError, ValueError):
        return None
    if found:
        # `pipe:[123]` and the like are names of no path.
        return target.removesuffix(" (deleted)") if target.startswith("/") else None
    return target
