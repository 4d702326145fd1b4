"""What a session wrote that runs later, by itself or by a usual command: one table of such names, and what met it.

Reads the record; decides nothing. What `base` protects in every home is not repeated here: where a profile does not extend
`base`, its readonly rules say what else runs later.
"""

from __future__ import annotations

import os
import re
import stat
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from fnmatch import translate

from mcpguard.events import totals
from mcpguard.events.store import Store
from mcpguard.events.totals import Written
from mcpguard.model.access import Access
from mcpguard.model.paths import is_below
from mcpguard.model.policy import Policy
from mcpguard.model.values import dataclass, replace
from mcpguard.session.policy import current_user, temporary_directory


@dataclass(frozen=True, slots=True)
class Point:
    """Names that something obeys.

    Attributes:
        kind: the word for it in JSON.
        why: what obeys it, and when.
        names: ends of paths between spaces; `*` as in a shell, but across slashes; a closing slash: everything below.
        unasked: obeyed without anybody asking for it by name; the end of a run tells of these.
    """

    kind: str
    why: str
    names: str = ""
    unasked: bool = True


HOOKS = Point("git-hook", "git runs it on the user's next commit", ".git/hooks/ .git/modules/*/hooks/* .husky/")
SETTINGS = Point(
    "git-settings",
    "git runs programs that its configuration names",
    ".git/config .git/config.lock .git/config.worktree .git/modules/*/config .gitconfig",
)
SERVERS = Point(
    "mcp-server",
    "agents start the MCP servers that it names",
    ".mcp.json .cursor/mcp.json .vscode/mcp.json Code/User/mcp.json .copilot/mcp-config.json .windsurf/mcp.json "
    "mcp_config.json .gemini/settings.json gemini-extension.json .qwen/settings.json .codex/config.toml opencode.json "
    "opencode.jsonc claude_desktop_config.json .amp/settings.json .amp/settings.jsonc .kiro/settings/mcp.json "
    "goose/config.yaml .zed/settings.json zed/settings.json",
)
# Written by every run of that agent.
STATE = Point("mcp-server", "the agent keeps MCP servers here, for every project", ".claude.json", unasked=False)
AGENT_HOOKS = Point(
    "agent-settings",
    "it holds hooks, permissions or commands of agents",
    ".claude/settings*.json .claude/hooks/ .claude/commands/ .claude/agents/ .claude/skills/ .claude/plugins/ .opencode/ "
    ".codex/hooks/ .codex/hooks.json .codex/rules/ .codex/prompts/ .cursor/hooks.json .cursor/cli.json "
    ".cursor/cli-config.json .gemini/commands/ .gemini/extensions/ .qwen/commands/ .qwen/agents/ .qwen/extensions/",
)
EDITORS = Point(
    "editor",
    "editors run tasks and settings of a project",
    ".vscode/ .idea/ .zed/ .fleet/ .devcontainer/ .devcontainer.json .exrc .nvimrc .nvim.lua .vimrc .dir-locals.el",
)
PYTHON = Point("python", "Python runs it at every start", "site-packages/*.pth sitecustomize.py usercustomize.py")
PACKAGES = Point("package-scripts", "npm and its like run its scripts", "package.json", unasked=False)
# The first entry that a path meets is the one that it is told by.
POINTS = (
    HOOKS,
    Point(
        "git-hook",
        "it names what runs on the user's next commit",
        ".pre-commit-config.yaml lefthook.yml lefthook.yaml .lefthook.yml .lefthook.yaml",
    ),
    SETTINGS,
    SERVERS,
    STATE,
    AGENT_HOOKS,
    EDITORS,
    PYTHON,
    Point("shell", "shells run it", ".envrc .mise.toml mise.toml bin/activate*"),
    Point("package-source", "it chooses where packages come from", ".npmrc .yarnrc .yarnrc.yml .pnpmfile.cjs"),
    Point("service", "the system runs it", ".config/systemd/ .config/autostart/ /etc/ /var/spool/cron/"),
    Point(
        "agent-instructions",
        "agents read it as instructions",
        "CLAUDE.md CLAUDE.local.md AGENTS.md AGENTS.override.md GEMINI.md QWEN.md .cursorrules .cursor/rules/ .windsurfrules "
        ".windsurf/rules/ .clinerules .github/copilot-instructions.md",
        unasked=False,
    ),
    PACKAGES,
    Point("test", "pytest runs it before the tests", "conftest.py", unasked=False),
    Point(
        "build",
        "a usual command runs what it names",
        "Makefile makefile GNUmakefile justfile Justfile .justfile Taskfile.yml Taskfile.yaml pyproject.toml setup.py "
        "setup.cfg tox.ini noxfile.py Rakefile build.rs composer.json CMakeLists.txt build.gradle build.gradle.kts Dockerfile "
        "compose.yaml docker-compose.yml",
        unasked=False,
    ),
    Point(
        "workflow",
        "the code host runs it after a push",
        ".github/workflows/ .github/actions/ .gitlab-ci.yml .circleci/ Jenkinsfile azure-pipelines.yml",
        unasked=False,
    ),
)
REPOSITORY = Point("repository", "made by the agent; git obeys its .git/config and .git/hooks")
POINTER = Point("git-settings", "it leads git to another configuration")
CACHED = "cached-program"
SEARCH_PATH = Point("search-path", "it is on the search path: whoever types its name runs it")
# A folder or a link can appear as a whole by these.
_WHOLE = frozenset(("rename", "exchange", "symlink"))
# Whoever renames to and fro is not followed for longer than a few seconds.
_MOST_WORK = 1_000_000
_NOT_FOLLOWED = "folders were renamed too often to follow: look for yourself at what is in it"
# What these hold is a package's own, and there are thousands.
_CACHES = r"\.cache|\.npm|\.cargo/registry|\.rustup|go/pkg/mod|\.gradle"
IN_CACHES = re.compile(f"/(?:{_CACHES})/")
_INSTALLED = re.compile(f"/(?:node_modules|site-packages|dist-packages|{_CACHES})/")
_OF_PACKAGES = frozenset(
    ("package-scripts", "test", "build", "workflow", "agent-instructions", "editor", "package-source")
)


@dataclass(frozen=True, slots=True)
class Later:
    """Something that the session wrote and that could run later.

    Attributes:
        why: what obeys it, or the reason of the rule that it goes against.
        ways: the acts, such as `create`; times: how many, added up.
        programs: who did it.
        stopped: False where the policy forbids it and this host did not stop it.
        changed: of a cache, names in it that belong to something that was there before the session.
        now: what is there as the report is made; empty where nobody looked.
    """

    path: str
    kind: str
    why: str
    unasked: bool
    ways: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    times: int = 0
    stopped: bool = True
    changed: tuple[str, ...] = ()
    now: str = ""


def _index() -> dict[str, list[tuple[re.Pattern[str], Point]]]:
    """The table by one component that every path of an entry has: most paths have none of them."""
    found: dict[str, list[tuple[re.Pattern[str], Point]]] = {}
    for point in POINTS:
        for name in point.names.split():
            tail = f"{name}*" if name.endswith("/") else name
            shape = re.compile(translate(tail if name.startswith("/") else f"*/{tail}"))
            key = next(part for part in name.split("/") if part and "*" not in part)
            found.setdefault(key, []).append((shape, point))
    return found


_INDEX = _index()


def point_of(path: str, workspace: str = "") -> Point | None:
    """The first entry of the table that a path meets. A workspace may itself lie in a cache."""
    inside = path.removeprefix(f"{workspace}/") if workspace else path
    met = [
        point
        for part in path.split("/")
        if part in _INDEX
        for shape, point in _INDEX[part]
        if shape.match(path) and not (point.kind in _OF_PACKAGES and _INSTALLED.search(f"/{inside}"))
    ]
    return min(met, key=POINTS.index) if met else None


def run_later(store: Store, session: str) -> list[Later]:
    """What the session wrote that runs later: first what was not stopped, then what nobody has to ask for.

    What lies in a repository or a virtual environment of the session's own making is told by naming that.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    from mcpguard.session.run_later_caches import of_caches

    workspace = store.session(session).workspace
    written, followed = _moved_along(totals.written(store, session), totals.renamed(store, session))
    repositories = _repositories(written, workspace)
    hidden = _own_folders(written, repositories)
    search_path = _search_path()
    home = current_user().home
    temporary = temporary_directory(home)
    base = None if totals.has_rules_of(store, session, "base") else _base(workspace)
    found = {path: Later(path, REPOSITORY.kind, REPOSITORY.why, unasked=True) for path in repositories}
    caches = of_caches(store, session, written, home)
    told_by_cache = tuple(f"{one.path}/" for one in caches)
    told_of = (*hidden, *told_by_cache)
    holds_home = is_below(home, workspace)
    for one in reversed(written):  # a folder comes after what is in it
        inside = is_below(one.path, workspace)
        # Most files of a project are told here, by one look: nothing obeys a name that the table has no part of.
        if inside and not holds_home and _is_plain(one, search_path):
            continue
        if one.path.startswith(told_of) or (not inside and is_below(one.path, temporary)):
            continue
        # In a project the table has all that `base` has, and there are many files.
        asked = None if inside and not holds_home else base
        point = point_of(one.path, workspace) or _by_place(one.path, search_path, asked)
        whole = not _WHOLE.isdisjoint(one.ways) and not any(path.startswith(f"{one.path}/") for path in found)
        if point is None and one.path.endswith("/.git") and "mkdir" not in one.ways and not _is_empty(one.path):
            point = POINTER
        if point is None and whole:
            point = point_of(f"{one.path}/x", workspace)
        if point is not None:
            found[one.path] = Later(one.path, point.kind, point.why, point.unasked, one.ways, one.programs, one.times)
    found |= {one.path: one for one in caches}
    if not followed:
        found[workspace] = Later(workspace, "not-followed", _NOT_FOLLOWED, unasked=True)
    for path, why in totals.not_stopped(store, session):
        known = found.get(path) or Later(path, "against-policy", why, unasked=True)
        found[path] = replace(known, why=why, unasked=True, stopped=False)
    return sorted(found.values(), key=lambda one: (one.stopped, not one.unasked, one.kind, one.path))


def _is_plain(one: Written, search_path: Sequence[str]) -> bool:
    """Whether a path in the workspace meets nothing: no part of it is in the table, and it did not come as a whole folder."""
    parts = one.path.split("/")
    return (
        _INDEX.keys().isdisjoint(parts)
        and parts[-1] != ".git"
        and _WHOLE.isdisjoint(one.ways)
        and one.path[: -len(parts[-1]) - 1] not in search_path
    )


def _moved_along(written: list[Written], renamed: Sequence[tuple[str, str]]) -> tuple[list[Written], bool]:
    """With what was written in a folder that got another name afterwards, by its new name; False: there was too much of it."""
    if not renamed:
        return written, True
    by_path = {one.path: one for one in written}
    paths = sorted(by_path)
    left = _MOST_WORK
    for old, new in renamed:
        inside = paths[bisect_left(paths, f"{old}/") : bisect_left(paths, f"{old}0")]  # 0 comes after the slash
        moved = {new + path[len(old) :]: by_path[path] for path in inside}
        fresh = {path: replace(one, path=path) for path, one in moved.items() if path not in by_path}
        left -= len(inside) + min(len(fresh) * (1 + len(paths) // 2500), len(paths) // 10 + 100)
        if left < 0:
            return [by_path[path] for path in paths], False
        by_path |= fresh
        if len(fresh) > 256:
            paths = sorted(by_path)
        else:
            for path in fresh:
                insort(paths, path)
    return [by_path[path] for path in paths], True


def _search_path() -> tuple[str, ...]:
    """The folders that the user's shell looks for programs in; those of the system are written by nobody's agent."""
    return tuple(folder.rstrip("/") for folder in os.environ.get("PATH", "").split(":") if folder.startswith("/"))


def _repositories(written: Iterable[Written], workspace: str) -> list[str]:
    """Those in the workspace whose settings or hooks were written: made in this session, for those of others are protected.

    Git takes any folder with the right names for a bare one, also inside a project.
    """
    named = [one.path for one in written if one.path.endswith(("/HEAD", "/config")) or "/.git/" in one.path]
    inside = {path for path in named if is_below(path, workspace)}
    plain = {path.partition("/.git/")[0] for path in inside if "/.git/" in path and point_of(path) in (HOOKS, SETTINGS)}
    heads = {path.removesuffix("/HEAD") for path in inside if path.endswith("/HEAD") and "/.git/" not in path}
    return sorted(plain | {folder for folder in heads if f"{folder}/config" in inside})


def _own_folders(written: Sequence[Written], repositories: Sequence[str]) -> tuple[str, ...]:
    """Beginnings of the paths that are told of by naming their repository or environment.

    A folder counts only when the session made it: in one that was there before, the agent's own `git init` would hide
    whatever else it wrote there.
    """
    made = {one.path for one in written if "mkdir" in one.ways}
    environments = [one.path.removesuffix("/pyvenv.cfg") for one in written if one.path.endswith("/pyvenv.cfg")]
    own = [f"{folder}/" for folder in (*repositories, *environments) if folder in made]
    return (*own, *(f"{folder}/.git/" for folder in repositories))


def _is_empty(path: str) -> bool:
    """A file with nothing in it leads git nowhere: uv has one in its cache, which ends git's search there."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == 0


def _base(workspace: str) -> Policy:
    from mcpguard.session.protected import base_policy  # a run whose profile extends it needs no parser here

    return base_policy(workspace)


def _by_place(path: str, search_path: Sequence[str], base: Policy | None) -> Point | None:
    """What makes it run later is where it lies, or a rule of `base` that the session's profile does not have."""
    if path.rpartition("/")[0] in search_path:
        return SEARCH_PATH
    if base is None:
        return None
    from mcpguard.session.protected import of_file

    refused = of_file(base, path, Access.WRITE)
    return Point("start-up", refused[1] or refused[0].text) if refused else None
