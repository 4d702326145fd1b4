"""Which files a repository tracks, read from git's index.

Git itself is not started: a repository's settings name programs that it runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from mcpguard.catalogue.reading import UnreadableError, content, is_file, is_folder

_LIMIT = 64 << 20
_HEADER = 12
# Times, inode, mode, owner and size; then the name of the object; then flags.
_FIXED, _FLAGS = 40, 2
_EXTENDED = 0x40
_COMPRESSED = 4


def is_tracked(path: Path) -> bool:
    """Whether the repository that a file lies in tracks it; also true where the index cannot be read."""
    for folder in path.parents:
        git = folder / ".git"
        if is_folder(git) or is_file(git):
            try:
                return str(path.relative_to(folder)).encode(errors="surrogateescape") in names(_folder(git) / "index")
            except (UnreadableError, OSError, ValueError):
                return True
    return False


def _folder(git: Path) -> Path:
    """The folder of a repository; in a worktree `.git` is a file that names it."""
    if is_folder(git):
        return git
    text = content(git, 4096)[0].decode(errors="surrogateescape")
    return git.parent / text.removeprefix("gitdir:").strip()


@lru_cache(4)
def names(index: Path) -> frozenset[bytes]:
    """The paths in an index; none where there is no index yet.

    Raises:
        UnreadableError: it is no index of version 2 to 4.
    """
    try:
        raw, _ = content(index, _LIMIT)
    except FileNotFoundError:
        return frozenset()
    sha256 = len(raw) > 32 and hashlib.sha256(raw[:-32]).digest() == raw[-32:]
    try:
        return frozenset(_entries(raw, 32 if sha256 else 20))
    except (IndexError, ValueError):
        raise UnreadableError("it is no index of git") from None


def _entries(raw: bytes, length: int) -> Iterator[bytes]:
    version, count = int.from_bytes(raw[4:8]), int.from_bytes(raw[8:12])
    if raw[:4] != b"DIRC" or version not in (2, 3, 4):
        raise UnreadableError("it is no index of git")
    at, name = _HEADER, b""
    for _ in range(count):
        start = at
        at += _FIXED + length + _FLAGS + (2 if raw[at + _FIXED + length] & _EXTENDED else 0)
        if version == _COMPRESSED:
            drop, at = _number(raw, at)
            end = raw.index(b"\0", at)
            name = name[: len(name) - drop] + raw[at:end]
            at = end + 1
        else:
            end = raw.index(b"\0", at)
            name = raw[at:end]
            at = start + (end - start) // 8 * 8 + 8
        if not name:
            raise ValueError("an entry without a name")
        yield name


def _number(raw: bytes, at: int) -> tuple[int, int]:
    """A number of variable width, and where it ends."""
    value = raw[at] & 0x7F
    while raw[at] & 0x80:
        at += 1
        value = (value + 1) << 7 | raw[at] & 0x7F
    return value, at + 1
