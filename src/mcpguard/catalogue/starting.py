"""What a declared server would start with, and so what it is.

Variables are put in as its client would do it; of the user's environment a server gets what it needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mcpguard.catalogue import identity
from mcpguard.catalogue.clients import belongs
from mcpguard.catalogue.identity import Identity
from mcpguard.catalogue.server import REMOTE, STDIO, Server

# Of the user's environment; what else a server needs, its configuration names.
PASSED = ("HOME", "PATH", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TERM", "TMPDIR", "TZ")
# `${NAME}`, `${NAME:-default}`, `${env:NAME}`, `{env:NAME}`, and `$NAME` where it is the whole text.
_VARIABLE = re.compile(r"\$\{(?:env:)?(\w+)(?::-([^}]*))?\}|\{env:(\w+)\}|\A\$(\w+)\Z")
_OPEN = re.compile(r"\$\{[^}]*\}|\{env:[^}]*\}")


def identify(server: Server, environment: Mapping[str, str], project: Path) -> Identity | None:
    """The identity of a declared server; None of one that is part of its client, or neither a command nor a URL.

    Args:
        environment: the user's.
        project: the folder that the client would run in.
    """
    if server.kind not in (STDIO, REMOTE):
        return None
    known = {**environment, **_places(server, project)}
    if server.kind == REMOTE:
        return identity.of_remote(expanded(server.url, known))
    command = expanded(server.command, known)
    args = [expanded(arg, known) for arg in server.args]
    declared = {f"variable {name}": text for name, text in server.env.items()}
    if server.cwd:
        declared["folder"] = server.cwd
    start = start_environment(server, environment)
    return identity.of(command, args, start, str(folder(server, environment, project)), declared)


def folder(server: Server, environment: Mapping[str, str], project: Path) -> Path:
    """Where a local server is started; the arguments as for `identify`."""
    cwd = expanded(server.cwd, {**environment, **_places(server, project)})
    if cwd == "~" or cwd.startswith("~/"):
        cwd = environment.get("HOME", "") + cwd[1:]
    return Path(_base(server, project), cwd)


def start_environment(server: Server, environment: Mapping[str, str]) -> dict[str, str]:
    """PASSED of the user's environment, and what the configuration of the server declares."""
    passed = {name: environment[name] for name in PASSED if name in environment}
    return passed | {name: expanded(text, environment) for name, text in server.env.items()}


def expanded(text: str, known: Mapping[str, str]) -> str:
    """The text with the variables that are known; others stay as they are written."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[3] or found[4]
        return known.get(name) or (found[0] if found[2] is None else found[2])

    return _VARIABLE.sub(value, text.replace("${/}", "/"))


def unknown(server: Server, environment: Mapping[str, str], project: Path) -> tuple[str, ...]:
    """Interpolations in its words that only its client knows: `${input:token}`."""
    known = {**environment, **_places(server, project)}
    words = (*server.words, server.cwd, server.url)
    return tuple(dict.fromkeys(found for word in words for found in _OPEN.findall(expanded(word, known))))


def _base(server: Server, project: Path) -> str:
    """Where its client runs: here, or in the other project that a server is declared for."""
    return str(project) if belongs(server, project) else server.project


def _places(server: Server, project: Path) -> dict[str, str]:
    """Names that clients have for places."""
    own = str(Path(server.file).parent)
    return {
        **{name: _base(server, project) for name in ("workspaceFolder", "workspacePath", "CLAUDE_PROJECT_DIR")},
        **dict.fromkeys(("extensionPath", "CLAUDE_PLUGIN_ROOT"), own),
    }
