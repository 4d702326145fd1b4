"""Where each client on Linux keeps its MCP servers: one table, and the walk over it.

`{NAME:DEFAULT}` stands for the variable NAME, or for DEFAULT where it is not set; `{project}` for the working folder and
those above it up to the root of its repository, `{above}` for it and all above it. `*` is one name, `**` any depth down to
MAX_WALK.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mcpguard.catalogue import server as servers
from mcpguard.catalogue.reading import MAX_BYTES, Document, UnreadableError, content, is_folder, parse, read
from mcpguard.catalogue.server import Server
from mcpguard.model.values import dataclass

MAX_FILES = 500
MAX_SERVERS = 1000
MAX_WALK = 6
_LARGE = 64 << 20
# Of all files but the large one together: a project must not keep anybody waiting who looks at it.
MAX_TOTAL = 6 << 20
MAX_ENTRIES = 20_000
Keys = tuple[tuple[str, ...], ...]
_SERVERS: Keys = (("mcpServers",),)
_VARIABLE = re.compile(r"\{([A-Z_]+):([^}]*)\}")


@dataclass(frozen=True, slots=True)
class Place:
    """A file, or a pattern of files, that declares servers or approves them.

    Attributes:
        path: pattern.
        keys: ways from the top of the document to the object of servers; `*` is any key, whose name is the project.
    """

    client: str
    scope: str
    path: str
    keys: Keys = _SERVERS
    syntax: str = "json"
    limit: int = 0


_CONFIG = "{XDG_CONFIG_HOME:~/.config}"
_CLAUDE = "{CLAUDE_CONFIG_DIR:~/.claude}"
_CODEX = "{CODEX_HOME:~/.codex}"
_CLAUDE_KEYS: Keys = (("mcpServers",), ("projects", "*", "mcpServers"))
_CODEX_KEYS: Keys = (("mcp_servers",),)
_OPENCODE_KEYS: Keys = (("mcp", "servers"), ("mcp",))
_AMP_KEYS: Keys = (("amp.mcpServers",), ("amp", "mcpServers"))
_CODE_KEYS: Keys = (("servers",), ("mcpServers",))
_CODE_OLD_KEYS: Keys = (("mcp", "servers"), ("mcp.servers",))
_ZED_KEYS: Keys = (("context_servers",),)


def _gemini(client: str, folder: str, home: str, system: str, variable: str) -> Iterator[Place]:
    for start, scope in ((home, "user"), ("{project}", "project")):
        yield Place(client, scope, f"{start}/{folder}/settings.json")
        for manifest in dict.fromkeys(("gemini-extension.json", f"{folder[1:]}-extension.json")):
            yield Place(client, "plugin", f"{start}/{folder}/extensions/*/{manifest}")
    for name, kind in (("settings.json", "SETTINGS"), ("system-defaults.json", "DEFAULTS")):
        yield Place(client, "managed", f"{{{variable}_SYSTEM_{kind}_PATH:{system}/{name}}}")


def _code(folder: str) -> Iterator[Place]:
    for user in (f"{_CONFIG}/{folder}/User", f"{_CONFIG}/{folder}/User/profiles/*"):
        yield Place("vscode", "user", f"{user}/mcp.json", _CODE_KEYS)
        yield Place("vscode", "user", f"{user}/settings.json", _CODE_OLD_KEYS)


def _opencode(scope: str, folder: str) -> Iterator[Place]:
    for name in ("opencode.json", "opencode.jsonc", "config.json"):
        if name != "config.json" or scope == "user":
            yield Place("opencode", scope, f"{folder}/{name}", _OPENCODE_KEYS)


PLACES: tuple[Place, ...] = (
    Place("claude-code", "user", "{CLAUDE_CONFIG_DIR:~}/.claude.json", _CLAUDE_KEYS, limit=_LARGE),
    Place("claude-code", "user", f"{_CLAUDE}/settings.json"),
    Place("claude-code", "user", f"{_CLAUDE}/settings.local.json"),
    Place("claude-code", "project", "{above}/.mcp.json"),
    Place("claude-code", "project", "{project}/.claude/settings.json"),
    Place("claude-code", "project", "{project}/.claude/settings.local.json"),
    Place("claude-code", "managed", "/etc/claude-code/managed-mcp.json"),
    Place("claude-code", "managed", "/etc/claude-code/managed-settings.json"),
    Place("claude-code", "plugin", f"{_CLAUDE}/plugins/**/.mcp.json", (("mcpServers",), ())),
    Place("claude-code", "plugin", f"{_CLAUDE}/plugins/**/plugin.json"),
    Place("claude-desktop", "user", f"{_CONFIG}/Claude/claude_desktop_config.json"),
    Place("claude-desktop", "user", "~/.var/app/*/config/Claude/claude_desktop_config.json"),
    Place("codex", "user", f"{_CODEX}/config.toml", _CODEX_KEYS, "toml"),
    Place("codex", "project", "{project}/.codex/config.toml", _CODEX_KEYS, "toml"),
    Place("codex", "managed", "/etc/codex/config.toml", _CODEX_KEYS, "toml"),
    Place("codex", "managed", "/etc/codex/managed_config.toml", _CODEX_KEYS, "toml"),
    Place("codex", "managed", "/etc/codex/requirements.toml", _CODEX_KEYS, "toml"),
    Place("codex", "plugin", f"{_CODEX}/plugins/**/.mcp.json", (("mcpServers",), ("mcp_servers",), ())),
    *_gemini("gemini-cli", ".gemini", "{GEMINI_CLI_HOME:~}", "/etc/gemini-cli", "GEMINI_CLI"),
    *_gemini("qwen-code", ".qwen", "~", "/etc/qwen-code", "QWEN_CODE"),
    Place("cursor", "user", "~/.cursor/mcp.json"),
    Place("cursor", "project", "{above}/.cursor/mcp.json"),
    Place("cursor", "plugin", "~/.cursor/plugins/**/mcp.json", (("mcpServers",), ())),
    Place("cursor", "plugin", "~/.cursor/plugins/**/.mcp.json", (("mcpServers",), ())),
    Place("cursor", "user", "~/.cursor/cli-config.json"),
    Place("cursor", "user", f"{_CONFIG}/cursor/cli-config.json"),
    Place("cursor", "project", "{project}/.cursor/cli.json"),
    *_code("Code"),
    *_code("Code - Insiders"),
    *_code("VSCodium"),
    Place("vscode", "user", "~/.vscode-server/data/User/mcp.json", _CODE_KEYS),
    Place("vscode", "project", "{project}/.vscode/mcp.json", _CODE_KEYS),
    Place("vscode", "project", "{project}/.vscode/settings.json", _CODE_OLD_KEYS),
    Place("copilot", "user", "{COPILOT_HOME:~/.copilot}/mcp-config.json"),
    Place("windsurf", "user", "~/.codeium/windsurf/mcp_config.json"),
    Place("windsurf", "project", "{project}/.windsurf/mcp.json"),
    Place("windsurf", "managed", "/etc/windsurf/mcp_config.json"),
    *_opencode("user", f"{_CONFIG}/opencode"),
    *_opencode("user", "~/.opencode"),
    *_opencode("user", "{OPENCODE_CONFIG_DIR:}"),
    Place("opencode", "user", "{OPENCODE_CONFIG:}", _OPENCODE_KEYS),
    *_opencode("project", "{project}"),
    *_opencode("project", "{project}/.opencode"),
    *_opencode("managed", "/etc/opencode"),
    Place("goose", "user", f"{_CONFIG}/goose/config.yaml", (("extensions",),), "yaml"),
    Place("zed", "user", f"{_CONFIG}/zed/settings.json", _ZED_KEYS),
    Place("zed", "project", "{project}/.zed/settings.json", _ZED_KEYS),
    *(
        Place("amp", scope, f"{folder}/{name}", _AMP_KEYS)
        for scope, folder in (("user", f"{_CONFIG}/amp"), ("project", "{project}/.amp"))
        for name in ("settings.json", "settings.jsonc")
    ),
    Place("amp", "managed", "/etc/ampcode/managed-settings.json", _AMP_KEYS),
    Place("kiro", "user", "~/.kiro/settings/mcp.json"),
    Place("kiro", "project", "{project}/.kiro/settings/mcp.json"),
    Place("antigravity", "user", "~/.gemini/antigravity/mcp_config.json"),
    Place("amazon-q", "user", "~/.aws/amazonq/mcp.json"),
    Place("amazon-q", "user", "~/.aws/amazonq/agents/*.json"),
    Place("amazon-q", "user", "~/.aws/amazonq/cli-agents/*.json"),
    Place("amazon-q", "project", "{project}/.amazonq/mcp.json"),
    Place("openclaw", "user", "~/.openclaw/openclaw.json", (("mcp", "servers"), ("mcpServers",))),
)
# Servers that are declared in a variable itself.
VARIABLES = (Place("opencode", "environment", "OPENCODE_CONFIG_CONTENT", _OPENCODE_KEYS),)
CLIENTS = tuple(sorted({place.client for place in PLACES}))


@dataclass(frozen=True, slots=True)
class File:
    """A file that was read.

    Attributes:
        project: the folder that it belongs to, where its scope is a project's; else empty.
        document: None for one that could not be read.
        problem: why not; else empty.
    """

    path: str
    place: Place
    project: str
    document: Document | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything that clients declare here.

    Attributes:
        project: the folder that was asked about.
        servers: by client, then in the order of the table.
        files: those that exist, readable or not.
    """

    project: str
    servers: tuple[Server, ...]
    files: tuple[File, ...]

    @property
    def problems(self) -> tuple[File, ...]:
        """Files that could not be read, whose servers are unknown."""
        return tuple(file for file in self.files if file.problem)


def inventory(project: Path, environment: Mapping[str, str], root: Path = Path("/")) -> Inventory:
    """Read every place of the table.

    Args:
        project: an absolute folder.
        environment: HOME and the variables that move places.
        root: what absolute places of the machine are looked for in; tests have one of their own.
    """
    files: list[File] = []
    found: list[Server] = []
    seen: set[tuple[str, str]] = set()
    left = MAX_TOTAL
    for place in PLACES:
        for path, folder in islice(_paths(place, project, environment, root), MAX_FILES):
            # A place in the project is one in the home, where the home is the project.
            if (place.client, path) in seen:
                continue
            seen.add((place.client, path))
            if (file := _read(path, place, folder, left)) is not None:
                left -= file.document.size if file.document and not place.limit else 0
                files.append(file)
                found += _servers(file)
    for place in VARIABLES:
        if text := environment.get(place.path):
            files.append(_variable(place, text))
            found += _servers(files[-1])
    return Inventory(str(project), tuple(found), tuple(files))


def _read(path: str, place: Place, project: str, left: int) -> File | None:
    limit = place.limit or min(MAX_BYTES[place.syntax], left)
    try:
        return File(path, place, project, read(Path(path), place.syntax, limit))
    except FileNotFoundError:
        return None
    except UnreadableError as bad:
        return File(path, place, project, None, str(bad))


def _variable(place: Place, text: str) -> File:
    name = f"${place.path}"
    try:
        value, repeated = parse(text.encode(errors="surrogateescape"), place.syntax)
    except UnreadableError as bad:
        return File(name, place, "", None, str(bad))
    return File(name, place, "", Document(value, 0o600, os.getuid(), len(text), repeated))


def _servers(file: File) -> Iterator[Server]:
    """The servers of one file, MAX_SERVERS at most; more are no configuration."""
    return islice(_each_server(file), MAX_SERVERS)


def _each_server(file: File) -> Iterator[Server]:
    value = file.document.value if file.document else None
    for keys in file.place.keys:
        for project, group in _groups(value, keys):
            for name, one in group.items():
                if not isinstance(one, dict):
                    continue
                scope = "local" if project else file.place.scope
                where = {"client": file.place.client, "scope": scope, "file": file.path, "project": project}
                found = servers.of(str(name), one, **where)
                # Other things may stand beside servers, and a group of them at one of the other keys.
                if found.kind != servers.UNCLEAR or (keys and (*keys, name) not in file.place.keys):
                    yield found


def _groups(value: Any, keys: Sequence[str], project: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each object of servers at the end of `keys`, with the project that `*` stood for."""
    if not isinstance(value, dict):
        return
    if not keys:
        yield project, value
    elif keys[0] == "*":
        for name, below in value.items():
            yield from _groups(below, keys[1:], str(name))
    else:
        yield from _groups(value.get(keys[0]), keys[1:], project)


def _paths(place: Place, project: Path, environment: Mapping[str, str], root: Path) -> Iterator[tuple[str, str]]:
    """Files that a place may mean, each with its project."""
    first, _, rest = place.path.partition("/")
    if first in ("{project}", "{above}"):
        for folder in projects(project) if first == "{project}" else (project, *project.parents):
            for path in _matching(folder, rest):
                yield str(path), str(folder)
        return
    start, below = _start(place.path, environment, root)
    if start.is_absolute():
        for path in _matching(start, below) if below else (start,):
            yield str(path), ""


def _start(pattern: str, environment: Mapping[str, str], root: Path) -> tuple[Path, str]:
    """Where a pattern begins, in which no character is special, and the rest of it; a relative start counts for none."""
    moved = _VARIABLE.match(pattern)
    below = pattern[moved.end() :].lstrip("/") if moved else ""
    if moved and (given := environment.get(moved[1])):
        return Path(given), below
    start = moved[2] if moved else pattern
    if start.startswith("~"):
        rest = "/".join(part for part in (start[1:].lstrip("/"), below) if part)
        return Path(environment.get("HOME", "")), rest
    return (root / start.lstrip("/"), below) if start else (Path(), "")


def projects(folder: Path) -> list[Path]:
    """The folder, and those above it up to the root of its repository; without a repository it alone."""
    above = [folder, *folder.parents]
    for count, one in enumerate(above, start=1):
        if os.path.lexists(one / ".git"):
            return above[:count]
    return [folder]


def belongs(server: Server, project: Path) -> bool:
    """Whether a server is declared for a folder: for the user, the machine or a project that it lies in, or for its repository.

    Worktrees belong to the repository that they were made from.
    """
    if not server.project:
        return True
    folders = projects(project)
    return server.project in (*map(str, folders), _main_repository(folders[-1]))


def _main_repository(root: Path) -> str:
    """Of a worktree, the folder of the repository that it was made from; else empty."""
    try:
        text = content(root / ".git", 4096)[0].decode(errors="surrogateescape").removeprefix("gitdir:").strip()
    except (OSError, UnreadableError):
        return ""
    folder = Path(os.path.normpath(root / text))
    return str(folder.parent.parent.parent) if folder.parent.name == "worktrees" else ""


def _matching(folder: Path, pattern: str) -> Iterator[Path]:
    """Paths below a folder that match, sorted; without `*` the one path, whether it exists or not."""
    first, _, rest = pattern.partition("/")
    if first == "**":
        starts = list(_folders(folder))
    elif "*" in first:
        starts = [folder / name for name in sorted(fnmatch.filter(_names(folder), first))]
    else:
        starts = [folder / first]
    for start in starts:
        yield from _matching(start, rest) if rest else (start,)


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, MAX_ENTRIES)]
    except OSError:
        return []


def _folders(top: Path) -> Iterator[Path]:
    """A folder and those below it, no deeper than MAX_WALK and no more than MAX_ENTRIES; links are not followed."""
    waiting, seen = deque([(top, 0)]), 0
    while waiting and seen < MAX_ENTRIES:
        folder, depth = waiting.popleft()
        seen += 1
        yield folder
        if depth < MAX_WALK:
            below = (folder / name for name in sorted(_names(folder)))
            waiting += [(path, depth + 1) for path in below if not path.is_symlink() and is_folder(path)]
