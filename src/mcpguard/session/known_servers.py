"""Approved MCP servers whose needs are known: they are kept to a small profile of ours where no rule names them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping

from mcpguard.catalogue.approved import Catalogue
from mcpguard.kernel import landlock
from mcpguard.mcp import classes
from mcpguard.mcp.policy import Kept, McpPolicy, server_word
from mcpguard.model.paths import is_below
from mcpguard.model.rule import CONFINES, Origin

# What installs them where the profile expects their programs.
_RUNNERS = ("npx", "uvx")
# Each takes a leaf of the session's.
_MOST = 8


def kept(rules: McpPolicy, catalogue: Catalogue, names: Collection[str] | None, workspace: str) -> list[Kept]:
    """What `mcp.confine` would say of them.

    Args:
        names: of the servers that the agent may start; None: nobody knows.
        workspace: absolute.
    """
    if landlock.abi() < 1:  # files are taken away with it
        return []
    wanted: dict[str, set[str | None]] = {}
    for entry in catalogue.entries:
        wanted.setdefault(server_word(entry.name), set()).add(kept_to(entry.facts, workspace))
    words = wanted.keys() if names is None else {server_word(name) for name in names}
    found = []
    for word, profiles in sorted(wanted.items()):
        profile, *others = profiles
        if word in words and profile and not others and not rules.keeps(word):
            origin = Origin("mcpguard", "builtin", 0, f"{CONFINES} {word} {profile}: a known server")
            found.append(Kept(word, profile, origin))
    return found[:_MOST]


def kept_to(facts: Mapping[str, str], workspace: str | None = None) -> str | None:
    """Name of the profile for a server as it was approved; None: none is known, or it names a place outside of the workspace.

    Args:
        facts: of its identity.
        workspace: None: any.
    """
    runner, name, *_ = (*facts.get("package", "").split(), "", "")
    if runner not in _RUNNERS or "installed" not in facts:
        return None
    if workspace is not None and not all(_is_inside(word, workspace, facts) for word in _words(facts["command"])):
        return None
    return classes.kept_to(name)


def _words(command: str) -> Iterator[str]:
    """The words behind the first. They were joined without quotes: one that names no place by itself may be the rest of the
    one before, so it is told as both."""
    before = ""
    for word in command.split()[1:]:
        yield word
        if before and not word.startswith(("/", ".", "~", "-")):
            before = f"{before} {word}"
            yield before
        else:
            before = word if "/" in word or word.startswith((".", "~")) else ""


def _is_inside(word: str, workspace: str, facts: Mapping[str, str]) -> bool:
    """Whether a word of a command names no place, or one in the workspace. What an agent puts into a word, and what begins at
    another folder, nobody knows here."""
    value = word.partition("=")[2] if word.startswith("-") else word
    if "$" in value or "%" in value:
        return False
    path = os.path.join(workspace, os.path.expanduser(value))
    if not value.startswith(("/", ".", "~")) and not os.path.lexists(path):
        return True
    root = os.path.realpath(workspace)
    return "folder" not in facts and is_below(os.path.realpath(path), root)
