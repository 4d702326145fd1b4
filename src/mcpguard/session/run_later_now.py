"""What is in a file that could run later, as it is now: hooks, settings that run programs, scripts, servers.

Reads as the user and runs nothing of the file's. Whoever was guarded wrote what is read here, so it is bounded, no symlink is
followed, and every word of it is told as text only.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mcpguard.events.format import printable
from mcpguard.session.git_settings import is_true, settings, value_of
from mcpguard.session.run_later import (
    AGENT_HOOKS,
    CACHED,
    EDITORS,
    HOOKS,
    PACKAGES,
    PYTHON,
    REPOSITORY,
    SERVERS,
    SETTINGS,
    Later,
)

_MOST_BYTES = 1 << 20
_MOST = 6
_WIDTH = 100
GONE = "no longer there"
ELSEWHERE = "a symlink leads elsewhere; not looked at"
LONG = "longer than what was looked at; look for yourself"
_ONLY_NEW = "what was there before was not changed"
UNREADABLE = "it could not be read as JSON; look for yourself"
# Settings of git whose value is a program, a script, or more settings.
_RUNS = re.compile(
    r"core\.(hookspath|fsmonitor|sshcommand|pager|editor|askpass|gitproxy|attributesfile|alternaterefscommand)"
    r"|(filter\..*\.(clean|smudge|process))|(diff\.external|diff\..*\.(command|textconv))|merge\..*\.driver"
    r"|(merge|diff)tool\..*\.(cmd|path)|credential\.(.*\.)?helper|gpg\.(.*\.)?program|sequence\.editor|pager\..*"
    r"|include(if\..*)?\.path|remote\..*\.(uploadpack|receivepack|vcs)|uploadpack\.packobjectshook|interactive\.difffilter"
    r"|man\..*\.cmd|browser\..*\.cmd|web\.browser|sendemail\..*cmd|trailer\..*\.(command|cmd)|url\..*\.(push)?insteadof"
    r"|gc\.recentobjectshook|protocol\..*|tar\..*\.command|instaweb\..*|imap\.tunnel|submodule\..*\.update"
    r"|hook\..*\.command|gpg\.ssh\.defaultkeycommand|init\.templatedir|guitool\..*\.cmd"
)
# More settings come from the files that these name.
_INCLUDES = re.compile(r"include(if\..*)?\.path")
_SERVERS = ("mcpServers", "mcp_servers", "servers", "context_servers", "mcp", "amp.mcpServers")


def now(later: Later) -> str:
    """One line about it; empty where nothing more is to be said."""
    if later.kind == CACHED:
        return f"changed of what was there before: {_named(later.changed)}" if later.changed else _ONLY_NEW
    if later.kind == REPOSITORY.kind:
        return _repository(later.path)
    text = read_plain(later.path)
    if text is None:
        return _missing(later.path)
    teller = _TELLERS.get(later.kind)
    return _and_more(teller(later.path, text), text) if teller else ""


def _and_more(told: str, text: str) -> str:
    """What was told of the beginning of a file is not all when there is more of it."""
    cut = len(text.encode("utf-8", "surrogateescape")) >= _MOST_BYTES
    return "; ".join(filter(None, (told, LONG if cut else "")))


def read_plain(path: str) -> str | None:
    """The beginning of a plain file; None where it is none, cannot be read, or its name leads somewhere else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError):
        return None
    try:
        if (
            not stat.S_ISREG(os.fstat(descriptor).st_mode)
            or str(Path(f"/proc/self/fd/{descriptor}").readlink()) != path
        ):
            return None
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", "surrogateescape")
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _missing(path: str) -> str:
    if not os.path.lexists(path):
        return GONE
    return ELSEWHERE if os.path.realpath(path) != path else ""


def _repository(path: str) -> str:
    folder = f"{path}/.git"
    if not os.path.lexists(folder) and read_plain(f"{path}/HEAD") is not None:
        folder = path  # a bare one
    if os.path.realpath(folder) != folder or not Path(folder).is_dir():
        text = read_plain(folder)
        return _missing(folder) if text is None else _git_settings(folder, text)
    found = _of_repository(folder)
    if os.path.realpath(f"{folder}/hooks") != f"{folder}/hooks":
        return "; ".join([*found, "its hooks lead elsewhere; not looked at"])
    with suppress(OSError), os.scandir(f"{folder}/hooks") as entries:
        names = [entry.name for entry, _ in zip(entries, range(1000), strict=False)]
        hooks = [name for name in sorted(names) if not name.endswith(".sample")]
        if hooks:
            found.append("hooks " + _named(hooks))
    return "; ".join(found) or "no hook, and no setting that runs a program, was found in it"


def _of_repository(folder: str) -> list[str]:
    """What its settings say, and which of them lie in files that were not looked at."""
    found = []
    common = read_plain(f"{folder}/commondir")
    if common is not None:
        found.append(
            f"git takes its settings and hooks from elsewhere, look there: commondir {_named([common.rstrip()])}"
        )
    elif os.path.lexists(f"{folder}/commondir"):
        found.append("commondir leads git to settings and hooks elsewhere; not looked at")
    for name in ("config", "config.worktree"):
        file = f"{folder}/{name}"
        text = read_plain(file)
        if text is not None:
            found.append(_and_more(_git_settings(file, text), text))
        elif os.path.lexists(file):
            found.append(f"{name}: not looked at; look for yourself")
    return list(filter(None, found))


def _git_settings(path: str, text: str) -> str:
    if path.endswith("/.git") and text.startswith("gitdir:"):
        return _named([text.rstrip("\r\n")])
    values = settings(text)
    met = [
        f"{key} = {value}"
        for key, value in values
        if _RUNS.fullmatch(key) or (key.startswith("alias.") and value.lstrip(" \t\r\n").startswith("!"))
    ]
    told = [_named(met)] if met else []
    if any(_INCLUDES.fullmatch(key) for key, _ in values):
        told.append("more settings come from what it includes; look there too")
    if is_true(value_of("extensions.worktreeconfig", text)):
        told.append("more settings come from config.worktree; look there too")
    return "; ".join(told)


def _servers(_path: str, text: str) -> str:
    found: list[str] = []
    data = _json(text)
    for key in _SERVERS:
        servers = data.get(key)
        if key == "mcp" and isinstance(servers, dict) and isinstance(servers.get("servers"), dict):
            servers = servers["servers"]
        if isinstance(servers, dict):
            found += [f"{name}: {_command(server)}" for name, server in servers.items()]
    return _named(found)


def _command(server: object) -> str:
    if not isinstance(server, dict):
        return "?"
    command = server.get("command") or server.get("url") or server.get("httpUrl") or server.get("serverUrl") or "?"
    words = command if isinstance(command, list) else [command, *_list(server.get("args"))]
    return " ".join(map(str, words[:8]))


def _agent_hooks(_path: str, text: str) -> str:
    hooks = _json(text).get("hooks")
    return "hooks for " + _named(list(hooks)) if isinstance(hooks, dict) and hooks else ""


def _tasks(_path: str, text: str) -> str:
    """What an editor runs as soon as the folder is opened."""
    tasks = [task for task in _list(_json(text).get("tasks")) if isinstance(task, dict)]
    at_once = [task for task in tasks if "folderOpen" in str(task.get("runOptions"))]
    words = [str(task.get("command") or task.get("label") or "?") for task in at_once]
    return "runs when the folder is opened: " + _named(words) if words else ""


def _lines_that_run(path: str, text: str) -> str:
    if not path.endswith(".pth"):
        return ""
    # As Python itself: older ones end a line at fewer characters, so this finds more. A byte order mark is skipped.
    lines = [line for line in text.removeprefix("\ufeff").splitlines() if line.startswith(("import ", "import\t"))]
    return "runs " + _named(lines) if lines else "only adds folders"


def scripts_since(path: str, before: bytes | None) -> str:
    """The scripts of a package that are not as they were; `before` is the committed file, None: there was none."""
    text = read_plain(path)
    if text is None:
        return _missing(path)
    old = _scripts_of(before.decode("utf-8", "surrogateescape")) if before is not None else {}
    if not _json(text):
        return UNREADABLE
    new = _scripts_of(text)
    changed = _named(f"{name}: {new[name]}" for name in new if name not in old or old[name] != new[name])
    if before is None:
        return f"not in the last commit; {changed}" if changed else "not in the last commit"
    return f"since the last commit: {changed}" if changed else "no script is new since the last commit"


def _scripts(_path: str, text: str) -> str:
    if not _json(text):
        return UNREADABLE
    return _named(f"{name}: {command}" for name, command in _scripts_of(text).items())


def _scripts_of(text: str) -> Mapping[str, Any]:
    scripts = _json(text).get("scripts")
    return scripts if isinstance(scripts, dict) else {}


def _is_program(path: str, _text: str) -> str:
    with suppress(OSError):
        return "" if os.lstat(path).st_mode & 0o111 else "not executable"
    return ""


def _json(text: str) -> Mapping[str, Any]:
    with suppress(ValueError, RecursionError):
        found = json.loads(text.removeprefix("\ufeff"))  # npm and its like skip the mark
        return found if isinstance(found, dict) else {}
    return {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _named(words: Iterable[str]) -> str:
    """A few of them, each on one line and not long."""
    found = [printable(word if len(word) <= _WIDTH else f"{word[:_WIDTH]}...") for word in words]
    more = f", and {len(found) - _MOST} others" if len(found) > _MOST else ""
    return ", ".join(found[:_MOST]) + more


_TELLERS: Mapping[str, Callable[[str, str], str]] = {
    HOOKS.kind: _is_program,
    SETTINGS.kind: _git_settings,
    SERVERS.kind: _servers,
    AGENT_HOOKS.kind: _agent_hooks,
    EDITORS.kind: _tasks,
    PYTHON.kind: _lines_that_run,
    PACKAGES.kind: _scripts,
}
