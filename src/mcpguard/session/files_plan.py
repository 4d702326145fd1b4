"""Policy to tier-3 plan: which paths Landlock grants, and which places the private mount namespace changes.

Landlock can only add: what it grants on a directory holds for everything below. So the automaton is walked over the
real tree, and wherever it allows less than an ancestor was granted, a mount step takes the rest away: `ro` for writes,
`noexec` for programs, `mask` for everything. Reads the file system as the user; changes nothing.
"""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mcpguard.errors import PolicyError
from mcpguard.model.access import Access, Effect
from mcpguard.model.plan import FilesPlan, Grant, MaskEntry, MountStep
from mcpguard.model.policy import PathRule, Policy
from mcpguard.policy.automaton import Automaton, State
from mcpguard.policy.patterns import split_literal

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
class _Walk:
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


def plan_files(
    policy: Policy,
    automaton: Automaton,
    *,
    sockets: Sequence[str] = (),
    progress: Progress = lambda visited, path: None,
) -> FilesPlan:
    """Make the plan for this host as it is now.

    Args:
        policy: compiled; its paths are canonical where they exist.
        automaton: the policy's own.
        sockets: canonical paths of unix sockets that exist now and that the policy refuses.
        progress: called now and then with the number of names looked at and the current directory.

    Raises:
        PolicyError: the plan would need more look-ups or mounts than is sensible.
    """
    if policy.audit:
        return _audit_plan(policy, automaton, sockets, progress)
    walk = _new_walk(policy, automaton, sockets, progress)
    for rule in policy.paths:
        for pattern in (rule.pattern, *rule.exceptions):
            _find_candidates(walk, pattern)
    for rule in policy.paths:
        _find_open_directory(walk, policy, rule)
    return _finish(walk, policy.paths)


def _audit_plan(policy: Policy, automaton: Automaton, sockets: Sequence[str], progress: Progress) -> FilesPlan:
    """Everything is let through but explicit denials: one grant on `/`, and the automaton of the deny rules alone."""
    rules = [rule for rule in policy.paths if rule.effect is not Effect.ALLOW]
    rules.append(PathRule(Effect.ALLOW, ALL, "/", (), 0))
    walk = _new_walk(policy, Automaton.build(rules), sockets, progress)
    walk.grants["/"] = ALL
    return _finish(walk, rules)


def _new_walk(policy: Policy, automaton: Automaton, sockets: Sequence[str], progress: Progress) -> _Walk:
    scannable = tuple(dict.fromkeys((policy.workspace, policy.user.home, policy.tmp)))
    return _Walk(automaton, scannable, {}, set(), {}, sockets, progress, floating=_beginnings(policy.paths))


def _beginnings(rules: Iterable[PathRule]) -> re.Pattern[str]:
    """Matches every name that can stand right behind a `**`."""
    names = {
        after
        for rule in rules
        for pattern in (rule.pattern, *rule.exceptions)
        for before, after in itertools.pairwise(pattern.split("/"))
        if before == "**"
    }
    return re.compile("|".join(fnmatch.translate(name) for name in sorted(names)) or r"(?!)")


def _finish(walk: _Walk, rules: Sequence[PathRule]) -> FilesPlan:
    for path in (*walk.grants, *walk.open_directories):
        _remember_way(walk, path)
    for rule in rules:
        if rule.effect is not Effect.ALLOW:
            for pattern in (rule.pattern, *rule.exceptions):
                _find_protected(walk, pattern)
    _visit(walk, "/", walk.automaton.start, Access.NONE, False, ())
    _mask_sockets(walk)
    if walk.missing:
        missing = ", ".join(sorted(set(walk.missing)))
        walk.gaps.append(f"not there yet, so it cannot be made inside; make it first if it is needed: {missing}")
    for path in sorted(walk.unscanned):
        walk.gaps.append(
            f"patterns with * or ** are not looked for below {path}; names there are not hidden one by one"
        )
    for path in sorted(walk.open_directories):
        walk.gaps.append(
            f"a protected name that is created directly in {path} while the session runs is reported, not stopped"
        )
    grants = [Grant(path, access) for path, access in _without_repeats(walk)]
    return FilesPlan(
        grants=tuple(grants),
        steps=tuple(sorted(walk.steps, key=lambda step: step.path.count("/") if step.path != "/" else 0)),
        open_directories=tuple(sorted(walk.open_directories)),
        gaps=tuple(walk.gaps),
        visited=walk.visited,
    )


def _mask_sockets(walk: _Walk) -> None:
    """Hide the sockets themselves: the network hook sees only the string a program gave, and a symlink could stand for it."""
    hidden = {step.path for step in walk.steps if step.op == "mask"}
    for path in walk.sockets:
        if not any(path == mask or path.startswith(mask + "/") for mask in hidden):
            walk.add(MountStep("mask", path))


def _without_repeats(walk: _Walk) -> Iterable[tuple[str, Access]]:
    """Grants that an ancestor does not hold already."""
    granted: dict[str, Access] = {}
    merged = dict(walk.grants)
    for path in walk.open_directories:
        merged[path] = merged.get(path, Access.NONE) | OPEN
    for path in sorted(merged):
        above = Access.NONE
        ancestor = path
        while ancestor != "/":
            ancestor = os.path.dirname(ancestor)
            above |= granted.get(ancestor, Access.NONE)
        if merged[path] & ~above:
            granted[path] = merged[path]
            yield path, merged[path]


def _remember_way(walk: _Walk, path: str) -> None:
    """Note every component on the way to `path`, so that the visit reaches it without listing directories."""
    while path != "/":
        parent, name = os.path.split(path)
        names = walk.wanted_children.setdefault(parent, set())
        if name in names:
            return
        names.add(name)
        path = parent


def _find_candidates(walk: _Walk, pattern: str) -> None:
    """Grant what the automaton allows on every existing path that `pattern` names."""
    base, rest = _split_literal(pattern)
    if not rest:
        _grant(walk, base)
    elif base != "/" and "**" not in rest and os.path.isdir(base) and not os.path.islink(base):
        _grant_below(walk, base, walk.automaton.walk(base), len(rest))


def _find_protected(walk: _Walk, pattern: str) -> None:
    """Remember the way to what a deny or readonly rule names, so that it is reached where directories are not listed."""
    base, rest = _split_literal(pattern)
    if not rest:
        _remember_way(walk, base)
    elif base != "/" and "**" not in rest and os.path.isdir(base) and not os.path.islink(base):
        _remember_matches(walk, base, walk.automaton.walk(base), len(rest))


def _remember_matches(walk: _Walk, directory: str, state: State, depth: int) -> None:
    here = walk.automaton.decision(state).allowed
    for entry in _entries(walk, directory):
        below = walk.automaton.child(state, entry.name)
        if walk.automaton.decision(below).allowed != here:
            _remember_way(walk, entry.path)
        if depth > 1 and entry.is_dir(follow_symlinks=False):
            _remember_matches(walk, entry.path, below, depth - 1)


def _split_literal(pattern: str) -> tuple[str, list[str]]:
    """`/a/b*/c` to (`/a`, [`b*`, `c`])."""
    base, rest = split_literal(pattern)
    return base, rest.split("/")[1:]


def _grant(walk: _Walk, path: str) -> None:
    if not os.path.lexists(path):
        return
    allowed = walk.automaton.decision(walk.automaton.walk(path)).allowed
    if allowed and os.path.realpath(path) == path:
        # A policy holds the canonical form of a rule beside it, so a path through a symlink needs no grant of its own.
        walk.grants[path] = walk.grants.get(path, Access.NONE) | allowed


def _grant_below(walk: _Walk, directory: str, state: State, depth: int) -> None:
    for entry in _entries(walk, directory):
        below = walk.automaton.child(state, entry.name)
        allowed = walk.automaton.decision(below).allowed
        if allowed and not entry.is_symlink():
            walk.grants[entry.path] = walk.grants.get(entry.path, Access.NONE) | allowed
        if depth > 1 and entry.is_dir(follow_symlinks=False):
            _grant_below(walk, entry.path, below, depth - 1)


def _find_open_directory(walk: _Walk, policy: Policy, rule: PathRule) -> None:
    """A write rule for names that do not exist yet needs their directory, inside the home only.

    The home itself is opened only for a rule that names siblings in it (`~/.agent.json*`): a shell start-up file that does
    not exist yet could be planted there.
    """
    if rule.effect is not Effect.ALLOW or not rule.access & Access.WRITE:
        return
    home = policy.user.home
    base, rest = _split_literal(rule.pattern)
    if not rest:
        if os.path.lexists(base):
            return
        missing, base = base, os.path.dirname(base)
        if _below(base, home) and (base == home or not os.path.isdir(base)):
            walk.missing.append(missing)
            return
    if rest[:1] == ["**"] or home == "/" or not _below(base, home):
        return
    if not os.path.isdir(base) or os.path.realpath(base) != base:
        return
    if Access.WRITE not in walk.automaton.decision(walk.automaton.walk(base)).allowed:
        walk.open_directories.add(base)


def _below(path: str, root: str) -> bool:
    return path == root or path.startswith(root + "/")


def _entries(walk: _Walk, directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return []
    walk.count(directory)
    walk.visited += len(found)
    return found


def _visit(walk: _Walk, path: str, state: State, above: Access, writable: bool, chain: tuple[str, ...]) -> None:
    """Compare what is granted at `path` with what the automaton allows there, and go on where it can differ.

    Args:
        above: what Landlock grants here because of ancestors.
        writable: whether the mount at this place is writable once all steps above have run.
        chain: directories between the last mount step and here; a protected place below pins them.
    """
    walk.count(path)
    opened = OPEN if path in walk.open_directories else Access.NONE
    granted = above | walk.grants.get(path, Access.NONE) | opened
    allowed = walk.automaton.decision(state).allowed | opened
    lost = granted & ~allowed
    mode = _mode(path)
    if mode is None:
        return
    is_directory = stat.S_ISDIR(mode)
    if Access.READ in lost:
        _mask(walk, path, state, is_directory)
        return
    # A device is written through a read-only mount as well; only its attributes are protected by it, and stay so.
    if Access.WRITE in allowed and not writable and (is_directory or stat.S_ISREG(mode)):
        walk.add(MountStep("rw", path, is_directory))
        writable, chain = True, ()
    elif Access.WRITE in lost and writable:
        _pin(walk, chain)
        walk.add(MountStep("ro", path, is_directory))
        writable, chain = False, ()
    if Access.EXECUTE in lost and Access.EXECUTE in above:
        walk.add(MountStep("noexec", path, is_directory))
        granted &= ~Access.EXECUTE
        chain = ()
    if is_directory:
        _visit_children(walk, path, state, granted, writable, (*chain, path) if writable else ())


def _mode(path: str) -> int | None:
    """None when it vanished or is a symlink (an object is judged where it is, not where a link to it is)."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return None
    return None if stat.S_ISLNK(mode) else mode


def _pin(walk: _Walk, chain: tuple[str, ...]) -> None:
    """Make every directory above a protected place a mount of its own: it cannot be renamed away and made anew."""
    for directory in chain[1:]:
        if directory not in walk.pinned:
            walk.pinned.add(directory)
            walk.add(MountStep("rw", directory, True))


def _visit_children(
    walk: _Walk, path: str, state: State, granted: Access, writable: bool, chain: tuple[str, ...]
) -> None:
    names: set[str] = set(walk.wanted_children.get(path, ()))
    listing = path in walk.open_directories
    if granted and not walk.automaton.uniform(state):
        special = walk.automaton.named_children(state)
        if special is not None:
            names |= special
        elif _inside(path, walk.scannable):
            listing = True
        else:
            walk.unscanned.add(_top(path))
    if listing:
        for entry in _entries(walk, path):
            if entry.is_symlink():
                _protect_link(walk, entry.path, walk.automaton.child(state, entry.name), writable)
                names.discard(entry.name)
            elif entry.name not in names:
                _visit_entry(walk, entry, state, granted, writable, chain)
    prefix = path if path != "/" else ""
    for name in sorted(names):
        _visit(walk, f"{prefix}/{name}", walk.automaton.child(state, name), granted, writable, chain)


def _visit_entry(
    walk: _Walk, entry: os.DirEntry[str], state: State, granted: Access, writable: bool, chain: tuple[str, ...]
) -> None:
    """The hot path of a large tree: skip at once what cannot differ from its directory."""
    below = walk.child(state, entry.name)
    same = granted == walk.automaton.decision(below).allowed
    # An equal state is known to be worth a visit: this directory is being listed because of it.
    if same and (not entry.is_dir(follow_symlinks=False) or (below != state and walk.automaton.uniform(below))):
        return
    _visit(walk, entry.path, below, granted, writable, chain)


def _inside(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(root + "/") for root in roots if root != "/")


def _top(path: str) -> str:
    return "/" + path.split("/")[1]


def _protect_link(walk: _Walk, path: str, state: State, writable: bool) -> None:
    """A symlink that may not be changed but lies in a writable directory: show its target, read-only, in its place."""
    if not writable or Access.WRITE in walk.automaton.decision(state).allowed:
        return
    target = os.path.realpath(path)
    if not os.path.isfile(target):
        walk.gaps.append(
            f"{path} is a symlink to something that is not a file; replacing the link is reported, not stopped"
        )
        return
    readable = Access.READ in walk.automaton.decision(walk.automaton.walk(target)).allowed
    walk.add(MountStep("link", path, False, target) if readable else MountStep("mask", path, False))


def _mask(walk: _Walk, path: str, state: State, is_directory: bool) -> None:
    """Hide `path`; below a hidden directory, what the automaton allows shows through."""
    if not is_directory:
        walk.add(MountStep("mask", path))
        return
    entries: list[MaskEntry] = []
    kept: list[tuple[str, State, bool]] = []
    if not walk.automaton.uniform(state) or path in walk.wanted_children:
        _mask_entries(walk, path, "", state, entries, kept)
    walk.add(MountStep("mask", path, True, entries=tuple(entries)))
    for child, below, writable in kept:
        _visit_kept(walk, child, below, writable)


def _mask_entries(
    walk: _Walk,
    root: str,
    relative: str,
    state: State,
    entries: list[MaskEntry],
    kept: list[tuple[str, State, bool]],
) -> None:
    directory = f"{root}/{relative}" if relative else root
    found = {entry.name: entry for entry in _entries(walk, directory) if not entry.is_symlink()}
    stand_ins = len(found) <= MAX_STAND_INS
    wanted = walk.wanted_children.get(directory, set())
    for name, entry in found.items():
        below = walk.automaton.child(state, name)
        allowed = walk.automaton.decision(below).allowed
        is_directory = entry.is_dir(follow_symlinks=False)
        inner = f"{relative}/{name}" if relative else name
        if Access.READ in allowed:
            writable = Access.WRITE in allowed
            entries.append(MaskEntry(inner, "keep-rw" if writable else "keep", is_directory))
            kept.append((entry.path, below, writable))
        elif is_directory and (not walk.automaton.uniform(below) or name in wanted):
            before = len(entries)
            entries.append(MaskEntry(inner, "way", True))
            _mask_entries(walk, root, inner, below, entries, kept)
            if not any(entry.kind.startswith("keep") for entry in entries[before:]):
                del entries[before:]
                entries.append(MaskEntry(inner, "dir", True))
        elif stand_ins:
            entries.append(MaskEntry(inner, "dir" if is_directory else "file", is_directory))


def _visit_kept(walk: _Walk, path: str, state: State, writable: bool) -> None:
    """What shows through a mask is an ordinary tree again."""
    allowed = walk.automaton.decision(state).allowed
    walk.grants[path] = walk.grants.get(path, Access.NONE) | allowed
    if not walk.automaton.uniform(state) and stat.S_ISDIR(_mode(path) or 0):
        _visit_children(walk, path, state, allowed, writable, (path,) if writable else ())


def terminal_progress(stream: Callable[[str], None], delay_s: float = 0.4) -> Progress:
    """A progress function that stays silent on short work and rewrites one line on long work."""
    started = time.monotonic()

    def show(visited: int, path: str) -> None:
        if time.monotonic() - started > delay_s:
            stream(f"\rmcpguard: looking at files to protect: {visited} names, {path[-40:]:<40}")

    return show
