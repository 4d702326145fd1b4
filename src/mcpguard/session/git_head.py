"""A file as it was in the last commit, read from a repository that whoever was guarded could write.

Of that repository only objects are used, by their own names, and each is held against its name: a changed object is none. Its
settings, hooks and attributes are never read: git is asked through an empty repository of ours that borrows the objects.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

from mcpguard.session.run_later_now import read_plain

_GIT = "/usr/bin/git"
_MOST_BYTES = 1 << 20
_SECONDS = 5
_REF = re.compile(r"ref: (refs/(?!.*\.\.)[\w./-]+)\n?")
_ID = re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{40})")
# What says which commit is the last one.
POINTERS = ("HEAD", "packed-refs", "refs/*", "reftable/*")


def repository_of(path: str) -> str | None:
    """The nearest folder above with a plain `.git` folder."""
    for folder in Path(path).parents:
        place = folder / ".git"
        if place.is_dir() and os.path.realpath(place) == str(place):
            return str(folder)
    return None


def committed(path: str, repository: str) -> bytes | None:
    """What the last commit holds at this path; None where it holds nothing there, or it cannot be told."""
    objects = f"{repository}/.git/objects"
    head = _head(f"{repository}/.git")
    if head is None or not os.access(_GIT, os.X_OK) or not objects.isprintable() or objects.startswith(('"', "#")):
        return None
    with tempfile.TemporaryDirectory(prefix="mcpguard-") as ours:
        for name in ("objects/info", "refs"):
            Path(ours, name).mkdir(parents=True)
        Path(ours, "HEAD").write_text("ref: refs/heads/none\n", encoding="ascii")
        Path(ours, "objects/info/alternates").write_text(f"{objects}\n", encoding="utf-8")
        version = "1\n[extensions]\n\tobjectformat = sha256" if len(head) == 64 else "0"
        Path(ours, "config").write_text(
            f"[core]\n\tbare = true\n\trepositoryformatversion = {version}\n", encoding="ascii"
        )
        commit = _object(ours, "commit", head)
        found = commit[len("tree ") :].partition(b"\n")[0].decode("ascii", "replace") if commit else None
        parts = os.fsencode(path.removeprefix(f"{repository}/")).split(b"/")
        for depth, part in enumerate(parts):
            tree = _object(ours, "tree", found) if found else None
            found = _entry(tree, part, len(head) // 2) if tree is not None else None
            if found and depth == len(parts) - 1:
                return _object(ours, "blob", found)
    return None


def _head(folder: str) -> str | None:
    if os.path.lexists(f"{folder}/commondir"):
        return None  # git takes branches from another folder then
    text = read_plain(f"{folder}/HEAD") or ""
    if named := _REF.fullmatch(text):
        packed = (read_plain(f"{folder}/packed-refs") or "").split("\n")
        rows = (line.partition(" ") for line in packed)
        kept = next((id for id, _, name in rows if name == named[1]), "")
        text = read_plain(f"{folder}/{named[1]}") or kept
    text = text.rstrip(" \t\r\n")
    return text if _ID.fullmatch(text) else None


def _object(ours: str, kind: str, name: str) -> bytes | None:
    """An object that is what its name says; None for any other."""
    environment = {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_NO_LAZY_FETCH": "1",
        "HOME": ours,
        "GIT_NO_REPLACE_OBJECTS": "1",
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C",
    }
    command = [_GIT, f"--git-dir={ours}", "cat-file", kind, name]
    with subprocess.Popen(
        command, env=environment, cwd=ours, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None  # noqa: S101 - asked for above
        try:
            content, _ = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return None
    if process.returncode != 0 or len(content) > _MOST_BYTES:
        return None
    digest = hashlib.sha256 if len(name) == 64 else hashlib.sha1
    return content if digest(b"%s %d\0" % (kind.encode(), len(content)) + content).hexdigest() == name else None


def _entry(tree: bytes, name: bytes, size: int) -> str | None:
    """The id of an entry: a tree is a row of `mode name NUL id`."""
    at = 0
    while (end := tree.find(b"\0", at)) >= 0:
        if tree[at:end].partition(b" ")[2] == name:
            return tree[end + 1 : end + 1 + size].hex()
        at = end + 1 + size
    return None
