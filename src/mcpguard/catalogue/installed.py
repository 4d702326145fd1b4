"""What `npx` and `uvx` would execute, found where they keep it, without starting them.

A runner looks up a package, fetches what is missing and executes a script of it: what that is nobody knows before, and its
cache is where sessions write. Where the package lies on the disk already, its script and all its modules can be looked at,
counted, kept from changing, and executed without the runner. npx has a folder for each way to write a package down; of uvx the
place counts where `uv tool install` puts tools, for no name in its cache tells what an environment there is for.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from mcpguard.catalogue import sums
from mcpguard.catalogue.package import Package
from mcpguard.catalogue.reading import UnreadableError, is_file, is_folder, read
from mcpguard.model.values import dataclass

# A name of npm's registry, with a version, a range or a tag; no path, address, alias or archive.
_NPM = re.compile(r"(?P<name>(?:@[\w.~-]+/)?[\w~-][\w.~-]*)(?:@[\w.^~<>=*|+ -]+)?\Z", re.ASCII)
_ARCHIVE = (".tgz", ".tar", ".tar.gz")
_PYTHON = re.compile(r"[A-Za-z0-9][\w.-]*\Z", re.ASCII)
_NPX_SWITCHES = ("-y", "--yes", "-q", "--quiet")
_UVX_SWITCHES = ("-q", "--quiet", "--offline", "--no-progress")
_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Installed:
    """A package that a runner was asked for.

    Attributes:
        words: what it would execute: a script, its arguments behind it; empty: it is not there, so nobody knows.
        version: the one that is there.
        modules: folders that its code comes from, each with a sum; where it is not there, the one that it should be in.
        fetch: what gets it, and starts nothing of it.
    """

    words: tuple[str, ...]
    version: str
    modules: tuple[tuple[str, str], ...]
    fetch: str


def find(package: Package, args: Sequence[str], environment: Mapping[str, str]) -> Installed | None:
    """What these words of a runner lead to; None where only the runner can tell: several packages, options that change what is
    fetched, addresses, runners that keep nothing.

    Args:
        environment: with what it would start.

    Raises:
        OSError, UnreadableError: it is there, and cannot be looked at.
    """
    if package.runner == "npx":
        asked = _asked(args, _NPX_SWITCHES, ("-p", "--package"))
        return asked and _of_npx(package, *asked, environment)
    if package.runner in ("uvx", "uv"):
        asked = _asked(args[2:] if package.runner == "uv" else args, _UVX_SWITCHES, ("--from",))
        return asked and _of_uv(package, *asked, environment)
    return None


def _asked(
    args: Sequence[str], switches: tuple[str, ...], naming: tuple[str, ...]
) -> tuple[str, str, tuple[str, ...]] | None:
    """The package as it is written, the command in it (empty: its own), and what follows; None where more is said."""
    named: list[str] = []
    rest = list(args)
    while rest and rest[0].startswith("-") and rest[0] != "--":
        option, equals, value = rest.pop(0).partition("=")
        if option in naming and (equals or rest):
            named.append(value if equals else rest.pop(0))
        elif equals or option not in switches:
            return None
    if rest[:1] == ["--"]:
        del rest[0]
    if not rest or len(named) > 1:
        return None
    return (named[0], rest[0], tuple(rest[1:])) if named else (rest[0], "", tuple(rest[1:]))


def _of_npx(
    package: Package, wanted: str, command: str, args: tuple[str, ...], environment: Mapping[str, str]
) -> Installed | None:
    found = _NPM.match(wanted)
    cache = environment.get("npm_config_cache") or f"{environment.get('HOME', '')}/.npm"
    if found is None or wanted.endswith(_ARCHIVE) or not cache.startswith("/"):
        return None
    # As npm names it: by the text, and not by what it meant at that time.
    folder = Path(cache, "_npx", hashlib.sha512(wanted.encode()).hexdigest()[:16])
    modules = folder / "node_modules"
    fetch = shlex.join(["npx", "-y", "--cache", cache, "-p", wanted, "true"])
    nothing = Installed((), "", ((str(modules), ""),), fetch)
    place = modules / found["name"]
    try:
        manifest = read(place / "package.json", "json", _MANIFEST_BYTES).value
    except FileNotFoundError:
        return nothing
    if not isinstance(manifest, dict):
        raise UnreadableError(f"{place}/package.json is no manifest")
    version = str(manifest.get("version", ""))
    script = _script(found["name"], command, manifest.get("bin"))
    path = Path(os.path.realpath(place / script)) if script else place
    if (package.pinned and version != package.version) or not _is_program(path, modules):
        return nothing
    # Node looks for what a module does not find beside it in the folders above, and in the cache sessions may write.
    above = (Path(cache, "_npx/node_modules"), Path(cache, "node_modules"))
    places = (modules, *(one for one in above if is_folder(one) and any(one.iterdir())))
    return Installed((str(path), *args), version, tuple((str(one), sums.of_folder(one)) for one in places), fetch)


def _script(name: str, command: str, programs: object) -> str:
    """The program of a package that npx takes; empty where it would not know."""
    own = name.rpartition("/")[2]
    if isinstance(programs, str):
        programs = {own: programs}
    if not isinstance(programs, dict) or not all(isinstance(one, str) for one in programs.values()):
        return ""
    if command:
        return str(programs.get(command, ""))
    return str(next(iter(programs.values())) if len(set(programs.values())) == 1 else programs.get(own, ""))


def _of_uv(
    package: Package, _wanted: str, command: str, args: tuple[str, ...], environment: Mapping[str, str]
) -> Installed | None:
    if not _PYTHON.match(package.name):
        return None
    data = environment.get("XDG_DATA_HOME") or f"{environment.get('HOME', '')}/.local/share"
    tools = environment.get("UV_TOOL_DIR") or f"{data}/uv/tools"
    if not tools.startswith("/"):
        return None
    name = _normal(package.name)
    folder = Path(tools, name)
    wanted = f"{name}=={package.version}" if package.pinned else name
    # Without these options its files are those of the cache, under a second name, and there sessions write.
    fetch = shlex.join(["uv", "tool", "install", "--reinstall", "--link-mode", "copy", wanted])
    nothing = Installed((), "", ((str(folder), ""),), fetch)
    places = sorted(folder.glob("lib/python3*/site-packages"))
    if len(places) != 1:
        return nothing
    (site,) = places
    versions = [
        version
        for one in site.glob("*.dist-info")
        for known, _, version in (one.name.removesuffix(".dist-info").rpartition("-"),)
        if _normal(known) == name
    ]
    path = folder / "bin" / (command or package.name)
    if len(versions) != 1 or (package.pinned and versions[0] != package.version) or not _is_program(path, folder):
        return nothing
    try:
        # What Python keeps of its own is made anew by whoever runs it; no session may write there.
        whole = sums.of_folder(site, without="__pycache__")
    except sums.SharedError:
        return nothing
    return Installed((str(path), *args), versions[0], ((str(site), whole),), fetch)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_program(path: Path, folder: Path) -> bool:
    inside = os.path.realpath(path).startswith(f"{os.path.realpath(folder)}/")
    return inside and is_file(path) and os.access(path, os.X_OK)
