"""What runs in a project: what `uv run` would execute of its environment, and what the scripts of `npm run` and its like say.

`uv run` brings an environment up to date and executes something of it. Where that environment is there, what would be executed
can be looked at and started without uv, which would ask registries, build the project, and take whatever its files say then.
Other runners of projects execute a line of text that stands in a file of the project: only they know what that is, and whoever
declares it is told what to declare instead.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mcpguard.catalogue import sums
from mcpguard.catalogue.installed import Installed
from mcpguard.catalogue.reading import UnreadableError, content, is_file, is_folder, read
from mcpguard.model.values import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PLACES = ("--directory", "--project")
_MODULE = ("-m", "--module")
_SWITCHES = frozenset(
    ("-q", "--quiet", "-v", "--verbose", "--frozen", "--locked", "--no-sync", "--offline", "--no-progress", "--exact")
)
# They choose what is in the environment: whoever makes it is told them.
_KINDS = frozenset(("--no-dev", "--dev", "--all-extras", "--all-groups", "--no-default-groups"))
_KIND_VALUES = ("--extra", "--group", "--no-group", "--package", "-p", "--python")
# Variables by which uv goes elsewhere, or takes more from there.
_ELSEWHERE = ("UV_PROJECT", "UV_WORKING_DIR", "UV_WORKING_DIRECTORY", "UV_NO_PROJECT", "UV_ENV_FILE", "UV_ISOLATED")
_INTERPRETER = re.compile(r"python(?:3(?:\.\d+)?)?\Z")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\Z", re.ASCII)
# Of what installers write for the program of a package.
_STARTS = re.compile(rb"^from ([\w.]+) import ", re.MULTILINE)
_MANIFEST_BYTES = 1 << 20
_STUB_BYTES = 1 << 16
# Runners whose scripts stand in `package.json`, with the words behind which their names stand; empty: behind none, too.
_OF_NODE = {
    "npm": ("run", "run-script", "rum", "urn"),
    "pnpm": ("run", "run-script", ""),
    "yarn": ("run", ""),
    "yarnpkg": ("run", ""),
    "bun": ("run", ""),
}
_NPMS_OWN = ("start", "test", "stop", "restart")
_NODE_PLACES = ("--prefix", "-C", "--dir", "--cwd")
# A word that a shell leaves as it is.
_PLAIN = re.compile(r"[^$`;&|<>(){}*?~#!\\\n]+\Z")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What `uv run` was told.

    Attributes:
        target: what it executes; `module`: the name of a module.
        kinds: words for whoever makes the environment.
    """

    directory: str
    project: str
    target: str
    module: bool
    args: tuple[str, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """A line that a runner has a shell execute.

    Attributes:
        file: where it stands.
        around: names of the lines that are executed before and after it.
        args: words for it from the command.
    """

    name: str
    text: str
    file: Path
    around: tuple[str, ...]
    args: tuple[str, ...]


def of_uv(args: Sequence[str], environment: Mapping[str, str], cwd: Path) -> Installed | None:
    """What `uv run` would execute; None where only uv knows.

    Args:
        args: the words behind `uv`.
        environment: with what it would start.

    Raises:
        OSError, UnreadableError: it is there, and cannot be looked at.
    """
    asked = _asked(args)
    if asked is None or any(environment.get(name) for name in _ELSEWHERE):
        return None
    folder = Path(os.path.normpath(cwd / asked.directory))
    root = _root(Path(os.path.normpath(folder / asked.project)))
    if root is None:
        return None
    place = Path(os.path.normpath(root / (environment.get("UV_PROJECT_ENVIRONMENT") or ".venv")))
    if place.is_symlink():  # and whoever may write beside it leads it elsewhere
        return None
    words = ("uv", "sync", "--project", str(root), *asked.kinds)
    fetch = shlex.join((*words, "--reinstall", "--link-mode", "copy", "--compile-bytecode"))
    nothing = Installed((), "", ((str(place), ""),), fetch)
    sites = sorted(place.glob("lib/python3*/site-packages"))
    python = place / "bin/python"
    if len(sites) != 1 or not is_file(place / "pyvenv.cfg") or not _is_program(python):
        return nothing
    found = _words(asked, python, folder)
    if found is None:
        return None
    if not found:
        return nothing
    try:
        whole = sums.of_folder(sites[0])
    except sums.SharedError:
        return nothing
    there = Installed(found, "", ((str(sites[0]), whole),), fetch)
    return replace(there, folder=str(folder), environment=str(place))


def own_modules(there: Installed) -> Iterator[Path]:
    """Files of the project's own, outside of its environment, that the program of one or `-m` begin with."""
    site = Path(there.modules[0][0])
    names = [there.words[2]] if there.words[1:2] == ("-m",) else []
    if not names and is_file(program := Path(there.words[0])) and program.name != "python":
        try:
            names = [found.decode() for found in _STARTS.findall(content(program, _STUB_BYTES)[0])]
        except (OSError, UnreadableError):
            return
    places = _linked(site)
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            module = Path(*parts[:depth])
            candidates = (module.with_suffix(".py"), module / "__init__.py", module / "__main__.py")
            yield from (place / one for place in places for one in candidates if is_file(place / one))


def script_of(runner: str, own: Sequence[str], cwd: Path) -> Script | None:
    """The line that these words of a runner have executed; None where that cannot be told.

    Args:
        own: the words behind the runner.
    """
    if runner == "deno":
        return _task(own, cwd)
    rest, folder = list(own), cwd
    while rest and rest[0].startswith("-"):
        option, equals, value = rest.pop(0).partition("=")
        if option in _NODE_PLACES:
            folder = cwd / (value if equals else rest.pop(0) if rest else "")
    verbs = _OF_NODE.get(runner)
    if verbs is None or not rest:
        return None
    name = rest.pop(0)
    if name in verbs:
        while rest and rest[0].startswith("-") and rest[0] != "--":
            rest.pop(0)
        if not rest:
            return None
        name = rest.pop(0)
    elif "" not in verbs and name not in _NPMS_OWN:
        return None
    file = _above(folder, ("package.json",))
    texts = _member(file, "scripts") if file else {}
    text = texts.get(name)
    if not isinstance(text, str) or file is None:
        return None
    around = tuple(f"{when}{name}" for when in ("pre", "post") if f"{when}{name}" in texts)
    return Script(name, text, file, around, tuple(rest[1:] if rest[:1] == ["--"] else rest))


def program_of(script: Script) -> list[str] | None:
    """The words of a line that does nothing but execute one program; None where it does more."""
    try:
        words = shlex.split(script.text)
    except ValueError:
        return None
    if not words or not _PLAIN.match(script.text) or _ASSIGNMENT.match(words[0]):
        return None
    local = next((one for one in _bins(script.file.parent, words[0]) if is_file(one)), None)
    return [str(local) if local else words[0], *words[1:], *script.args]


def _bins(folder: Path, name: str) -> Iterator[Path]:
    yield from (one / "node_modules/.bin" / name for one in (folder, *folder.parents))


def _task(own: Sequence[str], cwd: Path) -> Script | None:
    rest, folder = list(own), cwd
    if not rest or rest.pop(0) != "task":
        return None
    while rest and rest[0].startswith("-"):
        option, equals, value = rest.pop(0).partition("=")
        if option == "--cwd":
            folder = cwd / (value if equals else rest.pop(0) if rest else "")
    file = _above(folder, ("deno.json", "deno.jsonc"))
    if not rest or file is None:
        return None
    name = rest.pop(0)
    task = _member(file, "tasks").get(name)
    text = task.get("command") if isinstance(task, dict) else task
    around = tuple(task.get("dependencies", ())) if isinstance(task, dict) else ()
    if not isinstance(text, str) or not all(isinstance(one, str) for one in around):
        return None
    return Script(name, text, file, around, tuple(rest))


def _above(folder: Path, names: Sequence[str]) -> Path | None:
    """A file of one of these names here, or in the next folder above that has one."""
    places = Path(os.path.normpath(folder))
    return next((one / name for one in (places, *places.parents) for name in names if is_file(one / name)), None)


def _member(file: Path, name: str) -> Mapping[str, Any]:
    try:
        value = read(file, "json", _MANIFEST_BYTES).value
    except (OSError, UnreadableError):
        return {}
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _asked(args: Sequence[str]) -> _Asked | None:
    """None where more is said than this knows."""
    places: dict[str, str] = {}
    kinds: list[str] = []
    module = verb = False
    rest = list(args)
    while rest and (rest[0].startswith("-") or not verb):
        option, equals, value = rest.pop(0).partition("=")
        if not option.startswith("-"):
            if option != "run" or equals:
                return None
            verb = True
        elif option == "--" and verb and not equals:
            break
        elif option in (*_PLACES, *_KIND_VALUES) and (equals or rest):
            value = value if equals else rest.pop(0)
            if option in places:
                return None
            if option in _PLACES:
                places[option] = value
            else:
                kinds += (option, value)
        elif option in _MODULE and verb and not equals:
            module = True
            break
        elif option in _KINDS and not equals:
            kinds.append(option)
        elif equals or option not in _SWITCHES:
            return None
    if not rest or not verb:
        return None
    target, more = rest[0], rest[1:]
    return _Asked(places.get("--directory", ""), places.get("--project", ""), target, module, tuple(more), tuple(kinds))


def _root(folder: Path) -> Path | None:
    """The project that uv would take for a folder: the next one above, or the workspace that this is a part of."""
    above = [one for one in (folder, *folder.parents) if is_file(one / "pyproject.toml")]
    return next((one for one in above if _is_workspace(one / "pyproject.toml")), above[0] if above else None)


def _is_workspace(manifest: Path) -> bool:
    try:
        tool = read(manifest, "toml", _MANIFEST_BYTES).value.get("tool")
    except (OSError, UnreadableError, AttributeError):
        return False
    uv = tool.get("uv") if isinstance(tool, dict) else None
    return isinstance(uv, dict) and "workspace" in uv


def _words(asked: _Asked, python: Path, folder: Path) -> tuple[str, ...] | None:
    """What is executed; empty: it is not there yet; None: it is nothing of the environment."""
    if asked.module:
        return (str(python), "-m", asked.target, *asked.args)
    if _INTERPRETER.match(asked.target):
        return (str(python), *asked.args) if asked.args else None
    path = folder / asked.target
    if "://" in asked.target:
        return None
    if asked.target.endswith(".py") or ("/" in asked.target and is_folder(path)):
        return (str(python), str(path), *asked.args)
    if not _NAME.match(asked.target):
        return None
    program = python.with_name(asked.target)
    return (str(program), *asked.args) if _is_program(program) else ()


def _is_program(path: Path) -> bool:
    return is_file(path) and os.access(path, os.X_OK)


def _linked(site: Path) -> list[Path]:
    """Folders that the environment takes modules from besides its own."""
    found: list[Path] = []
    for file in sorted(site.glob("*.pth")):
        try:
            lines = content(file, _STUB_BYTES)[0].decode(errors="replace").splitlines()
        except (OSError, UnreadableError):
            continue
        found += (Path(line) for line in lines if line.startswith("/"))
    return found
