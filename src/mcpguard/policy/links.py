"""Where a path really leads: symlinks followed one by one, each of them with a say.

Pure but for `read_link`, the only thing in `policy` that looks at the file system; it is handed in as an argument.
Kernel hooks judge an object by its real place, so a rule on a path with a symlink on the way must also name that place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

ReadLink = Callable[[str], str | None]
MAX_HOPS = 40
# They lead every process somewhere else: followed here they would name this process, not the agent's.
_PER_PROCESS = frozenset(("/proc/self", "/proc/thread-self"))


def read_link(path: str) -> str | None:
    """Target of the symlink at `path`; None when it is none, is missing or cannot be read."""
    try:
        return str(Path(path).readlink())
    except OSError:
        return None


class Links:
    """Follows symlinks and remembers them.

    `resolve(path)` is asked for every prefix of a path: None or the path itself when it is not a symlink, else where it
    leads (absolute, or relative to its directory). Answering one hop at a time lets every hop be judged.
    """

    def __init__(self, resolve: ReadLink) -> None:
        self._resolve = resolve
        self._known: dict[str, str | None] = {}

    def target(self, path: str) -> str | None:
        """Where the symlink at `path` leads, or None when there is none."""
        if path not in self._known:
            target = None if path in _PER_PROCESS else self._resolve(path)
            self._known[path] = None if target == path else target
        return self._known[path]

    def follow(self, path: str, may_follow: Callable[[str], bool]) -> str | None:
        """The real place of an absolute path; what does not exist stays as written.

        Args:
            may_follow: asked with the place of each symlink.

        Returns:
            An absolute path, or None when a symlink may not be followed or they go round in circles.
        """
        done: list[str] = []
        waiting = _names(path)[::-1]
        hops = 0
        while waiting:
            name = waiting.pop()
            if name == "..":
                del done[-1:]
                continue
            place = "/" + "/".join([*done, name])
            target = self.target(place)
            if target is None:
                done.append(name)
                continue
            hops += 1
            if hops > MAX_HOPS or not may_follow(place):
                return None
            if target.startswith("/"):
                done.clear()
            waiting += _names(target)[::-1]
        return "/" + "/".join(done)


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]
