"""The privileged subset of this package: which files it is, what its digest is, and who could change it.

Reads only. The digest is computed each time it is asked for, at every launch through sudo: a stored one would be one more
thing that can be stale. Standard library and `model` only, because root runs this too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import mcpguard
from mcpguard.model.digests import blake2b

PRIVILEGED = ("__init__.py", "errors.py", "model", "policy", "wire", "kernel", "backends", "broker", "_bpf", "_lib")
SUFFIXES = (".py", ".bpf.o", ".so.1")


def running_root() -> Path:
    """The directory that holds the package now running."""
    return Path(mcpguard.__file__).resolve().parent.parent


def privileged_files(package_root: Path) -> Iterator[str]:
    """Every file of the privileged subset, relative to `package_root`, in a stable order."""
    root = str(package_root)
    for name in PRIVILEGED:
        place = f"mcpguard/{name}"
        if name.endswith(SUFFIXES):
            yield from [place] if os.path.isfile(f"{root}/{place}") else ()
        else:
            yield from _files_below(root, place)


def _files_below(root: str, folder: str) -> Iterator[str]:
    """Symlinks to folders are files here, which nobody can read as such."""
    try:
        with os.scandir(f"{root}/{folder}") as listing:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing)
    except FileNotFoundError:
        return
    for name, is_folder in found:
        if is_folder:
            yield from _files_below(root, f"{folder}/{name}")
        elif name.endswith(SUFFIXES):
            yield f"{folder}/{name}"


def digest_of(package_root: Path) -> str:
    """BLAKE2b (32 bytes) in hex over names and contents of the privileged subset; compiled Python files do not count."""
    total = blake2b(digest_size=32)
    for relative in privileged_files(package_root):
        content = read_regular(f"{package_root}/{relative}")
        total.update(f"{relative}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def read_regular(path: str | Path) -> bytes:
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
    if problem := writable_by_others(package_root / "mcpguard"):
        return problem
    folders: set[str] = set()
    for relative in privileged_files(package_root):
        parts = [relative]
        if (folder := os.path.dirname(relative)) not in folders:
            folders.add(folder)
            parts.append(folder)
        for part in parts:
            found = os.lstat(f"{package_root}/{part}")
            if found.st_uid != 0 or found.st_mode & 0o022:
                return f"{package_root}/{part} can be written by others than root"
    return ""
