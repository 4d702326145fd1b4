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

from mcpguard.catalogue import package as packages
from mcpguard.catalogue import sums
from mcpguard.catalogue.package import Package
from mcpguard.catalogue.reading import UnreadableError, is_file, is_folder, read
from mcpguard.model.values import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# A name of npm's registry, with a version, a range or a tag; no path, address, alias or archive.
_NPM = re.compile(r"(?P<name>(?:@[\w.~-]+/)?[\w~-][\w.~-]*)(?:@[\w.^~<>=*|+ -]+)?\Z", re.ASCII)
_ARCHIVE = (".tgz", ".tar", ".tar.gz")
_PYTHON = re.compile(r"[A-Za-z0-9][\w.-]*\Z", re.ASCII)
_NPX_SWITCHES = ("-y", "--yes", "-q", "--quiet", "--silent", "--offline", "--prefer-offline", "--prefer-online")
_NPX_VALUES = ("--registry",)
_UVX_SWITCHES = ("-q", "--quiet", "--offline", "--no-progress")
# What is fetched with it, and from where: what is there then is what counts.
_UVX_VALUES = (
    *(
        "-p",
        "--python",
        "--with",
        "-i",
        "--index",
        "--index-url",
        "--default-index",
        "--extra-index-url",
        "-f",
        "--find-links",
    ),
    *("-c", "--constraints", "--overrides", "--prerelease", "--resolution", "--exclude-newer"),
)
# How npm sorts several: as a dictionary does it, not by the bytes.
_ORDER = "_-,;:!?.'\"()[]{}@*/\\&#%`^+<=>|~$0123456789abcdefghijklmnopqrstuvwxyz"
_EXTRAS = re.compile(r"\[[\w,. -]*\]\Z", re.ASCII)
_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Installed:
    """A package that a runner was asked for.

    Attributes:
        words: what it would execute: a script, its arguments behind it; empty: it is not there, so nobody knows.
        version: the one that is there.
        modules: folders that its code comes from, each with a sum; where it is not there, the one that it should be in.
        fetch: what gets it, and starts nothing of it.
        folder: where it starts; empty: where it is declared to.
        environment: of Python, whose programs it finds first; empty: none.
    """

    words: tuple[str, ...]
    version: str
    modules: tuple[tuple[str, str], ...]
    fetch: str
    folder: str = ""
    environment: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a runner was told.

    Attributes:
        packages: as they are written.
        command: in them; empty: the only one's own.
        args: what follows.
        options: those with a value, which matter when it is fetched.
    """

    packages: tuple[str, ...]
    command: str
    args: tuple[str, ...]
    options: tuple[str, ...]


def find(package: Package, args: Sequence[str], environment: Mapping[str, str]) -> Installed | None:
    """What these words of a runner lead to; None where only the runner can tell: options that change what is run, addresses,
    runners that keep nothing.

    Args:
        environment: with what it would start.

    Raises:
        OSError, UnreadableError: it is there, and cannot be looked at.
    """
    if package.runner in ("npx", "npm"):
        words = args if package.runner == "npx" else _of_npm(args)
        # To npm itself `-p` is another option.
        naming = ("-p", "--package") if package.runner == "npx" else ("--package",)
        asked = None if words is None else _asked(words, _NPX_SWITCHES, _NPX_VALUES, naming)
        return _of_npx(asked, environment) if asked else None
    if package.runner in ("uvx", "uv"):
        if package.runner == "uv" and tuple(args[:2]) != ("tool", "run"):
            return None
        asked = _asked(args[2:] if package.runner == "uv" else args, _UVX_SWITCHES, _UVX_VALUES, ("--from",))
        return _of_uv(package, asked, environment) if asked and len(asked.packages) == 1 else None
    return None


def asked_of_node(args: Sequence[str]) -> Asked | None:
    """What any runner of npm's packages was told, behind its verb; None where more is said."""
    return _asked(args, (*_NPX_SWITCHES, "--bun"), _NPX_VALUES, ("-p", "--package"))


def asked_of_python(args: Sequence[str]) -> Asked | None:
    """What `uvx` or `pipx run` was told; None where more is said."""
    return _asked(args, _UVX_SWITCHES, _UVX_VALUES, ("--from", "--spec"))


def is_in_npms_registry(wanted: str) -> bool:
    """Whether that is a name of npm's registry, maybe with a version, and no address, folder or archive."""
    return _NPM.match(wanted) is not None and not wanted.endswith(_ARCHIVE)


def _of_npm(args: Sequence[str]) -> list[str] | None:
    """`npm exec` as `npx` has it: of npm options are its own up to `--`, wherever they stand."""
    if not args or args[0] not in ("exec", "x"):
        return None
    at = list(args).index("--") if "--" in args else len(args)
    own, others = list(args[1:at]), args[at + 1 :]
    first = 0
    while first < len(own) and own[first].startswith("-"):
        first += 2 if own[first] in ("--package", *_NPX_VALUES) else 1
    if any(word.startswith("-") for word in own[first:]):
        return None
    return [*own[:first], "--", *own[first:], *others]


def _asked(
    args: Sequence[str], switches: tuple[str, ...], values: tuple[str, ...], naming: tuple[str, ...]
) -> Asked | None:
    """None where more is said."""
    named: list[str] = []
    options: list[str] = []
    rest = list(args)
    while rest and rest[0].startswith("-") and rest[0] != "--":
        option, equals, value = rest.pop(0).partition("=")
        if option in (*naming, *values) and (equals or rest):
            value = value if equals else rest.pop(0)
            if option in naming:
                named.append(value)
            else:
                options += (option, value)
        elif equals or option not in switches:
            return None
    if rest[:1] == ["--"]:
        del rest[0]
    if not rest:
        return None
    packages, command = (tuple(named), rest[0]) if named else ((rest[0],), "")
    return Asked(packages, command, tuple(rest[1:]), tuple(options))


def _of_npx(asked: Asked, environment: Mapping[str, str]) -> Installed | None:
    found = [_NPM.match(wanted) for wanted in asked.packages]
    cache = environment.get("npm_config_cache") or f"{environment.get('HOME', '')}/.npm"
    names = [one["name"] for one in found if one is not None]
    if len(names) < len(found) or any(one.endswith(_ARCHIVE) for one in asked.packages) or not cache.startswith("/"):
        return None
    # As npm names it: by the texts, and not by what they meant at that time.
    text = "\n".join(sorted(asked.packages, key=lambda wanted: [_ORDER.find(char) for char in wanted.lower()]))
    folder = Path(cache, "_npx", hashlib.sha512(text.encode()).hexdigest()[:16])
    modules = folder / "node_modules"
    named = (word for wanted in asked.packages for word in ("-p", wanted))
    fetch = shlex.join(["npx", "-y", "--cache", cache, *asked.options, *named, "true"])
    nothing = Installed((), "", ((str(modules), ""),), fetch)
    try:
        manifests = {name: _manifest(modules / name) for name in names}
    except FileNotFoundError:
        return nothing
    versions = {name: str(manifest.get("version", "")) for name, manifest in manifests.items()}
    exact = (packages.of("npx", ["-p", wanted, "x"]) for wanted in asked.packages)
    wrong = any(one is None or (one.pinned and versions.get(one.name) != one.version) for one in exact)
    scripts = [
        (name, script)
        for name, manifest in manifests.items()
        if (script := _script(name, asked.command, manifest.get("bin")))
    ]
    # Of one name in two packages nobody knows which npx would take.
    path = Path(os.path.realpath(modules / scripts[0][0] / scripts[0][1])) if len(scripts) == 1 else modules
    if wrong or not _is_program(path, modules):
        return nothing
    # Node looks for what a module does not find beside it in the folders above, and in the cache sessions may write.
    above = (Path(cache, "_npx/node_modules"), Path(cache, "node_modules"))
    places = (modules, *(one for one in above if is_folder(one) and any(one.iterdir())))
    version = versions[names[0]] if len(names) == 1 else ", ".join(f"{name} {one}" for name, one in versions.items())
    return Installed((str(path), *asked.args), version, tuple((str(one), sums.of_folder(one)) for one in places), fetch)


def _manifest(place: Path) -> Mapping[str, Any]:
    manifest = read(place / "package.json", "json", _MANIFEST_BYTES).value
    if not isinstance(manifest, dict):
        raise UnreadableError(f"{place}/package.json is no manifest")
    return manifest


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


def _of_uv(package: Package, asked: Asked, environment: Mapping[str, str]) -> Installed | None:
    extras = _EXTRAS.search(package.name)
    plain = package.name[: extras.start()] if extras else package.name
    if not _PYTHON.match(plain):
        return None
    data = environment.get("XDG_DATA_HOME") or f"{environment.get('HOME', '')}/.local/share"
    tools = environment.get("UV_TOOL_DIR") or f"{data}/uv/tools"
    if not tools.startswith("/"):
        return None
    name = _normal(plain)
    folder = Path(tools, name)
    wanted = (name + extras[0] if extras else name) + (f"=={package.version}" if package.pinned else "")
    # Else its files are those of the cache, under a second name, and there sessions write; and whoever runs it elsewhere has
    # Python add what it compiled, which would be another tool, for that counts: Python takes it in place of the source.
    options = ("--reinstall", "--link-mode", "copy", "--compile-bytecode", *asked.options)
    fetch = shlex.join(["uv", "tool", "install", *options, wanted])
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
    path = folder / "bin" / (asked.command or plain)
    if len(versions) != 1 or (package.pinned and versions[0] != package.version) or not _is_program(path, folder):
        return nothing
    try:
        whole = sums.of_folder(site)
    except sums.SharedError:
        return nothing
    return Installed((str(path), *asked.args), versions[0], ((str(site), whole),), fetch)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _is_program(path: Path, folder: Path) -> bool:
    inside = os.path.realpath(path).startswith(f"{os.path.realpath(folder)}/")
    return inside and is_file(path) and os.access(path, os.X_OK)
