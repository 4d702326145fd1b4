"""Keeping a server to what was approved, where its program takes code from places that the session may write.

What is approved is read before the server starts, and again by whoever interprets it. In between nobody of the tree may be able
to change it; and what a program looks for in the folder that it starts in must not be found there first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mcpguard.catalogue import projects, scripts, shells, told, wrappers
from mcpguard.catalogue.identity import MISSING, Identity, resolve
from mcpguard.errors import HostError
from mcpguard.model.access import Access
from mcpguard.policy.automaton import Automaton

MayWrite = Callable[[str], bool]
# As far as the kernel reads the first line of a script; of `env -S` without what would have it read its words in another way.
_LONGEST_LINE = 256
_BY_ENV = re.compile(rb"#![ \t]*/(?:usr/)?bin/env[ \t]+[^'\"\\$#]+\Z")
_EXECUTED = ("program", "interpreter", "script", "loaded")
# These take what is in the folder that they start in first (packages, scripts, settings that name code to be loaded before the
# script), and cannot be told to leave that.
_LOCAL_FIRST = ("bun", "bunx", "deno", "npm", "npx", "pnpm", "pnpx", "ts-node", "tsx", "yarn")
_ANYTHING = "mcpguard-any-name"


def may_write_by(tables: bytes) -> MayWrite:
    """Whether the session may change what a path leads to, by its policy's tables."""
    automaton = Automaton.from_bytes(tables)

    def may_write(path: str) -> bool:
        real = os.path.realpath(path)
        return bool(automaton.decision(automaton.walk(os.fsencode(real))).allowed & Access.WRITE)

    return may_write


def words_of(
    name: str, found: Identity, cwd: str, environment: Mapping[str, str], may_write: MayWrite | None
) -> tuple[str, ...]:
    """With what an approved server is started: its own words, and what keeps its program from looking elsewhere.

    Args:
        cwd: where it is started.
        may_write: None: the session may write everything, as in audit; then nothing is refused.

    Raises:
        HostError: the session could put something else in its place.
    """
    given = [found.command, *(_placed(word, cwd, found) for word in found.args)]
    at = _inner(given)
    program, args = os.path.basename(given[at]) if at < len(given) else "", given[at + 1 :]
    if may_write is not None:
        _refuse_changeable(name, found, cwd, environment.get("HOME", "/"), may_write)
    if found.installed is not None and found.installed.words:
        given[at:] = [_placed(word, cwd, found) for word in found.installed.words]
        if _inner(given) != at:  # to `env` a path with `=` in it is a variable
            raise _refused(
                name, f"{given[0]} would not execute {given[at]}", "install it at a place without = in its path"
            )
        if not found.installed.folder:
            return tuple(given)
        cwd, program, args = found.installed.folder, os.path.basename(given[at]), given[at + 1 :]
    if may_write is not None and program in shells.ALL:
        _refuse_told(name, given[at:], cwd, environment, may_write)
    here = may_write is not None and may_write(os.path.join(cwd, _ANYTHING))
    # `env` may take away what would keep Python from there.
    if scripts.looks_in_its_folder(program, args, {} if at else environment):
        given[at + 1 : at + 1] = _safe_path(name, found, cwd, here)
    elif here and program in _LOCAL_FIRST:
        _refuse_local_first(name, program, cwd)
    return tuple(given)


def by_place(
    name: str, words: Sequence[str], found: Identity, environment: Mapping[str, str], cwd: str
) -> tuple[str, tuple[str, ...]]:
    """The program that is executed, and its words with each program that those name by its place.

    What `env` and its like execute, and what `env` does for the first line of a script, nobody looks at: they would search PATH
    once more, and could find another than the one that was approved.

    Raises:
        HostError: it is another one already.
    """
    known = dict(environment)
    program, given, at = _at_its_place(name, words[0], found, known, cwd), list(words), 0
    place = program
    while (wrapper := os.path.basename(place)) in wrappers.NAMES:
        inner = wrappers.command_at(wrapper, given[at + 1 :])
        if inner is None:
            break
        wrappers.change(known, wrapper, given[at + 1 : at + 1 + inner])
        at += 1 + inner
        place = _at_its_place(name, given[at], found, known, cwd)
        if "=" in place:  # to `env` that is a variable
            return program, tuple(given)
        given[at] = place
    if line := _looked_for(place):
        interpreter = _at_its_place(name, line[0], found, known, cwd)
        given[at : at + 1] = [interpreter, *line[1:], place]
        program = program if at else interpreter
    return program, tuple(given)


def _looked_for(place: str) -> Sequence[str]:
    """What the first line of a script has `env` look for, and with which words; empty where it has it do more than that."""
    try:
        with open(place, "rb") as file:
            line = file.read(_LONGEST_LINE).partition(b"\n")[0]
    except OSError:
        return ()
    rest = os.fsdecode(line[2:]).split()[1:] if _BY_ENV.match(line) else []
    if rest and rest[0].startswith("-S"):
        rest = [*rest[0][2:].split(), *rest[1:]]
    elif len(rest) > 1:  # for `env` that is one word
        return ()
    return rest if wrappers.command_at("env", rest) == 0 else ()


def _at_its_place(name: str, word: str, found: Identity, environment: Mapping[str, str], cwd: str) -> str:
    if word == found.command and found.found:
        return found.found
    place = str(resolve(word, environment, cwd) or word)
    if os.path.realpath(place) not in {code.path for code in found.code}:
        raise _refused(name, f"{word} is not what was approved any more", "start it again")
    return place


def _placed(word: str, cwd: str, found: Identity) -> str:
    """A script by its whole path, without links: whoever asked could go to another folder before it executes what it may, and
    there the same word names another file; and a link is another one, once somebody of the session has replaced it."""
    paths = {code.path for code in found.code if code.role in ("script", "loaded")}
    real = os.path.realpath(os.path.join(cwd, word))
    return real if real in paths else word


def _inner(given: Sequence[str]) -> int:
    """Where the command stands that `env` and its like execute; that of the last of them whose words are known."""
    at = 0
    while at < len(given) and (wrapper := os.path.basename(given[at])) in wrappers.NAMES:
        inner = wrappers.command_at(wrapper, given[at + 1 :])
        if inner is None:
            break
        at += 1 + inner
    return at


def _refuse_changeable(name: str, found: Identity, cwd: str, home: str, may_write: MayWrite) -> None:
    for code in found.code:
        if code.role in _EXECUTED and code.sha256 and may_write(code.path):
            raise _refused(
                name,
                f"this session may change its {code.role} {code.path}",
                "start the session again: it keeps such files of approved servers readonly; or move it out of the workspace",
            )
        places = (code.path, *_beside(code.path, home)) if code.role == "modules" and code.sha256 != MISSING else ()
        for place in places:
            if may_write(os.path.join(place, _ANYTHING)):
                raise _refused(
                    name,
                    f"this session may change its modules in {place}",
                    "start the session again: it keeps what approved servers are made of readonly; or install it elsewhere",
                )
    package = found.package
    if package is not None and package.version == "local" and may_write(os.path.join(cwd, package.name, _ANYTHING)):
        raise _refused(
            name,
            f"its package {package.name} is a folder that this session may change",
            "name the package by an exact version, or move it out of the workspace",
        )


def _beside(modules: str, home: str) -> Iterator[str]:
    """Where more modules come from.

    Node looks into the folders above and into two of the home; Python into that of its script before all others, and where a
    file in the folder of its environment says.
    """
    path = Path(modules)
    if path.name == "node_modules":
        above = path.parents[1:]
        below_home = [folder for folder in above if folder.is_relative_to(home)] if home != "/" else []
        yield from (str(folder / "node_modules") for folder in below_home or above)
        yield from (os.path.join(home, name) for name in (".node_modules", ".node_libraries"))
    elif path.name == "site-packages":
        yield from (str(path.parents[2]), str(path.parents[2] / "bin"))


def _safe_path(name: str, found: Identity, cwd: str, here: bool) -> list[str]:
    """What has Python not look in the folder that it starts in, which `-m` and `-c` do first."""
    # What an environment links to, Python finds without that folder.
    linked = (
        set() if found.installed is None else {os.path.realpath(one) for one in projects.own_modules(found.installed)}
    )
    own = [code.path for code in found.code if code.role == "script" and code.path not in linked]
    local = any(path.startswith(os.path.realpath(cwd) + "/") for path in own)
    if not here and local:
        return []
    programs = [Path(code.path) for code in found.code if code.role in ("program", "interpreter")]
    if local or not any(map(scripts.knows_safe_path, programs)):
        if not here:
            return []
        raise _refused(
            name,
            f"Python looks for its modules in {cwd} first, and this session may write there",
            "name its script and not the module, install it for Python 3.11 or newer, or start it in another folder (`cwd`)",
        )
    return ["-P"]


def _refuse_told(
    name: str, words: Sequence[str], cwd: str, environment: Mapping[str, str], may_write: MayWrite
) -> None:
    """Of a shell's text each command is judged as one that is declared by itself: nobody adds an option to it."""
    try:
        steps = told.steps(shells.texts(words)[1], environment, Path(cwd))
    except told.UntoldError as unknown:
        raise _refused(name, f"{unknown} only the shell knows", "declare the program of the server by itself") from None
    for step in steps:
        program, args = os.path.basename(step.words[0]), step.words[1:]
        if program in _LOCAL_FIRST or scripts.looks_in_its_folder(program, args, step.environment):
            for folder in step.folders:
                if may_write(str(folder / _ANYTHING)):
                    _refuse_local_first(name, program, str(folder))


def _refuse_local_first(name: str, program: str, cwd: str) -> None:
    raise _refused(
        name,
        f"{program} takes what it runs from {cwd} first, and this session may write there",
        "use npx with an exact version, name its script, or start it in another folder (`cwd`)",
    )


def _refused(name: str, why: str, do: str) -> HostError:
    return HostError(f"the MCP server {name} was not started", why=why, do=do, code="mcp.writable")
