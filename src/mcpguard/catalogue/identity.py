"""What a server really is: the program, its words, its script and its package; of a remote one its origin.

Nothing is executed to find out. The name that a server gives itself, and the name in a configuration, count for nothing.
The digest covers the resolved path of the program and its bytes, with those of the script that it interprets; every word; the
package as specified; all that is installed of it, where `npx` and `uvx` are asked for one (`installed`); the variables and the
folder that its configuration declares; and other variables that choose code (STEERING). It does not cover what another script
imports, nor what other package runners fetch beyond the version or digest that their words name.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from mcpguard.catalogue import installed, instead, projects, scripts, shells, sums, told, wrappers
from mcpguard.catalogue import package as packages
from mcpguard.catalogue.installed import Installed
from mcpguard.catalogue.package import Package
from mcpguard.catalogue.reading import MAX_CODE, UnreadableError, content, is_file, is_folder
from mcpguard.mcp.masking import LOOKED_AT, MASK, is_secret_name, masked_text
from mcpguard.model.values import dataclass

# Variables by which a program loads other code, or a runner fetches from elsewhere.
STEERING = (
    *(
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "LD_AUDIT",
        "NODE_OPTIONS",
        "NODE_PATH",
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
    ),
    *(
        "PYTHONINSPECT",
        "PYTHONUSERBASE",
        "PERL5OPT",
        "PERL5LIB",
        "RUBYOPT",
        "RUBYLIB",
        "BASH_ENV",
        "ENV",
        "JAVA_TOOL_OPTIONS",
    ),
    *(
        "_JAVA_OPTIONS",
        "JDK_JAVA_OPTIONS",
        "CLASSPATH",
        "DENO_CONFIG",
        "BUN_OPTIONS",
        "DOCKER_HOST",
        "DOCKER_CONTEXT",
        "CONTAINER_HOST",
    ),
    *(
        "npm_config_registry",
        "npm_config_userconfig",
        "npm_config_prefix",
        "npm_config_node_options",
        "npm_config_script_shell",
    ),
    *(
        "NPM_CONFIG_REGISTRY",
        "NPM_CONFIG_USERCONFIG",
        "NPM_CONFIG_PREFIX",
        "NPM_CONFIG_NODE_OPTIONS",
        "NPM_CONFIG_SCRIPT_SHELL",
    ),
    *(
        "UV_INDEX",
        "UV_INDEX_URL",
        "UV_DEFAULT_INDEX",
        "UV_EXTRA_INDEX_URL",
        "UV_FIND_LINKS",
        "UV_PYTHON",
        "UV_CONFIG_FILE",
    ),
    *(
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
        "PIP_CONFIG_FILE",
        "GIT_SSH_COMMAND",
        "GIT_EXEC_PATH",
        "GIT_CONFIG_GLOBAL",
    ),
)
MISSING = "missing"
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
# Of a script that names packages in its first lines, for `uv run`.
_BRINGS_PACKAGES = re.compile(rb"^# /// script[ \t]*\r?$", re.MULTILINE)
# Words that every shell takes as they are written, but for quotes.
_NOT_PLAIN = re.compile(r"[$`\\;&|<>(){}*?\[\]#!~\n\r]")
_FETCHES = "names packages that uv fetches whenever it starts"
_DEEPEST = 4
_SHEBANG = 256
_MAX_SETTINGS = 1 << 20
_RUN_OF_A_FOLDER = ("__main__.py", "package.json", "index.js", "index.json", "index.node", "index.mjs", "index.ts")
_RUNNER_SETTINGS = {
    **dict.fromkeys(("npx", "npm"), (".npmrc",)),
    **dict.fromkeys(("pnpm", "pnpx"), (".npmrc", ".pnpmfile.cjs", "pnpm-workspace.yaml")),
    "yarn": (".npmrc", ".yarnrc", ".yarnrc.yml"),
    **dict.fromkeys(("bun", "bunx"), (".npmrc", "bunfig.toml")),
}
# Of those that run scripts what stands beside these, or above, and says what is loaded before them or in place of others.
_SCRIPT_SETTINGS = {
    "bun": ("bunfig.toml", "tsconfig.json"),
    "deno": ("deno.json", "deno.jsonc"),
    **dict.fromkeys(("tsx", "ts-node"), ("tsconfig.json",)),
}
_NPM_STEERING = re.compile(
    r"^[ \t]*(?:[^\s=]*registry|(?:node-options|script-shell|shell|prefix|cache|cafile|ca|strict-ssl|(?:https?-)?proxy|git|"
    r"userconfig|globalconfig|location)(?:\[\])?)[ \t]*=.*$",
    re.MULTILINE,
)
# More than a gate takes; each may name files in the folders that all the others name.
_MOST_WORDS = 256
# Of one server, for a person to read.
MAX_WORDS = 200
_SHOWN = 1000


@dataclass(frozen=True, slots=True)
class Code:
    """A file that is executed or interpreted.

    Attributes:
        role: `program`, `interpreter`, `script`, `loaded` (by an option, before the script), `modules` (a folder with all that
            a package installed), `local package` (which a runner takes instead of fetching one) or `settings` (of a runner, in
            the folder that it starts in).
        path: links resolved; as written where there is no such file.
        sha256: of its bytes; empty for an interpreter that only root can change; MISSING where it cannot be read.
    """

    role: str
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What is executed, or called.

    Attributes:
        command, args: as given.
        found: where the command was found, before links were followed; empty where it was not.
        code: the files, the program first; empty for a remote server.
        package: what a package runner was asked for; None where the command is none.
        steering: variables of STEERING that are set, with the SHA-256 of their values.
        declared: variables of its configuration, and `folder` where it names one, as they are written there: what they lead a
            server to is part of what was approved, and a secret that comes from the environment may change.
        origin: scheme, host and port of a remote server; else empty.
        installed: what the package runner would execute, and is executed without it; None where only the runner knows.
        behind: how many of the last words are for a script that is part of this: it alone knows what they are.
        notes: what could not be found out, one sentence each.
        cwd: where it would start; no part of it by itself.
    """

    command: str
    args: tuple[str, ...] = ()
    found: str = ""
    code: tuple[Code, ...] = ()
    package: Package | None = None
    steering: tuple[tuple[str, str], ...] = ()
    declared: tuple[tuple[str, str], ...] = ()
    origin: str = ""
    installed: Installed | None = None
    behind: int = 0
    notes: tuple[str, ...] = ()
    cwd: str = "/"

    @property
    def program(self) -> str:
        """Resolved path of the program; empty where there is none."""
        return self.code[0].path if self.code and self.found else ""

    @property
    def digest(self) -> str:
        """One text for all of it: `sha256:` and 64 hex digits."""
        code = [[one.role, one.path, one.sha256] for one in self.code]
        package = str(self.package or "")
        everything = [self.command, self.args, self.found, code, package, self.steering, self.declared, self.origin]
        return f"sha256:{sums.of_text(json.dumps(everything))}"

    def facts(self) -> dict[str, str]:
        """The same for a person, by what it is; secrets in words are masked."""
        if self.origin:
            return {"origin": self.origin}
        facts = {"command": " ".join(shown((self.command, *self.args)))}
        if self.found and self.found != self.code[0].path:
            facts["found as"] = self.found
        for code in self.code:
            role = next(name for name in _numbered(code.role) if name not in facts)
            facts[role] = brief(code.path)
            if code.sha256:
                facts[f"{role} sha256"] = code.sha256
        if self.package is not None:
            facts["package"] = brief(str(self.package))
        if self.installed is not None and self.installed.version:
            facts["installed"] = brief(self.installed.version)
        facts |= {name: _value(name, text) for name, text in self.declared}
        return facts | {f"{name} sha256": value for name, value in self.steering if f"variable {name}" not in facts}


def of(
    command: str, args: Sequence[str], env: Mapping[str, str], cwd: str, declared: Mapping[str, str] | None = None
) -> Identity:
    """The identity of a local server.

    Args:
        env: with what it would start: PATH is searched, STEERING is part of it.
        cwd: absolute; what relative paths begin at.
        declared: as `Identity.declared`: `variable NAME` and `folder`.
    """
    steering = {name: sums.of_text(env[name]) for name in STEERING if env.get(name)}
    code: list[Code] = []
    notes: list[str] = []
    found = resolve(command, env, cwd)
    if len(args) > _MOST_WORDS:
        code.append(Code("program", command, MISSING))
        notes.append(f"it has more than {_MOST_WORDS} words, of which nobody looks what they are")
        package, run, behind = None, None, 0
    else:
        package, run, behind = _look(command, list(args), dict(env), Path(cwd), code, notes, 0)
    return Identity(
        command,
        tuple(args),
        str(found or ""),
        tuple(code),
        package,
        tuple(sorted(steering.items())),
        tuple(sorted((declared or {}).items())),
        installed=run,
        behind=behind,
        notes=tuple(dict.fromkeys(notes)),
        cwd=cwd,
    )


def of_remote(url: str) -> Identity:
    """The identity of a remote server: its origin; one that cannot be read is an origin of its own, which nobody approved."""
    return Identity("", origin=origin(url) or f"unreadable:{sums.of_text(url)}")


def origin(url: str) -> str:
    """`scheme://host:port`, lower case, the port always there; empty for what is no http(s) or ws(s) URL."""
    try:
        parts = urlsplit(url)
        port, host = parts.port or _PORTS[parts.scheme], parts.hostname
    except (ValueError, KeyError):
        return ""
    if not host or not host.isascii() or any(char in host for char in "%\\ {}$"):
        return ""
    shown_host = f"[{host}]" if ":" in host else host.rstrip(".")
    return f"{parts.scheme}://{shown_host}:{port}"


def resolve(command: str, env: Mapping[str, str], cwd: str) -> Path | None:
    """The file that a command means, links not followed; None where no program is there."""
    if not command or "\0" in command:
        return None
    folders = [cwd] if "/" in command else env.get("PATH", os.defpath).split(os.pathsep)
    candidates = (Path(os.path.normpath(Path(cwd, folder or ".", command))) for folder in folders)
    return next((path for path in candidates if is_file(path) and os.access(path, os.X_OK)), None)


def shown(words: Sequence[str]) -> list[str]:
    """Words without the secrets in them, nor those that an option before them names; what is very long is cut."""
    texts: list[str] = []
    named = False
    for word in words[:MAX_WORDS]:
        texts.append(MASK if named and not word.startswith("-") else brief(word))
        named = word.startswith("-") and "=" not in word and is_secret_name(word)
    return texts + (["…"] if len(words) > MAX_WORDS else [])


def brief(text: str) -> str:
    """The beginning of a text, without secrets: they are looked for before it is cut."""
    found = masked_text(text[:LOOKED_AT])
    return found if len(text) <= LOOKED_AT and len(found) <= _SHOWN else f"{found[:_SHOWN]}…"


def _look(
    command: str, args: list[str], env: dict[str, str], cwd: Path, code: list[Code], notes: list[str], depth: int
) -> tuple[Package | None, Installed | None, int]:
    """Add what a command executes, and what it executes in turn; returns its package, what is installed of it, and how many
    words are behind its script."""
    found = resolve(command, env, str(cwd))
    name = Path(command).name
    if found is None:
        code.append(Code("program", command, MISSING))
        notes.append(f"no program {command} was found")
        return packages.of(name, args), None, 0
    run = scripts.find(name, found, args, env, cwd)
    _add(code, notes, "interpreter" if run.files and scripts.is_interpreter(name) else "program", found)
    _add_interpreter(found, env, cwd, code, notes)
    for role, path in run.files:
        _add(code, notes, role, path)
    if run.note:
        notes.append(run.note)
    for path in _up(cwd, env.get("HOME", ""), _SCRIPT_SETTINGS.get(name, ())):
        _add(code, notes, "settings", path)
    if shells.hands_on(name, args):
        code.append(Code("program", command, MISSING))
        notes.append(f"what {command} has executed cannot be told from its words: declare that by itself")
    if name == "uv" and "run" in args and packages.of(name, args) is None:
        if _brings_packages(run.files, code, notes):
            return None, None, 0
        return None, *_add_project(args, env, cwd, code, notes, depth)
    if name in wrappers.NAMES and args:
        at = wrappers.command_at(name, args) if depth < _DEEPEST else None
        if at is None:
            code.append(Code("program", command, MISSING))
            notes.append(
                f"what {command} executes cannot be told from its words: declare it without this, or without options"
            )
            return None, None, 0
        wrappers.change(env, name, args[:at])
        return _look(args[at], args[at + 1 :], env, cwd, code, notes, depth + 1)
    plain = plain_command(name, args)
    if plain and depth < _DEEPEST and packages.of(plain[0], plain[1:]):
        return _look(plain[0], plain[1:], env, cwd, code, notes, depth + 1)
    if name in shells.ALL and (texts := shells.texts((name, *args))[1]):
        _add_told(texts, env, cwd, code, notes)
    package = packages.of(name, args)
    if package is not None and package.image:
        notes.append(
            "what runs in the container is outside of every session: no rule holds it, and no record tells of it"
        )
    if package is None:
        known = all(one.sha256 != MISSING for one in code)
        return None, None, run.behind if known else 0
    there = _add_installed(package, args, env, cwd, code, notes)
    if there is None or not there.words:
        _add_local(package, cwd, env.get("HOME", ""), code, notes)
    return package, there, 0


def _add_told(texts: Sequence[str], env: Mapping[str, str], cwd: Path, code: list[Code], notes: list[str]) -> None:
    """The programs that the text of a shell names, and their scripts, wherever it may start them."""
    try:
        steps = told.steps(texts, env, cwd)
    except told.UntoldError as unknown:
        code.append(Code("script", texts[0], MISSING))
        notes.append(f"{unknown} only the shell knows: declare the program by itself, with its folder in `cwd`")
        return
    for step in steps:
        name = Path(step.words[0]).name
        looked = (resolve(step.words[0], step.environment, str(one)) for one in step.folders)
        places = {str(found): found for found in looked if found}
        if not places and "/" in step.words[0]:
            code.append(Code("program", step.words[0], MISSING))
            notes.append(f"no program {step.words[0]} was found")
        for found in places.values():
            _add(code, notes, "program", found, system="/" not in step.words[0])
            _add_interpreter(found, step.environment, cwd, code, notes)
            runs = [scripts.find(name, found, step.words[1:], step.environment, one) for one in step.folders]
            files = dict.fromkeys(file for run in runs for file in run.files)
            there = [file for file in files if is_file(file[1])]
            for role, path in there or list(files)[-1:]:
                _add(code, notes, role, path)
    code[:] = dict.fromkeys(code)
    notes.append("a shell starts it: its text, and the programs and scripts that this names, are part of this")


def plain_command(shell: str, args: Sequence[str]) -> list[str]:
    """The words of `sh -c "exec npx -y x"`, where the shell does nothing but execute them; else empty."""
    if shell not in shells.NAMES or len(args) != 2 or args[0] != "-c" or _NOT_PLAIN.search(args[1]):
        return []
    try:
        words = shlex.split(args[1])
    except ValueError:
        return []
    words = words[1:] if words[:1] == ["exec"] else words
    return [] if not words or "=" in words[0] or words[0].startswith("-") else words


def unknown_runner(found: Identity) -> str:
    """The runner of packages, or the shell, by which a server is started that only it knows; empty where what is executed is
    known."""
    if found.installed is not None or found.origin or (found.package is not None and found.package.image):
        return ""
    if found.package:
        return found.package.runner

    def mentioned(program: str, *more: str) -> str:
        return packages.mentioned((program, *more, *found.args), found.behind, _is_plain_folder)

    said = mentioned(found.command) or _by_shell(found)
    # What links lead to counts as well. Of what is inside nobody knows which word is its first, as behind an option.
    said = said or mentioned(found.program)
    inside = (one.path for one in found.code[1:] if one.role in ("program", "script"))
    return said or next((runner for path in inside if (runner := mentioned(path, "-"))), "")


def _is_plain_folder(path: str) -> bool:
    """Whether a folder is there that no interpreter would run."""
    place = Path(path)
    return is_folder(place) and not any(is_file(place / name) for name in _RUN_OF_A_FOLDER)


def in_place_of(runner: str, found: Identity) -> str:
    """What to do about a server that only this runner knows."""
    fetched = next((note for note in found.notes if _FETCHES in note), "")
    return fetched or instead.of(runner, shown((found.command, *found.args)), found.cwd)


def _by_shell(found: Identity) -> str:
    """The shell that is told something of which only it knows what that executes, or the runner that a variable in it names."""
    words = (found.command, *found.args)
    shell, told = shells.texts(words[: len(words) - found.behind])
    if not all(map(shells.is_told, told)):
        return shell
    used = {f"variable {name}" for text in told for name in shells.variables(text)}
    return next((runner for name, value in found.declared if name in used and (runner := packages.named(value))), "")


def _add_installed(
    package: Package, args: Sequence[str], env: Mapping[str, str], cwd: Path, code: list[Code], notes: list[str]
) -> Installed | None:
    """What a runner of packages would execute, and all that comes with it."""
    try:
        there = installed.find(package, args, env)
    except (OSError, UnreadableError, ValueError) as failed:
        code.append(Code("modules", package.name, MISSING))
        notes.append(
            f"what is installed of {package.name} cannot be read: {getattr(failed, 'strerror', None) or failed}"
        )
        return None
    if there is None:
        return None
    if there.words:
        _add(code, notes, "script", Path(there.words[0]))
        _add_interpreter(Path(there.words[0]), env, cwd, code, notes)
        code[:] = dict.fromkeys(code)  # the runner's own is the same, most times
    else:
        notes.append(f"its package is not installed, so nobody knows what would run; this gets it: {there.fetch}")
    _add_modules(there, code, notes)
    return there


def _add_interpreter(found: Path, env: Mapping[str, str], cwd: Path, code: list[Code], notes: list[str]) -> None:
    """Of a script that names its interpreter in its first line, that interpreter."""
    try:
        first = content(found, MAX_CODE, _SHEBANG)[0].split(b"\n")[0]
    except (OSError, UnreadableError):
        return
    if not first.startswith(b"#!"):
        return
    words = os.fsdecode(first[2:]).split()
    if words and Path(words[0]).name == "env":
        words = list(wrappers.of_first_line(words[1:]))
    program = resolve(words[0], env, str(cwd)) if words else None
    if program is None:
        notes.append(f"the interpreter of {found} was not found")
    else:
        _add(code, notes, "interpreter", program)


def _add_project(
    args: Sequence[str], env: dict[str, str], cwd: Path, code: list[Code], notes: list[str], depth: int
) -> tuple[Installed | None, int]:
    """What `uv run` would execute of a project, all that is installed for it, and what of its own that begins with."""
    try:
        there = projects.of_uv(args, env, cwd)
    except (OSError, UnreadableError, ValueError) as failed:
        code.append(Code("modules", str(cwd), MISSING))
        notes.append(f"what uv installed cannot be read: {getattr(failed, 'strerror', None) or failed}")
        return None, 0
    if there is None:
        return None, 0
    behind = 0
    if there.words and depth < _DEEPEST:
        inner = _look(there.words[0], list(there.words[1:]), env, Path(there.folder), code, notes, depth + 1)
        behind = inner[2]
        own = list(projects.own_modules(there))
        for path in own:
            _add(code, notes, "script", path)
        code[:] = dict.fromkeys(code)
        if own:  # found, where Python without its environment would not look
            notes[:] = [note for note in notes if not note.startswith("the file of the module ")]
        notes.append("of the project's own modules only those that are named here are part of this")
    else:
        notes.append(f"its environment is not there, or shares its files with uv's cache; this makes it: {there.fetch}")
    _add_modules(there, code, notes)
    return there, behind


def _add_modules(there: Installed, code: list[Code], notes: list[str]) -> None:
    """What comes with it; of an environment of Python also what says which Python that is."""
    code += [Code("modules", path, total or MISSING) for path, total in there.modules]
    for path, _ in there.modules:
        if path.endswith("/site-packages"):
            _add(code, notes, "settings", Path(path).parents[2] / "pyvenv.cfg")


def _brings_packages(files: Sequence[tuple[str, Path]], code: list[Code], notes: list[str]) -> bool:
    """Whether `uv run` would fetch packages for a script that names them."""
    found = False
    for _role, path in files:
        try:
            brings = _BRINGS_PACKAGES.search(content(path, MAX_CODE)[0])
        except (OSError, UnreadableError):
            continue
        if brings:
            found = True
            code.append(Code("modules", str(path), MISSING))
            notes.append(
                f"{path} {_FETCHES}: install them in a folder DIR (uv venv DIR && "
                f"uv pip install --python DIR -r {shlex.quote(str(path))}), then declare DIR/bin/python with this script"
            )
    return found


def _add_local(package: Package, cwd: Path, home: str, code: list[Code], notes: list[str]) -> None:
    """What a runner of Node's packages takes from the folder that it starts in before it asks anybody else."""
    settings = _RUNNER_SETTINGS.get(package.runner)
    if settings is None:
        return
    modules = (f"node_modules/{package.name}/package.json", f"node_modules/.bin/{Path(package.name).name}")
    for path in _up(cwd, home, modules):
        _add(code, notes, "local package", path)
    for path in _up(cwd, home, settings):
        if text := _steering_lines(path):
            code.append(Code("settings", str(path), sums.of_text(text)))


def _up(cwd: Path, home: str, names: Sequence[str]) -> Iterator[Path]:
    """Files of these names here and in the folders above, but for the user's own and the machine's."""
    for folder in (cwd, *cwd.parents):
        if folder in (Path("/"), Path(home or "/")):
            return
        yield from filter(is_file, (folder / name for name in names))


def _steering_lines(path: Path) -> str:
    """The settings of a file that choose what is fetched and how it is run; all of it where it is no `.npmrc`."""
    try:
        text = content(path, _MAX_SETTINGS)[0].decode(errors="replace")
    except (OSError, UnreadableError):
        return MISSING
    return "\n".join(_NPM_STEERING.findall(text)) if path.name == ".npmrc" else text


def _add(code: list[Code], notes: list[str], role: str, path: Path, *, system: bool = False) -> None:
    """
    Args:
        system: as of an interpreter, its path is enough where only root can change it.
    """
    try:
        real = Path(os.path.realpath(path))
        status = real.stat()
        system = (system or role == "interpreter") and status.st_uid == 0 and not status.st_mode & 0o022
        code.append(Code(role, str(real), "" if system else _sum_once(code, real, status.st_size)))
    except (OSError, UnreadableError, ValueError) as failed:
        code.append(Code(role, str(path), MISSING))
        notes.append(f"{path} cannot be read: {getattr(failed, 'strerror', None) or failed}")


def _sum_once(code: Sequence[Code], path: Path, size: int) -> str:
    """What was read already is not read again, and all together is no more than one file may have: others wait for this."""
    read = {one.path: one.sha256 for one in code if one.role != "settings" and one.sha256 not in ("", MISSING)}
    if str(path) in read:
        return read[str(path)]
    if size + sum(map(os.path.getsize, read)) > MAX_CODE:
        raise UnreadableError("its files together are too large")
    return sums.of_file(path)


def _value(name: str, text: str) -> str:
    """The value of a variable without the secret in it; a reference to one is none."""
    reference = text.startswith(("$", "{env:"))
    return MASK if text and is_secret_name(name) and not reference else brief(text)


def _numbered(role: str) -> Iterator[str]:
    yield role
    for number in count(2):
        yield f"{role} {number}"
