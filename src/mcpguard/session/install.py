"""Where the privileged part is run from, and how it gets there.

Root must never run code that the guarded user can write. So `setup` copies the privileged subset of this package to a
directory owned by root; `run` starts that copy, and only when it is the same code as the running one.

Standard library, `errors` and `model` only: the root half of `setup` runs this module under `python3 -I -S`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import mcpguard
from mcpguard.errors import HostError, PrivilegeError
from mcpguard.model.values import dataclass
from mcpguard.session.package import (
    digest_of,
    privileged_files,
    read_regular,
    running_root,
    tree_writable_by_others,
    writable_by_others,
)

PREFIX = Path("/usr/local/lib/mcpguard")
RECORD = "install.json"
OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True, slots=True)
class BrokerLocation:
    """What the broker is started with.

    Attributes:
        python: absolute path of the interpreter, symlinks resolved.
        package_root: the directory that holds `mcpguard/`.
        trusted: interpreter and code belong to root and nobody else can write them.
        reason: why this place was chosen, or why it is not trusted.
    """

    python: str
    package_root: str
    trusted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Installation:
    """One copy below the prefix; `source` is the package it was copied from."""

    path: Path
    version: str
    digest: str
    python: str
    source: str


def broker_location(prefix: Path = PREFIX) -> BrokerLocation:
    """Where to start the broker from.

    As root: the running package. As another user: the running package if it belongs to root, else its installed copy.

    Raises:
        PrivilegeError: there is no installed copy, or it is not the running code, or somebody could have changed it.
    """
    root = running_root()
    python = os.path.realpath(sys.executable)
    problem = writable_by_others(Path(python)) or tree_writable_by_others(root)
    if os.geteuid() == 0:
        return BrokerLocation(sys.executable, str(root), not problem, problem or "running as root")
    if not problem:
        return BrokerLocation(python, str(root), True, "the running package belongs to root")
    return _installed_location(prefix, root)


def _installed_location(prefix: Path, root: Path) -> BrokerLocation:
    digest = digest_of(root)
    match = next((found for found in installations(prefix) if found.digest == digest), None)
    if match is None:
        outdated = any(found.source == str(root) for found in installations(prefix))
        raise PrivilegeError(
            "the privileged part is out of date" if outdated else "the privileged part is not installed",
            why=f"this mcpguard lives in {root}, which the guarded user can write, so root must not run it",
            do="mcpguard setup   (copies the part that needs root to a directory owned by root; asks for sudo)",
            code="privilege.stale" if outdated else "privilege.not-set-up",
        )
    problem = writable_by_others(Path(match.python)) or tree_writable_by_others(match.path)
    if problem:
        raise PrivilegeError(
            "the privileged part could have been changed by somebody else",
            why=problem,
            do="correct owner and mode, then: mcpguard setup",
            code="privilege.untrusted",
        )
    return BrokerLocation(match.python, str(match.path), True, "installed by mcpguard setup")


def installations(prefix: Path = PREFIX) -> list[Installation]:
    """Every complete copy below the prefix, sorted by name."""
    found = []
    for record in sorted(prefix.glob(f"*/{RECORD}")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            kept = json.loads(record.read_text(encoding="utf-8"))
            found.append(
                Installation(record.parent, kept["version"], kept["digest"], kept["python"], kept["source"]),
            )
    return found


def root_python() -> str:
    """A Python that root can trust: new enough, owned by root, in the system's own places.

    Raises:
        HostError: there is none.
    """
    names = ["python3", *(f"python3.{minor}" for minor in range(20, OLDEST_PYTHON[1] - 1, -1))]
    for folder in ("/usr/bin", "/usr/local/bin"):
        for name in names:
            path = Path(folder, name).resolve()
            if path.exists() and not writable_by_others(path) and _new_enough(path):
                return str(path)
    raise HostError(
        "no Python that root can trust",
        why="/usr/bin and /usr/local/bin hold no python3 of version 3.11 or newer that belongs to root",
        do="apt-get install python3   (Ubuntu 22.04: apt-get install python3.11)",
        code="host.no-root-python",
    )


def _new_enough(python: Path) -> bool:
    test = f"import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})"
    return subprocess.run([python, "-I", "-S", "-c", test], check=False, capture_output=True).returncode == 0


def install(prefix: Path = PREFIX) -> tuple[Installation, list[Path]]:
    """Copy the privileged subset of the running package; as root.

    Returns:
        the copy (made now, or found whole), and the older copies of the same package that were removed.

    Raises:
        HostError: the prefix can be written by somebody else, or there is no Python that root can trust.
        OSError: the copy could not be made; nothing is left of it.
    """
    source = running_root()
    python = root_python()
    prefix.mkdir(mode=0o755, parents=True, exist_ok=True)
    problem = writable_by_others(prefix.resolve())
    if problem:
        raise HostError(
            f"{prefix} is not a safe place for code that root runs",
            why=problem,
            do="give it to root and take write access from group and others",
            code="host.unsafe-prefix",
        )
    digest = digest_of(source)
    target = prefix / f"{mcpguard.__version__}-{digest[:16]}"
    made = Installation(target, mcpguard.__version__, digest, python, str(source))
    if not _is_whole(made):
        _copy(source, made)
    return made, _remove_older(made, prefix)


def _is_whole(made: Installation) -> bool:
    try:
        return made in installations(made.path.parent) and digest_of(made.path) == made.digest
    except OSError:
        return False


def _copy(source: Path, made: Installation) -> None:
    """Copy beside the target, check, compile, and put it in place in one step."""
    fresh = made.path.parent / f".new-{os.getpid()}"
    previous = os.umask(0o022)
    try:
        for relative in privileged_files(source):
            (fresh / relative).parent.mkdir(parents=True, exist_ok=True)
            (fresh / relative).write_bytes(read_regular(source / relative))
        if digest_of(fresh) != made.digest:
            raise OSError(f"{source} changed while it was copied")
        # Compiled ahead: the broker starts faster, and root never writes beside its code again.
        subprocess.run(
            [made.python, "-I", "-S", "-m", "compileall", "-q", "-s", str(fresh), "-p", str(made.path), str(fresh)],
            check=True,
        )
        record = {"version": made.version, "digest": made.digest, "python": made.python, "source": made.source}
        (fresh / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if made.path.exists():
            _remove_tree(made.path)
        fresh.rename(made.path)
    finally:
        os.umask(previous)
        if fresh.exists():
            with contextlib.suppress(OSError):
                _remove_tree(fresh)


def _remove_older(made: Installation, prefix: Path) -> list[Path]:
    """Remove copies of the same package, or of packages that are gone, unless something runs from them."""
    removed = []
    for other in installations(prefix):
        replaced = other.source == made.source or not Path(other.source).exists()
        if other.path != made.path and replaced and not _in_use(other.path):
            _remove_tree(other.path)
            removed.append(other.path)
    return removed


def _remove_tree(path: Path) -> None:
    import shutil  # who launches through this module waits for what it imports

    shutil.rmtree(path)


def _in_use(path: Path) -> bool:
    needle = os.fsencode(path)
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if needle in cmdline.read_bytes():
                return True
    return False


def remove(prefix: Path = PREFIX) -> list[Path]:
    """Remove every copy, and the prefix; as root. Returns what was removed."""
    removed = [found.path for found in installations(prefix)]
    if prefix.exists():
        _remove_tree(prefix)
    return removed


def sudo_command(action: str) -> list[str]:
    """The command that runs `main(action)` of this module as root, with nothing of the user's Python set-up.

    Raises:
        PrivilegeError: there is no sudo.
    """
    from shutil import which

    sudo = which("sudo")
    if sudo is None:
        raise PrivilegeError(
            "root is needed and there is no sudo",
            why="the part that needs root is installed into a directory that belongs to root",
            do=f"run as root, from a folder that only root can write: {sys.executable} -P -m mcpguard setup",
            code="privilege.no-sudo",
        )
    start = (
        "import sys; sys.path.insert(0, sys.argv[1]); from mcpguard.session import install; install.main(sys.argv[2])"
    )
    return [sudo, "--", root_python(), "-I", "-S", "-B", "-c", start, str(running_root()), action]


def act(action: str) -> dict[str, list[str]]:
    """Do `install` or `remove` as root.

    Returns:
        `removed`: paths; for `install` also `installed`: the path and its interpreter.
    """
    if action == "remove":
        return {"removed": [str(path) for path in remove()]}
    made, older = install()
    return {"installed": [str(made.path), made.python], "removed": [str(path) for path in older]}


def main(action: str) -> None:
    """The root half of `setup`: do it, and say in JSON on stdout what was done.

    A refusal exits 1 with its four lines on stderr.
    """
    try:
        answer = act(action)
    except HostError as error:
        sys.stderr.write("\n".join(error.lines()) + "\n")
        sys.exit(1)
    sys.stdout.write(json.dumps(answer) + "\n")
