"""What a tier-3 plan is made from while the real tree is walked: grants found, steps made, bounds kept."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

from mcpguard.errors import PolicyError
from mcpguard.model.access import Access
from mcpguard.model.paths import is_below
from mcpguard.model.plan import MountStep
from mcpguard.model.values import dataclass, field
from mcpguard.model.wildcards import Wildcards
from mcpguard.policy.automaton import NOBODYS_NAME, Automaton, Ordinary, State

ALL = Access.READ | Access.WRITE | Access.EXECUTE
# A new name in an open directory is read back by the program that wrote it; it never needs to be executed.
OPEN = Access.READ | Access.WRITE

MAX_VISITED = 400_000
MAX_STEPS = 4_000
# Directories deeper than this are hidden, not looked at; the kernel's hooks judge nothing deeper either (tiers 1 and 2).
MAX_DEPTH = 1_000
# PATH_MAX without the longest name and the beginning of a stand-in: what lies in a directory must have a name to be covered.
MAX_PATH_BYTES = 4_095 - 256 - 64
# Names beyond begin with another character.
_ASCII = "\x7f\U0010ffff"
# Above this many names, a masked directory shows no stand-ins: a hidden name is then ENOENT and not EACCES.
MAX_STAND_INS = 512
_PROGRESS_EVERY = 2_000
# It vanished, or the program behind the mount is gone: nothing in it can be opened.
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENOTCONN)

# How far down an error looks for the directory that holds too much, and how much of a path it shows.
_SEARCHED_LEVELS = 32
_SHOWN_BYTES = 120

_name: Callable[[os.DirEntry[str]], str] = attrgetter("name")

_LEFT_BEHIND = "remove what does not belong there, as an earlier session may have left it, or deny it as a whole"

Progress = Callable[[int, str], None]


Met = tuple[os.DirEntry[str], State]
"""An entry of a directory, and its state."""
Place = tuple[str, State, Access, bool, tuple[str, ...]]
"""A place that is still to be visited: its path and state, and

- above: what Landlock grants here because of ancestors,
- writable: whether the mount at this place is writable once all steps above have run,
- chain: directories between the last mount step and here; a protected place below pins them.
"""


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
    # Names with which a floating pattern can begin.
    floating: Wildcards
    waiting: list[Place] = field(default_factory=list)
    steps: list[MountStep] = field(default_factory=list)
    pinned: set[str] = field(default_factory=set)
    gaps: list[str] = field(default_factory=list)
    # Why a place could not be looked at -> those that are hidden for it.
    hidden: dict[str, list[str]] = field(default_factory=dict)
    visited: int = 0
    # Directories that patterns begin in, where each pass of a plan looks: what lies there, with its states.
    met: dict[str, list[Met]] = field(default_factory=dict)
    # Directory -> names found in it.
    sizes: dict[str, int] = field(default_factory=dict)
    unscanned: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    # What is at a path that a rule names: the type of its mode, of a symlink its own; None where nothing is.
    kinds: dict[str, int | None] = field(default_factory=dict)
    # Existing paths, and whether they lead through no symlink.
    canonical: dict[str, bool] = field(default_factory=dict)
    # Directories that this user may not list, though names in them could be opened.
    unlistable: set[str] = field(default_factory=set)
    # What most names in a directory lead to.
    ordinary: dict[State, Ordinary | None] = field(default_factory=dict)

    def count(self, path: str, names: int = 1) -> None:
        before, self.visited = self.visited, self.visited + names
        if self.visited // _PROGRESS_EVERY != before // _PROGRESS_EVERY:
            self.progress(self.visited, path)
        if self.visited > MAX_VISITED:
            raise PolicyError(
                f"more than {MAX_VISITED} files to look at; most are below {shown(heaviest(self.sizes))}",
                why="a rule with ** or * must be checked against every name that exists at launch",
                do=f"{_LEFT_BEHIND}; or start in a smaller workspace, or make the patterns more specific",
                code="plan.too-many-files",
            )

    def kind(self, path: str) -> int | None:
        """As `kind_of`, and the kernel is asked once."""
        if path not in self.kinds:
            self.kinds[path] = kind_of(path)
        return self.kinds[path]

    def children(self, state: State, names: Sequence[str]) -> list[State]:
        """As the automaton's `child`, for names in one directory; most lead to one state."""
        if state not in self.ordinary:
            self.ordinary[state] = self._ordinary(state)
        most, child = self.ordinary[state], self.automaton.child
        if most is None:
            return [child(state, name) for name in names]
        usual, but, floating = most.state, most.but, self.floating if most.floating else ()
        return [
            child(state, name) if name > _ASCII or name.startswith(but) or name in floating else usual for name in names
        ]

    def _ordinary(self, state: State) -> Ordinary | None:
        most = self.automaton.ordinary(state)
        # A pattern such as `**/?` tells even nobody's name apart: then no name stands for others.
        return None if most and most.floating and NOBODYS_NAME in self.floating else most

    def add(self, step: MountStep) -> None:
        self.steps.append(step)
        if len(self.steps) > MAX_STEPS:
            folders = Counter(os.path.dirname(step.path) for step in self.steps)
            raise PolicyError(
                f"more than {MAX_STEPS} places to hide or protect; most are below {shown(heaviest(folders))}",
                why="each needs a mount of its own",
                do=f"{_LEFT_BEHIND}; or make the patterns more specific",
                code="plan.too-many-mounts",
            )

    def hide(self, path: str, why: str) -> None:
        """Hide a directory whole, because what lies in it cannot be looked at."""
        self.add(MountStep("mask", path, True))
        self.hidden.setdefault(why, []).append(path)


def kind_of(path: str) -> int | None:
    """The type of the mode of what is at a path, as `stat.S_IFDIR`; a symlink is not followed. None where nothing is."""
    try:
        return stat.S_IFMT(os.lstat(path).st_mode)
    except OSError:
        return None


def too_deep(directory: str) -> bool:
    """Whether what lies in a directory is out of the walk's reach."""
    return directory.count("/") >= MAX_DEPTH or len(os.fsencode(directory)) > MAX_PATH_BYTES


def heaviest(counts: Mapping[str, int]) -> str:
    """The deepest directory that still holds more than half of what was counted, by directory."""
    found, depth, inside = "/", 0, dict(counts)
    least = sum(counts.values()) / 2
    while depth < _SEARCHED_LEVELS:
        depth += 1
        below: Counter[str] = Counter()
        for path, count in inside.items():
            parts = path.split("/", depth + 1)
            if len(parts) > depth and parts[depth]:
                below["/".join(parts[: depth + 1])] += count
        best, most = max(below.items(), key=lambda item: item[1], default=("", 0))
        if most <= least:
            break
        found = best
        inside = {path: count for path, count in inside.items() if is_below(path, found)}
    return found


def shown(path: str) -> str:
    """A path in a sentence: of a very long one only its beginning."""
    return path if len(path) <= _SHOWN_BYTES else f"{path[:_SHOWN_BYTES]}..."


def listed(walk: Walk, directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as listing:
            found = sorted(listing, key=_name)
    except OSError as error:
        if error.errno not in _NOTHING_THERE:
            walk.unlistable.add(directory)
        return []
    walk.sizes[directory] = len(found)
    walk.count(directory, len(found) + 1)
    return found


def met(walk: Walk, directory: str, state: State) -> list[Met]:
    """What lies in a directory that patterns begin in; each is looked at once."""
    found = walk.met.get(directory)
    if found is None:
        found = walk.met[directory] = looked_at(walk, directory, state)
    return found


def looked_at(walk: Walk, directory: str, state: State) -> list[Met]:
    """What lies in a directory, which is not kept."""
    entries = listed(walk, directory)
    return list(zip(entries, walk.children(state, [entry.name for entry in entries]), strict=True))


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
