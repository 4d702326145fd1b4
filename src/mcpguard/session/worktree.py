"""A workspace that is a linked git worktree keeps its commits in another directory: the rules that this needs.

The file `.git` of such a workspace is in the agent's reach, so it is believed only when the repository that it names
points back to it: that half lies where an agent could not write in an earlier session. Reads as the user; runs no git.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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

    own: Path
    common: Path


def worktree_rules(profile: Profile, workspace: str) -> list[FileRule]:
    """Rules for the repository of a linked worktree, when the profile lets the agent write the whole workspace."""
    from mcpguard.policy.patterns import quote

    if not any(rule.pattern == "{workspace}" and rule.access & Access.WRITE for rule in profile.files):
        return []
    found = repository(Path(workspace))
    if found is None:
        return []
    protected = ("hooks", "config", "config.worktree", "modules/**/hooks", "modules/**/config")
    names = [f"{quote(str(found.common))}/{name}" for name in protected]
    names += [f"{quote(str(found.own))}/{name}" for name in ("config.worktree", "gitdir", "commondir")]
    pointer = Path(workspace) / ".git"
    return [
        _rule(Effect.ALLOW, Access.READ | Access.WRITE, quote(str(found.common)), pointer),
        *_readonly([*names, quote(str(pointer))], pointer),
    ]


def repository(workspace: Path) -> Repository | None:
    """The repository of a linked worktree; None when the workspace is none, or when the two do not name each other."""
    pointer = workspace / ".git"
    text = _one_line(pointer)
    if pointer.is_symlink() or text is None or not text.startswith(_POINTER):
        return None
    place = _real(workspace / text.removeprefix(_POINTER))
    if place is None:
        return None
    own, common = place, place.parent.parent
    back = _one_line(own / "gitdir")
    up = _one_line(own / "commondir")
    if own.parent.name != "worktrees" or back is None or up is None:
        return None
    mutual = _real(own / back) == _real(pointer) and _real(own / up) == common
    return Repository(own, common) if mutual and (common / "HEAD").is_file() else None


def _real(path: Path) -> Path | None:
    found = real_path(str(path))
    return None if found is None else Path(found)


def _one_line(path: Path) -> str | None:
    """The only line of a small file; None for anything else."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_POINTER:
            return None
        # As bytes, and without what git takes off: in text mode a carriage return inside would end the line.
        text = path.read_bytes().decode("utf-8", "surrogateescape").rstrip("\r\n")
    except OSError:
        return None
    return text if text and "\n" not in text and "\0" not in text else None


def _readonly(patterns: Iterable[str], pointer: Path) -> list[FileRule]:
    return [_rule(Effect.READONLY, Access.WRITE, pattern, pointer) for pattern in patterns]


def _rule(effect: Effect, access: Access, pattern: str, pointer: Path) -> FileRule:
    word = "write" if effect is Effect.ALLOW else "readonly"
    origin = Origin("git worktree", str(pointer), 1, f"{word} {pattern}")
    return FileRule(effect, access, pattern, origin, because="" if effect is Effect.ALLOW else _BECAUSE)
