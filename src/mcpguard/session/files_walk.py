"""Comparing what is granted with what the automaton allows, place by place, and making a mount step where they differ.

Reads the file system as the user; changes nothing. A symlink is never followed: an object is judged where it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from mcpguard.kernel.resolve import real_path
from mcpguard.model.access import Access
from mcpguard.model.paths import is_below
from mcpguard.model.plan import MaskEntry, MountStep
from mcpguard.policy.automaton import State
from mcpguard.session.files_state import MAX_STAND_INS, OPEN, Met, Walk, kind_of, listed, looked_at, too_deep

# An exception further down in a hidden directory stays hidden with it.
MAX_SHOWN_DEPTH = 64


def visit(walk: Walk) -> None:
    """Compare what is granted with what the automaton allows, from the root on, and go on where it can differ.

    Never by recursion: how deep a tree goes is up to who made it.
    """
    walk.waiting.append(("/", walk.automaton.start, Access.NONE, False, ()))
    while walk.waiting:
        _visit(walk, *walk.waiting.pop())


def _visit(walk: Walk, path: str, state: State, above: Access, writable: bool, chain: tuple[str, ...]) -> None:
    """One place; the fields of `Place`."""
    walk.count(path)
    opened = OPEN if path in walk.open_directories else Access.NONE
    granted = above | walk.grants.get(path, Access.NONE) | opened
    allowed = walk.automaton.allowed(state) | opened
    lost = granted & ~allowed
    # What no rule names is met once, and not kept.
    kind = walk.kinds[path] if path in walk.kinds else kind_of(path)
    if kind is None or kind == stat.S_IFLNK:  # an object is judged where it is, not where a link to it is
        return
    is_directory = kind == stat.S_IFDIR
    if Access.READ in lost:
        _mask(walk, path, state, is_directory)
        return
    # A device is written through a read-only mount as well; only its attributes are protected by it, and stay so.
    if Access.WRITE in allowed and not writable and kind in (stat.S_IFDIR, stat.S_IFREG):
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


def _pin(walk: Walk, chain: tuple[str, ...]) -> None:
    """Make every directory above a protected place a mount of its own: it cannot be renamed away and made anew."""
    for directory in chain[1:]:
        if directory not in walk.pinned:
            walk.pinned.add(directory)
            walk.add(MountStep("rw", directory, True))


def _visit_children(
    walk: Walk, path: str, state: State, granted: Access, writable: bool, chain: tuple[str, ...]
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
    if granted and (names or listing) and (why := _out_of_sight(path)):
        walk.hide(path, why)
        return
    entries = _children(walk, path, state) if listing else []
    if path in walk.unlistable and granted:
        # What it hides from this look could be opened by name.
        walk.hide(path, "cannot be listed")
        return
    # The hot path of a large tree: most entries have one state, and what cannot differ from its directory is skipped at once.
    last, files, directories = None, True, True
    for entry, below in entries:
        if below is not last:
            last, (files, directories) = below, _worth_a_visit(walk, state, below, granted)
        if entry.is_symlink():
            _protect_link(walk, entry.path, below, writable)
            names.discard(entry.name)
        elif (files or (directories and entry.is_dir(follow_symlinks=False))) and entry.name not in names:
            walk.waiting.append((entry.path, below, granted, writable, chain))
    prefix = path if path != "/" else ""
    for name in sorted(names):
        below = walk.automaton.child(state, name)
        walk.waiting.append((f"{prefix}/{name}", below, granted, writable, chain))


def _out_of_sight(path: str) -> str | None:
    """Why what lies in a directory cannot be looked at, though the agent could reach it."""
    if too_deep(path):
        return "lies too deep to be looked at"
    if os.access(path, os.X_OK):
        return None
    # Its owner is who the agent runs as, and can open it again.
    mine = _owner(path) == os.getuid()
    return "is closed to its owner (chmod u+rx it)" if mine else None


def _owner(path: str) -> int | None:
    try:
        return os.lstat(path).st_uid
    except OSError:
        return None


def _children(walk: Walk, path: str, state: State) -> Iterable[Met]:
    """What lies in a directory; it is not looked at again if it was before, and not kept."""
    return walk.met[path] if path in walk.met else looked_at(walk, path, state)


def _worth_a_visit(walk: Walk, state: State, below: State, granted: Access) -> tuple[bool, bool]:
    """Whether files, and directories, with the state `below` can differ from the directory with `state` that they lie in."""
    if granted != walk.automaton.allowed(below):
        return True, True
    # An equal state is known to be worth a visit: this directory is being listed because of it.
    return False, below == state or not walk.automaton.uniform(below)


def _inside(path: str, roots: tuple[str, ...]) -> bool:
    return any(is_below(path, root) for root in roots if root != "/")


def _top(path: str) -> str:
    return "/" + path.split("/")[1]


def _protect_link(walk: Walk, path: str, state: State, writable: bool) -> None:
    """A symlink that may not be changed but lies in a writable directory: show its target, read-only, in its place."""
    if not writable or Access.WRITE in walk.automaton.allowed(state):
        return
    target = real_path(path)
    if target is None or not os.path.isfile(target):
        walk.gaps.append(
            f"{path} is a symlink to something that is not a file; replacing the link is reported, not stopped"
        )
        return
    readable = Access.READ in walk.automaton.allowed(walk.automaton.walk(target))
    walk.add(MountStep("link", path, False, target) if readable else MountStep("mask", path, False))


def _mask(walk: Walk, path: str, state: State, is_directory: bool) -> None:
    """Hide `path`; below a hidden directory, what the automaton allows shows through."""
    # What only the default hides, in a directory that is open for new names, may come and go while we look.
    op = "mask" if walk.automaton.decision(state).read_rule else "hide"
    if not is_directory:
        walk.add(MountStep(op, path))
        return
    entries: list[MaskEntry] = []
    kept: list[tuple[str, State, bool]] = []
    if not walk.automaton.uniform(state) or path in walk.wanted_children:
        _mask_entries(walk, path, "", state, entries, kept)
    walk.add(MountStep(op, path, True, entries=tuple(entries)))
    for child, below, writable in kept:
        _visit_kept(walk, child, below, writable)


def _mask_entries(
    walk: Walk,
    root: str,
    relative: str,
    state: State,
    entries: list[MaskEntry],
    kept: list[tuple[str, State, bool]],
) -> None:
    directory = f"{root}/{relative}" if relative else root
    found = {entry.name: entry for entry in listed(walk, directory) if not entry.is_symlink()}
    stand_ins = len(found) <= MAX_STAND_INS
    wanted = walk.wanted_children.get(directory, set())
    for name, entry in found.items():
        below = walk.automaton.child(state, name)
        allowed = walk.automaton.allowed(below)
        is_directory = entry.is_dir(follow_symlinks=False)
        inner = f"{relative}/{name}" if relative else name
        if Access.READ in allowed:
            writable = Access.WRITE in allowed
            entries.append(MaskEntry(inner, "keep-rw" if writable else "keep", is_directory))
            kept.append((entry.path, below, writable))
        elif is_directory and (not walk.automaton.uniform(below) or name in wanted) and not _too_far(root, inner):
            before = len(entries)
            entries.append(MaskEntry(inner, "way", True))
            _mask_entries(walk, root, inner, below, entries, kept)
            if not any(entry.kind.startswith("keep") for entry in entries[before:]):
                del entries[before:]
                entries.append(MaskEntry(inner, "dir", True))
        elif stand_ins:
            entries.append(MaskEntry(inner, "dir" if is_directory else "file", is_directory))


def _too_far(root: str, inner: str) -> bool:
    return inner.count("/") >= MAX_SHOWN_DEPTH or too_deep(f"{root}/{inner}")


def _visit_kept(walk: Walk, path: str, state: State, writable: bool) -> None:
    """What shows through a mask is an ordinary tree again."""
    allowed = walk.automaton.allowed(state)
    walk.grants[path] = walk.grants.get(path, Access.NONE) | allowed
    if not walk.automaton.uniform(state) and kind_of(path) == stat.S_IFDIR:
        _visit_children(walk, path, state, allowed, writable, (path,) if writable else ())
