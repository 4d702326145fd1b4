"""The privileged subset of this package: which files it is, what its digest is, and who could change it.

Reads only. The digest is computed each time it is asked for (some fifty small files, two milliseconds): a stored one
would be one more thing that can be stale. Standard library only, because root runs this too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import mcpguard

PRIVILEGED = ("__init__.py", "errors.py", "model", "policy", "wire", "kernel", "backends", "broker", "_bpf", "_lib")
SUFFIXES = (".py", ".bpf.o", ".so.1")


def running_root() -> Path:
    """The directory that holds the package now running."""
    return Path(mcpguard.__file__).resolve().parent.parent


def privileged_files(package_root: Path) -> Iterator[Path]:
    """Every file of the privileged subset, relative to `package_root`, in a stable order."""
    package = package_root / "mcpguard"
    for name in PRIVILEGED:
        place = package / name
        found = [place] if place.is_file() else sorted(place.rglob("*"))
        yield from (path.relative_to(package_root) for path in found if path.name.endswith(SUFFIXES))


def digest_of(package_root: Path) -> str:
    """SHA-256 in hex over names and contents of the privileged subset; compiled Python files do not count."""
    import hashlib  # not needed where the running package is used, and slow to load

    total = hashlib.sha256()
    for relative in privileged_files(package_root):
        total.update(f"{relative}\0".encode())
        total.update(hashlib.sha256(read_regular(package_root / relative)).digest())
    return total.hexdigest()


def read_regular(path: Path) -> bytes:
    """Contents of a file that is no symlink: a copy made by root must not be led elsewhere."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"not a regular file: {path}")
        return file.read()


def writable_by_others(path: Path) -> str:
    """The first part of the path that somebody but root can change; empty when there is none."""
    for part in (path, *path.parents):
        found = part.lstat()
        if found.st_uid != 0:
            return f"{part} belongs to uid {found.st_uid}"
        if found.st_mode & 0o022:
            return f"{part} can be written by {'everybody' if found.st_mode & 0o002 else 'its group'}"
    return ""


def tree_writable_by_others(package_root: Path) -> str:
    """As `writable_by_others`, for the privileged subset and all that leads to it."""
    problem = writable_by_others(package_root / "mcpguard")
    for relative in privileged_files(package_root):
        for part in (package_root / relative, (package_root / relative).parent):
            found = part.lstat()
            if not problem and (found.st_uid != 0 or found.st_mode & 0o022):
                problem = f"{part} can be written by others than root"
    return problem
