"""How to declare a server that only a runner of packages or a shell knows, so that it can be approved.

From the words of its own declaration, for whoever reads them there: `bunx x@1.2.3 --flag` is `npx -y x@1.2.3 --flag`. Of a
script of a project the file is read in which that stands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mcpguard.catalogue import installed, projects, shells
from mcpguard.catalogue import package as packages
from mcpguard.mcp.masking import masked_text

IN_GENERAL = (
    "declare it as `npx -y NAME@VERSION` or `uvx NAME==VERSION`, by itself and without other options; or install it "
    "(npm install -g, uv tool install, pipx install) and declare the path of its program, in a shell's text as a plain word; "
    "of a project declare what its script executes"
)
_OF_A_SHELL = (
    "declare the program that this starts by itself: its path, its words, its variables in `env` and its folder in `cwd` "
    "(in place of `source DIR/bin/activate` the path DIR/bin/python)"
)
_OF_PROJECTS = ("poetry", "pdm", "hatch", "pipenv", "rye", "pixi")
_LONGEST = 300
# Before what `uv run` executes; with others nobody can say what it needs.
_UV_SWITCHES = frozenset(
    ("-q", "--quiet", "--frozen", "--no-project", "--isolated", "--exact", "--no-sync", "--locked")
)
_OF_UV = (
    "declare it by itself as `uv run --directory DIR PROGRAM`, of a project DIR that has all that it needs (uv add "
    "--project DIR PACKAGE) and without --with; or make an environment (uv venv DIR, uv pip install --python DIR "
    "PACKAGE) and declare DIR/bin/python with its script"
)
_OF_NODE = {
    **dict.fromkeys(("npx", "bunx", "pnpx"), ()),
    **dict.fromkeys(("pnpm", "yarn"), ("dlx",)),
    "bun": ("x",),
    "npm": ("exec", "x"),
}
# A word that a shell leaves as it is.
_PLAIN = re.compile(r"[^$`;&|<>(){}*?~#!\\]+\Z")
_VERSION = re.compile(r"v\d+\Z")


def of(runner: str, words: Sequence[str], cwd: str = "/") -> str:
    """What to declare in place of these words.

    Args:
        runner: as `identity.unknown_runner` tells it.
        words: the command and its arguments, as they are shown to people.
        cwd: where it would start.
    """
    if runner in shells.ALL:
        return _OF_A_SHELL
    own, besides = _behind(runner, words)
    if own is None:
        return IN_GENERAL
    if not besides and (script := projects.script_of(runner, own, Path(cwd))) is not None:
        return _of_script(runner, script)
    if runner in _OF_PROJECTS:
        return _of_environment(runner, own) + besides
    if runner in _OF_NODE:
        return _of_node(runner, own) + besides
    if runner in ("uvx", "uv", "pipx"):
        return (_of_uv_run(own[1:]) if own[:1] == ["run"] and runner == "uv" else _of_python(runner, own)) + besides
    return (_of_address(runner, own) if runner in ("go", "deno") else IN_GENERAL) + besides


def _behind(runner: str, words: Sequence[str]) -> tuple[list[str] | None, str]:
    """The words behind a runner, None where that is not clear; and what else is to be declared, of a shell's text."""
    for at, word in enumerate(words):
        if PurePosixPath(word).name == runner:
            return list(words[at + 1 :]), ""
    for text in shells.texts(words)[1]:
        reader = shlex.shlex(text, posix=True, punctuation_chars=True)
        reader.whitespace_split, reader.commenters = True, ""
        try:
            inner = list(reader)
        except ValueError:
            return None, ""
        own, _ = _behind(runner, inner)
        if own is not None:
            plain = all(map(_PLAIN.match, own))
            return (own, "; what the shell does before that, by `env` and `cwd`") if plain else (None, "")
    return None, ""


def _declare(*words: str) -> str:
    return f"declare it as: {shlex.join(words)}"


def _install(*words: str, program: str, args: Sequence[str]) -> str:
    path = f"the path that `command -v {shlex.quote(program)}` says"
    behind = f", with its words behind it: {shlex.join(args)}" if args else ""
    return f"outside of the session: {shlex.join(words)}; then declare {path}{behind}"


def _of_script(runner: str, script: projects.Script) -> str:
    """What a line of a project executes, where it is one program; else the line, for whoever takes it apart."""
    folder, stands = shlex.quote(str(script.file.parent)), f"`{script.name}` in {script.file}"
    task = "task" if runner == "deno" else "run"
    first = "".join(
        f"; first, outside of the session: {shlex.join([runner, task, one])} in {folder}"
        for one in script.around
        if not one.startswith("post")
    )
    words = projects.program_of(script)
    if words is None:
        text = masked_text(script.text)[:_LONGEST]
        return (
            f"do outside of the session what {stands} does before it starts the server, and declare the program of that by "
            f"itself, with {folder} as its folder (`cwd`); it says: {text}{first}"
        )
    return f"{_declare(*map(masked_text, words))}, with {folder} as its folder (`cwd`), as {stands} has it{first}"


def _of_environment(runner: str, own: list[str]) -> str:
    """Of a tool that runs something of an environment which it keeps where it likes."""
    at = own.index("run") + 1 if "run" in own else len(own)
    if at >= len(own) or own[at].startswith("-"):
        return IN_GENERAL
    program, args, before = own[at], own[at + 1 :], shlex.join([runner, *own[: at - 1]])
    behind = f", with its words behind it: {shlex.join(args)}" if args else ""
    return (
        f"outside of the session, in the folder of the project: {before} install; then declare the path that "
        f"`{before} run which {shlex.quote(program)}` says there{behind}"
    )


def _of_node(runner: str, own: list[str]) -> str:
    verbs = _OF_NODE[runner]
    if verbs and (not own or own[0] not in verbs):
        return IN_GENERAL
    asked = installed.asked_of_node(own[1:] if verbs else own)
    if asked is None or len(asked.packages) != 1:
        return IN_GENERAL
    (wanted,) = asked.packages
    if installed.is_in_npms_registry(wanted):
        named = ("-p", wanted, asked.command) if asked.command else (wanted,)
        return _declare("npx", "-y", *asked.options, *named, *asked.args)
    program = asked.command or "PROGRAM"
    return _install("npm", "install", "-g", wanted, program=program, args=asked.args)


def _of_python(runner: str, own: list[str]) -> str:
    verbs = {"uv": ["tool", "run"], "pipx": ["run"]}.get(runner, [])
    if own[: len(verbs)] != verbs:
        return IN_GENERAL
    asked = installed.asked_of_python(own[len(verbs) :])
    if asked is None or len(asked.packages) != 1:
        return IN_GENERAL
    (wanted,) = asked.packages
    package = packages.of("uvx", [wanted])
    name = package.name.partition("[")[0] if package is not None and "/" not in package.name else "PROGRAM"
    if runner != "pipx" and name != "PROGRAM":
        return _declare(
            "uvx", *asked.options, *(("--from", wanted, asked.command) if asked.command else (wanted,)), *asked.args
        )
    program, install = asked.command or name, ("pipx", "install") if runner == "pipx" else ("uv", "tool", "install")
    return _install(*install, *asked.options, wanted, program=program, args=asked.args)


def _of_uv_run(own: list[str]) -> str:
    brought: list[str] = []
    python: list[str] = []
    rest = list(own)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "--", "-m"):
        option, equals, value = rest.pop(0).partition("=")
        if option in ("--with", "-w", "-p", "--python") and (equals or rest):
            value = value if equals else rest.pop(0)
            if option in ("-p", "--python"):
                python = ["--python", value]
            else:
                brought += [one for one in re.split(r",(?![^\[]*\])", value) if one]
        elif equals or option not in _UV_SWITCHES:
            return _OF_UV
    rest = rest[1:] if rest[:1] == ["--"] else rest
    if not rest or not brought:
        return _OF_UV
    program = rest[0]
    if program == "-m" or program.endswith(".py") or re.match(r"python[\d.]*\Z", program):
        args = rest if program == "-m" or program.endswith(".py") else rest[1:]
        install = shlex.join(["uv", "pip", "install", "--python", "DIR", *brought])
        return (
            f"outside of the session, with a folder DIR of its own: {shlex.join(['uv', 'venv', *python, 'DIR'])} && {install}; "
            f"then declare it as: {shlex.join(['DIR/bin/python', *args])}"
        )
    own_first = sorted(brought, key=lambda one: re.split(r"[\[=<>!~@ ]", one)[0] != program)
    others = [word for one in own_first[1:] for word in ("--with", one)]
    return _declare("uvx", *python, *others, "--from", own_first[0], *rest)


def _of_address(runner: str, own: list[str]) -> str:
    at = next((at for at, word in enumerate(own) if packages.is_address(runner, word)), None)
    if at is None or "serve" in own[:at]:
        return IN_GENERAL
    wanted, args = own[at], own[at + 1 :]
    parts = [part for part in wanted.partition("@")[0].split("/") if not _VERSION.match(part)]
    if runner == "go":
        return _install("go", "install", wanted, program=parts[-1] if parts else "PROGRAM", args=args)
    options = [word for word in own[:at] if word not in ("run", "x")]
    if wanted.startswith("npm:") and installed.is_in_npms_registry(wanted.removeprefix("npm:")):
        return _declare("npx", "-y", wanted.removeprefix("npm:"), *args)
    compiled = shlex.join(["deno", "compile", *options, "-o", "FILE", wanted])
    return f"outside of the session: {compiled}; then declare it as: {shlex.join(['FILE', *args])}"
