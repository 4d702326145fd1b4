"""The folder that the workspace's own repository takes its hooks from, where its settings name another than `.git/hooks`.

Reads git's settings as the user and runs no git. What settings include from other files is not followed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mcpguard.model.access import Access, Effect
from mcpguard.model.paths import is_below
from mcpguard.model.rule import FileRule, Origin
from mcpguard.session.worktree import repository

_MAX_SETTINGS = 1 << 20
_SECTION = re.compile(r'\[\s*([\w.-]+)\s*(?:"((?:[^"\\]|\\.)*)")?\s*\]')
# A backslash at the end of a line, which is not escaped itself.
_CONTINUED = re.compile(r"(?<!\\)((?:\\\\)*)\\\n")


def hooks_folder(workspace: str, home: str) -> str:
    """Where `core.hooksPath` leads, when that is inside the workspace; empty otherwise."""
    folder = Path(workspace)
    linked = repository(folder)
    own = (linked.common if linked else folder / ".git") / "config"
    if not own.is_file():
        return ""
    shared = Path(os.environ.get("XDG_CONFIG_HOME") or f"{home}/.config", "git/config")
    for file in (own, Path(home, ".gitconfig"), shared, Path("/etc/gitconfig")):
        named = _hooks_path(file)
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


def _hooks_path(file: Path) -> str | None:
    """The last `core.hooksPath` of one file; None where there is none."""
    try:
        if not file.is_file() or file.stat().st_size > _MAX_SETTINGS:
            return None
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return next((value for key, value in reversed(settings(text)) if key == "core.hookspath"), None)


def settings(text: str) -> list[tuple[str, str]]:
    """Keys in small letters, as in `core.hookspath` or `alias.x`, with their values; what cannot be read is passed over."""
    section, found = "", []
    for line in map(str.strip, _CONTINUED.sub(r"\1", text).splitlines()):
        if head := _SECTION.match(line):
            section = ".".join(part for part in head.groups() if part)
            line = line[head.end() :]
        key, _, value = line.partition("=")
        if key.strip() and not key.lstrip().startswith(("#", ";")):
            found.append((f"{section}.{key.strip()}".lower(), _plain(value.strip())))
    return found


def _plain(value: str) -> str:
    """A value without quotes, escapes and the comment behind it; source: git-config(1), "Syntax"."""
    text, quoted, kept = "", False, 0
    characters = iter(value)
    for character in characters:
        if character == '"':
            quoted = not quoted
            kept = len(text)
            continue
        if character in "#;" and not quoted:
            break
        text += next(characters, "") if character == "\\" else character
        if quoted or not character.isspace():
            kept = len(text)
    return text[:kept]
