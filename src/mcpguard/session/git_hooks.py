"""The folder that the workspace's own repository takes its hooks from, where its settings name another than `.git/hooks`.

Reads git's settings as the user and runs no git. What settings include from other files is not followed.
"""

from __future__ import annotations

import os
import stat

from mcpguard.model.access import Access, Effect
from mcpguard.model.paths import is_below
from mcpguard.model.rule import FileRule, Origin
from mcpguard.session.worktree import repository

_MAX_SETTINGS = 1 << 20


def hooks_folder(workspace: str, home: str) -> str:
    """Where `core.hooksPath` leads, when that is inside the workspace; empty otherwise."""
    linked = repository(workspace)
    own = _text(f"{linked.common if linked else f'{workspace}/.git'}/config")
    if own is None:
        return ""
    from mcpguard.session.git_settings import is_true, value_of  # a workspace without a repository needs no reader

    further = is_true(value_of("extensions.worktreeconfig", own))
    of_this_tree = f"{linked.own if linked else f'{workspace}/.git'}/config.worktree"
    shared = f"{os.environ.get('XDG_CONFIG_HOME') or f'{home}/.config'}/git/config"
    others = map(_text, (f"{home}/.gitconfig", shared, "/etc/gitconfig"))
    for text in (_text(of_this_tree) if further else None, own, *others):
        named = value_of("core.hookspath", text) if text is not None else None
        if named is not None:
            place = os.path.normpath(home + named[1:] if named.startswith("~/") else os.path.join(workspace, named))
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


def _text(path: str) -> str | None:
    """What is in a file of settings; None where there is none that can be read."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode) or state.st_size > _MAX_SETTINGS:
            return None
        # As bytes: in text mode a lone carriage return would end a line, and for git it does not.
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    except OSError:
        return None
