"""What a tier-3 plan is made from while the real tree is walked: grants found, steps made, bounds kept."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence

from mcpguard.errors import PolicyError
from mcpguard.model.access import Access
from mcpguard.model.plan import MountStep
from mcpguard.model.values import dataclass, field
from mcpguard.policy.automaton import Automaton, State

ALL = Access.READ | Access.WRITE | Access.EXECUTE
# A new name in an open directory is read back by the program that wrote it; it never needs to be executed.
OPEN = Access.READ | Access.WRITE

MAX_VISITED = 400_000
MAX_STEPS = 4_000
# A name that no sensible pattern names.
_NOBODYS_NAME = "\x01"
# Above this many names, a masked directory shows no stand-ins: a hidden name is then ENOENT and not EACCES.
MAX_STAND_INS = 512
_PROGRESS_EVERY = 2_000

Progress = Callable[[int, str], None]


@dataclass(slots=True)
class Walk:
    """What is known so far about one tree walk; see `files_walk` and `files_plan` for who fills what."""

    automaton: Automaton
    scannable: tuple[str, ...]
    grants: dict[str, Access]
    open_directories: set[str]
    wanted_children: dict[str, set[str]]
    sockets: Sequence[str]
    progress: Progress
    steps: list[MountStep] = field(default_factory=list)
    pinned: set[str] = field(default_factory=set)
    gaps: list[str] = field(default_factory=list)
    visited: int = 0
    unscanned: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    # Existing paths, and whether they lead through no symlink.
    canonical: dict[str, bool] = field(default_factory=dict)
    # Directories that this user may not list, though names in them could be opened.
    unlistable: set[str] = field(default_factory=set)
    # Names with which a floating pattern can begin, and whether any other name leaves a state as it is.
    floating: re.Pattern[str] = re.compile("")
    steady: dict[State, bool] = field(default_factory=dict)

    def count(self, path: str) -> None:
        self.visited += 1
        if self.visited % _PROGRESS_EVERY == 0:
            self.progress(self.visited, path)
        if self.visited > MAX_VISITED:
            raise PolicyError(
                f"more than {MAX_VISITED} files to look at below {path}",
                why="a rule with ** or * must be checked against every name that exists at launch",
                do="start in a smaller workspace, or make the patterns more specific",
                code="plan.too-many-files",
            )

    def child(self, state: State, name: str) -> State:
        """As the automaton's `child`; in a tree where only floating patterns are left, most names lead back to `state`."""
        steady = self.steady.get(state)
        if steady is None:
            steady = self.steady[state] = self.automaton.child(state, _NOBODYS_NAME) == state
        if steady and not self.floating.fullmatch(name):
            return state
        return self.automaton.child(state, name)

    def add(self, step: MountStep) -> None:
        self.steps.append(step)
        if len(self.steps) > MAX_STEPS:
            raise PolicyError(
                f"more than {MAX_STEPS} places to hide or protect",
                why=f"each needs a mount of its own; the last was {step.path}",
                do="make the patterns more specific, or protect a directory instead of many files",
                code="plan.too-many-mounts",
            )


def listed(walk: Walk, directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as listing:
            found = sorted(listing, key=lambda entry: entry.name)
    except PermissionError:
        walk.unlistable.add(directory)
        return []
    except OSError:
        return []
    walk.count(directory)
    walk.visited += len(found)
    return found


def remember_way(walk: Walk, path: str) -> None:
    """Note every component on the way to `path`, so that the visit reaches it without listing directories."""
    while path != "/":
        parent, _, name = path.rpartition("/")
        parent = parent or "/"
        names = walk.wanted_children.setdefault(parent, set())
        if name in names:
            return
        names.add(name)
        path = parent


class TerminalProgress:
    """Silent on short work; rewrites one line on long work, and takes it away at the end."""

    def __init__(self, write: Callable[[str], None], delay_s: float = 0.4) -> None:
        self._write = write
        self._begin = time.monotonic() + delay_s
        self._shown = False

    def __call__(self, visited: int, path: str) -> None:
        if time.monotonic() > self._begin:
            self._shown = True
            self._write(f"\rmcpguard: looking at files to protect: {visited} names, {path[-30:]:<30}")

    def clear(self) -> None:
        if self._shown:
            self._write("\r\x1b[K")
