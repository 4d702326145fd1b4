"""A workspace that is a linked git worktree keeps its commits in another directory: the rules that this needs.

The file `.git` of such a workspace is in the agent's reach, so it is believed only when the repository that it names
points back to it: that half lies where an agent could not write in an earlier session. Reads as the user; runs no git.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from mcpguard.kernel.resolve import real_path
from mcpguard.model.access import Access, Effect
from mcpguard.model.profile import Profile
from mcpguard.model.rule import FileRule, Origin
from mcpguard.model.values import dataclass

_POINTER = "gitdir: "
_MAX_POINTER = 8192
_BECAUSE = "git runs programs that it names"


@dataclass(frozen=True, slots=True)
class Repository:
    """Where a linked worktree keeps what: `own` its index and HEAD, `common` objects, branches, settings and hooks."""

    own: str
    common: str


def worktree_rules(profile: Profile, workspace: str) -> list[FileRule]:
    """Rules for the repository of a linked worktree, when the profile lets the agent write the whole workspace."""
    from mcpguard.policy.patterns import quote

    if not any(rule.pattern == "{workspace}" and rule.access & Access.WRITE for rule in profile.files):
        return []
    found = repository(workspace)
    if found is None:
        return []
    protected = ("hooks", "config", "config.worktree", "modules/**/hooks", "modules/**/config")
    names = [f"{quote(found.common)}/{name}" for name in protected]
    names += [f"{quote(found.own)}/{name}" for name in ("config.worktree", "gitdir", "commondir")]
    pointer = f"{workspace}/.git"
    return [
        _rule(Effect.ALLOW, Access.READ | Access.WRITE, quote(found.common), pointer),
        *_readonly([*names, quote(pointer)], pointer),
    ]


def repository(workspace: str) -> Repository | None:
    """The repository of a linked worktree; None when the workspace is none, or when the two do not name each other."""
    pointer = f"{workspace}/.git"
    text = _one_line(pointer)
    if os.path.islink(pointer) or text is None or not text.startswith(_POINTER):
        return None
    own = real_path(os.path.join(workspace, text.removeprefix(_POINTER)))
    if own is None:
        return None
    parent = os.path.dirname(own)
    common = os.path.dirname(parent)
    back = _one_line(f"{own}/gitdir")
    up = _one_line(f"{own}/commondir")
    if os.path.basename(parent) != "worktrees" or back is None or up is None:
        return None
    mutual = real_path(os.path.join(own, back)) == real_path(pointer) and real_path(os.path.join(own, up)) == common
    return Repository(own, common) if mutual and os.path.isfile(f"{common}/HEAD") else None


def _one_line(path: str) -> str | None:
    """The only line of a small file; None for anything else."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode) or state.st_size > _MAX_POINTER:
            return None
        # As bytes, and without what git takes off: in text mode a carriage return inside would end the line.
        with open(path, "rb") as file:
            text = file.read().decode("utf-8", "surrogateescape").rstrip("\r\n")
    except OSError:
        return None
    return text if text and "\n" not in text and "\0" not in text else None


def _readonly(patterns: Iterable[str], pointer: str) -> list[FileRule]:
    return [_rule(Effect.READONLY, Access.WRITE, pattern, pointer) for pattern in patterns]


def _rule(effect: Effect, access: Access, pattern: str, pointer: str) -> FileRule:
    word = "write" if effect is Effect.ALLOW else "readonly"
    origin = Origin("git worktree", pointer, 1, f"{word} {pattern}")
    return FileRule(effect, access, pattern, origin, because="" if effect is Effect.ALLOW else _BECAUSE)
