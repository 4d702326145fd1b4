"""The folder that the workspace's own repository takes its hooks from, where its settings name another than `.git/hooks`.

Reads git's settings as the user and runs no git. What settings include from other files is not followed.
"""

from __future__ import annotations

import os
from pathlib import Path

from mcpguard.model.access import Access, Effect
from mcpguard.model.paths import is_below
from mcpguard.model.rule import FileRule, Origin
from mcpguard.session.worktree import repository

_MAX_SETTINGS = 1 << 20


def hooks_folder(workspace: str, home: str) -> str:
    """Where `core.hooksPath` leads, when that is inside the workspace; empty otherwise."""
    folder = Path(workspace)
    linked = repository(folder)
    own = (linked.common if linked else folder / ".git") / "config"
    if not own.is_file():
        return ""
    shared = Path(os.environ.get("XDG_CONFIG_HOME") or f"{home}/.config", "git/config")
    for settings in (own, Path(home, ".gitconfig"), shared, Path("/etc/gitconfig")):
        named = _hooks_path(settings)
        if named is not None:
            place = os.path.normpath(home + named[1:] if named.startswith("~/") else folder / named)
            return place if place != workspace and is_below(place, workspace) else ""
    return ""


def hook_rules(workspace: str, home: str) -> list[FileRule]:
    """What keeps the hooks there as they are."""
    place = hooks_folder(workspace, home)
    if not place:
        return []
    from mcpguard.policy.patterns import quote

    origin = Origin("git settings", "core.hooksPath", 0, f"readonly {{workspace}}{place.removeprefix(workspace)}")
    because = "git runs hooks on the user's next commit"
    return [FileRule(Effect.READONLY, Access.WRITE, quote(place), origin, because=because)]


def _hooks_path(settings: Path) -> str | None:
    """The last `core.hooksPath` of one file; None where there is none."""
    try:
        if not settings.is_file() or settings.stat().st_size > _MAX_SETTINGS:
            return None
        lines = settings.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    section, found = "", None
    for line in map(str.strip, lines):
        if line.startswith("["):
            section, _, line = line[1:].partition("]")
        key, _, value = line.partition("=")
        if section.strip().lower() == "core" and key.strip().lower() == "hookspath":
            found = value.strip().strip('"')
    return found
