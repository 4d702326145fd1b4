"""SHA-256 of files and of whole folders, bounded: files of the kernel's have no end, and folders may hold anything."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from mcpguard.catalogue.reading import MAX_CODE, UnreadableError, opened

MOST_FILES = 50_000
_CHUNK = 1 << 20


def of_text(text: str) -> str:
    """Of a text's bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def of_file(path: Path) -> str:
    """Of a file's bytes, no more of them than its size.

    Raises:
        FileNotFoundError, UnreadableError: as `reading.read`; or it is not as large as it says.
    """
    total, found = 0, hashlib.sha256()
    with opened(path, MAX_CODE) as (file, status):
        while chunk := file.read(_CHUNK):
            total += len(chunk)
            if total > status.st_size:
                raise UnreadableError("it holds more than its size says")
            found.update(chunk)
    if total < status.st_size:
        raise UnreadableError("it holds less than its size says")
    return found.hexdigest()


class SharedError(UnreadableError):
    """A folder has no content of its own: something in it is reached by another name elsewhere, and can be changed there."""


def of_folder(folder: Path) -> str:
    """Of all that is in a folder: every name, what it is, and the bytes of files.

    Raises:
        SharedError: a link leads out of it, or a file has a second name.
        OSError, UnreadableError: it cannot be read, or is too large.
    """
    root = os.path.realpath(folder)
    found, size, count = hashlib.sha256(), 0, 0
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                kind, what = "folder", ""
                if entry.is_symlink():
                    kind, what = "link", str(Path(entry.path).readlink())
                    if not os.path.realpath(entry.path).startswith(f"{root}/"):
                        raise SharedError(f"{entry.path} leads out of it")
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    state = entry.stat(follow_symlinks=False)
                    if state.st_nlink != 1:
                        raise SharedError(f"{entry.path} has another name elsewhere")
                    size += state.st_size
                    kind = "program" if state.st_mode & 0o111 else "file"
                    what = of_file(Path(entry.path)) if size <= MAX_CODE else ""
                count += 1
                if size > MAX_CODE or count > MOST_FILES:
                    raise UnreadableError("its files together are too large, or too many")
                found.update(json.dumps([entry.path[len(root) :], kind, what]).encode())
    return found.hexdigest()
