"""Which files an interpreter is told to run, read from its words and the file system, without starting it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from mcpguard.catalogue.reading import is_file, is_folder
from mcpguard.model.values import dataclass

SCRIPT, LOADED = "script", "loaded"
_NODE = re.compile(r"(?:node|nodejs|bun|deno|tsx|ts-node)\Z")
_PYTHON = re.compile(r"(?:python|pypy)[\d.]*t?\Z")
_VERSION = re.compile(r"(\d+)\.(\d+)t?\Z")
_OTHERS = re.compile(r"(?:ba|da|z|k|fi)?sh\Z|ruby[\d.]*\Z|perl[\d.]*\Z|php[\d.]*\Z|lua[\d.]*\Z")
_CODE = re.compile(r"\.(?:[mc]?[jt]sx?|pyz?|sh|rb|pl|php|jar|lua|wasm|go)\Z")
# Options of Node's family with a value that is loaded as code, with another value, and with the program itself.
_NODE_LOADS = {"-r", "--require", "--import", "--loader", "--experimental-loader", "--preload"}
_NODE_VALUES = {
    "-C",
    "--conditions",
    "--env-file",
    "--input-type",
    "--title",
    "--config",
    "-c",
    "--tsconfig",
    "--cwd",
    "-P",
    "--project",
}
# Of Node itself, without the two dashes; it takes `_` for `-` in them.
_NODE_OWN_VALUES = """
    allow-fs-read allow-fs-write build-snapshot-config cpu-prof-dir cpu-prof-interval cpu-prof-name debug-port
    diagnostic-dir disable-proto disable-warning dns-result-order env-file-if-exists experimental-default-type
    experimental-policy experimental-sea-config heap-prof-dir heap-prof-interval heap-prof-name
    heapsnapshot-near-heap-limit heapsnapshot-signal icu-data-dir inspect-port inspect-publish-uid localstorage-file
    max-http-header-size network-family-autoselection-attempt-timeout openssl-config policy-integrity redirect-warnings
    report-dir report-directory report-filename report-signal secure-heap secure-heap-min security-revert security-reverts
    snapshot-blob test-concurrency test-name-pattern test-reporter test-reporter-destination test-shard test-timeout
    tls-cipher-list tls-keylog trace-event-categories trace-event-file-pattern trace-require-module unhandled-rejections
    use-largepages v8-pool-size watch-path
"""
_NODE_OWN = frozenset(f"--{name}" for name in _NODE_OWN_VALUES.split())
_NODE_ITSELF = ("node", "nodejs", "tsx")
_NODE_TEXT = {"-e", "--eval", "-p", "--print", "-pe"}
_NODE_VERBS = {"run", "watch", "serve"}
_NODE_ENDINGS = ("", ".js", ".mjs", ".cjs", ".ts", ".json", "/index.js", "/index.mjs", "/index.ts")


@dataclass(frozen=True, slots=True)
class Found:
    """What an interpreter runs.

    Attributes:
        files: role and path of each file, as it would be opened; it may not exist.
        note: why something could not be found; else empty.
        behind: how many words follow the script, of which only the script knows what they are; 0 for shells.
    """

    files: tuple[tuple[str, Path], ...] = ()
    note: str = ""
    behind: int = 0


def is_interpreter(program: str) -> bool:
    """Whether a program of this name runs a file that is named in its words."""
    return bool(_NODE.match(program) or _PYTHON.match(program) or _OTHERS.match(program))


def find(program: str, found: Path, args: Sequence[str], environment: Mapping[str, str], cwd: Path) -> Found:
    """The files that these words have a program run.

    Args:
        program: its name.
        found: where it was found, links not followed: a virtual environment is told by that.
    """
    if _PYTHON.match(program):
        return _python(found, args, environment, cwd)
    if _NODE.match(program):
        own = _NODE_OWN if program in _NODE_ITSELF else frozenset()
        return _node(args, cwd, _NODE_VALUES | own)
    if _OTHERS.match(program):
        return _other(args, cwd)
    folders = [cwd, *(cwd / arg for arg in args if len(arg) > 1 and is_folder(cwd / arg))]
    named = [arg for arg in args if _CODE.search(arg) and not arg.startswith("-")]
    hits = ((folder / arg for folder in folders if is_file(folder / arg)) for arg in named)
    return Found(tuple((SCRIPT, path) for paths in hits for path in list(paths)[:1]))


def looks_in_its_folder(program: str, args: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether these words have Python take modules from the folder that it starts in before all others."""
    if not _PYTHON.match(program) or environment.get("PYTHONSAFEPATH"):
        return False
    rest = iter(args)
    for arg in rest:
        if not arg.startswith("-") or arg == "-":
            return arg == "-"
        flags = "".join(takewhile(lambda letter: letter not in "cmWX", arg[1:])) if not arg.startswith("--") else ""
        if "I" in flags or "P" in flags:
            return False
        option = "" if arg.startswith("--") else arg[1 + len(flags) : 2 + len(flags)]
        if option in ("c", "m"):
            return True
        if arg == "--check-hash-based-pycs" or (option and len(arg) == 2 + len(flags)):
            next(rest, "")  # the value of -W or -X
    return True


def knows_safe_path(program: Path) -> bool:
    """Whether an interpreter has the option `-P`: Python 3.11 and newer.

    Args:
        program: links resolved.
    """
    found = _VERSION.search(program.name)
    return found is not None and _PYTHON.match(program.name) is not None and (int(found[1]), int(found[2])) >= (3, 11)


def _node(args: Sequence[str], cwd: Path, valued: Set[str]) -> Found:
    loaded: list[tuple[str, Path]] = []
    rest = iter(args)
    for arg in rest:
        option, equals, value = arg.partition("=")
        option = option.replace("_", "-") if option.startswith("--") else option
        if option in _NODE_TEXT:
            return Found(tuple(loaded))
        if option == "--run":  # a line of package.json, for a shell
            why = f"node {arg} has a shell execute what package.json says: declare that by itself"
            return Found((*loaded, (SCRIPT, Path("/dev/null", arg))), why)
        if option in _NODE_LOADS:
            value = value if equals else next(rest, "")
            if value.startswith((".", "/")):
                loaded.append((LOADED, _node_file(cwd, value)))
        elif option in valued and not equals:
            next(rest, "")
        elif arg == "--":
            script = [(SCRIPT, _node_file(cwd, name)) for name in (next(rest, ""),) if name]
            return Found((*loaded, *script), behind=len(list(rest)))
        elif not arg.startswith("-") and arg not in _NODE_VERBS:
            return Found((*loaded, (SCRIPT, _node_file(cwd, arg))), behind=len(list(rest)))
    return Found(tuple(loaded), "no script is named in its words")


def _node_file(cwd: Path, name: str) -> Path:
    """The file that Node takes a name for: it adds endings, and looks into folders."""
    candidates = (Path(f"{cwd / name}{ending}") for ending in _NODE_ENDINGS)
    return next((path for path in candidates if is_file(path)), cwd / name)


def _other(args: Sequence[str], cwd: Path) -> Found:
    for arg in args:
        if arg in ("-c", "-e", "-r", "-lc", "-ic", "-ec"):
            return Found()
        if not arg.startswith("-"):
            return Found(((SCRIPT, cwd / arg),))
    return Found(note="no script is named in its words")


def _python(found: Path, args: Sequence[str], environment: Mapping[str, str], cwd: Path) -> Found:
    isolated = False
    rest = iter(args)
    for arg in rest:
        if arg == "-" or not arg.startswith("-"):
            if arg == "-":
                return Found(note="its script comes from its input")
            return Found(_python_file(cwd / arg), behind=len(list(rest)))
        if arg.startswith("--"):
            if arg == "--check-hash-based-pycs":
                next(rest, "")
            continue
        flags = "".join(takewhile(lambda letter: letter not in "cmWX", arg[1:]))
        isolated = isolated or "I" in flags or "P" in flags
        option, value = arg[1 + len(flags) : 2 + len(flags)], arg[2 + len(flags) :]
        if option == "c":
            return Found()
        if option:
            value = value or next(rest, "")
        if option == "m":
            places = _python_places(found, environment, None if isolated or environment.get("PYTHONSAFEPATH") else cwd)
            return replace(_module(value, places), behind=len(list(rest)))
    return Found(note="no script is named in its words")


def _python_file(path: Path) -> tuple[tuple[str, Path], ...]:
    return ((SCRIPT, path / "__main__.py" if is_folder(path) else path),)


def _module(name: str, places: Iterator[Path]) -> Found:
    """Files of `python -m NAME`: a module, or a package's two."""
    parts = name.split(".")
    if all(part.isidentifier() for part in parts):
        for place in places:
            base = place.joinpath(*parts)
            package = (base / "__main__.py", base / "__init__.py")
            if is_file(package[0]):
                return Found(tuple((SCRIPT, path) for path in package if is_file(path)))
            if is_file(module := base.with_name(f"{parts[-1]}.py")):
                return Found(((SCRIPT, module),))
    return Found(note=f"the file of the module {name} was not found")


def _python_places(found: Path, environment: Mapping[str, str], cwd: Path | None) -> Iterator[Path]:
    """Where an interpreter looks for modules, as far as that can be told without starting it."""
    if cwd is not None:
        yield cwd
    for text in environment.get("PYTHONPATH", "").split(os.pathsep):
        if text:
            yield (cwd or Path("/")) / text
    prefix, real = found.parent.parent, Path(os.path.realpath(found))
    name = real.name if real.name.startswith("python3.") else "python3.*"
    yield from sorted(prefix.glob(f"lib/{name}/site-packages"))
    if is_file(prefix / "pyvenv.cfg"):
        prefix = real.parent.parent
    if home := environment.get("HOME"):
        yield from sorted(Path(home).glob(f".local/lib/{name}/site-packages"))
    for pattern in (
        f"local/lib/{name}/dist-packages",
        f"lib/{name}/site-packages",
        "lib/python3/dist-packages",
        f"lib/{name}",
    ):
        yield from sorted(prefix.glob(pattern))
