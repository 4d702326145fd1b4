"""Would plain file permissions have refused this call, without mcpguard?

Mode bits, owner, groups, sticky bit and read-only file systems, for a user without capabilities (the guarded tree has
none). What cannot be seen (access lists, the immutable flag, other security modules) explains nothing: better one
refusal too many on record than one lost.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat

from mcpguard.model.access import Access
from mcpguard.model.policy import User

_R, _W, _X = 4, 2, 1
# Changes of a directory: what is refused is the entry, so the directory's bits count.
MAKES_NAME = frozenset({"create", "mkdir", "mknod", "symlink", "link"})
TAKES_NAME = frozenset({"unlink", "rmdir", "rename", "exchange"})
# Refused with EPERM to everyone without capabilities, whatever the bits say; the arguments that tell are not in the
# record.
_NEEDS_CAPABILITY = frozenset({"chown", "mknod", "xattr"})
_OWNER_ONLY = frozenset({"chmod", "utimes"})


def explain(op: str, access: Access, path: str, error: int, user: User) -> bool:
    """True when plain permissions account for `error` of `op` on `path` (resolved, the host's view).

    Args:
        error: positive errno; EACCES, EPERM or EROFS (everything else is not explained here).
        access: what the call needs on the object itself.
    """
    if error == errno.EROFS:
        return _read_only(path)
    if error not in (errno.EACCES, errno.EPERM):
        return False
    parent = posixpath.dirname(path)
    if not _may_reach(parent, user):
        return True
    if op in TAKES_NAME:
        return not _may(parent, _W | _X, user) or _sticky_refuses(parent, path, user) or _cannot_move(op, path, user)
    if error == errno.EPERM and _eperm(op, path, user):
        return True
    # An open for writing of a name that is not there can only be refused when it asks to make it.
    makes = op in MAKES_NAME or (op == "open" and Access.WRITE in access)
    if makes and not os.path.lexists(path):
        return not _may(parent, _W | _X, user)
    return _object_refuses(op, access, path, user)


def explain_link_source(path: str, user: User) -> bool:
    """True when a hard link to `path` is refused to `user` by the kernel's own rule (fs.protected_hardlinks) or its
    kind."""
    if not _may_reach(posixpath.dirname(path), user):
        return True
    found = lstat(path)
    if found is None:
        return False
    if stat.S_ISDIR(found.st_mode):
        return True
    plain = stat.S_ISREG(found.st_mode) and not found.st_mode & stat.S_ISUID
    return found.st_uid != user.uid and not (plain and _may(path, _R | _W, user))


def _object_refuses(op: str, access: Access, path: str, user: User) -> bool:
    wanted = 0
    if Access.READ in access:
        wanted |= _R
    if Access.WRITE in access and op not in ("chmod", "chown"):
        wanted |= _W
    if Access.EXECUTE in access:
        wanted |= _X
    found = lstat(path)
    if found is None:
        return False
    if op == "exec" and (not stat.S_ISREG(found.st_mode) or _flag(path, os.ST_NOEXEC)):
        return True
    return not _may(path, wanted, user) or (bool(wanted & _W) and _protected_regular(path, found, user))


def _eperm(op: str, path: str, user: User) -> bool:
    if op in _NEEDS_CAPABILITY:
        return True
    found = lstat(path)
    # An open with O_NOATIME is the owner's alone, and is refused with EPERM too.
    return found is not None and op in (*_OWNER_ONLY, "open") and found.st_uid != user.uid


def _sticky_refuses(parent: str, path: str, user: User) -> bool:
    folder, found = lstat(parent), lstat(path)
    if folder is None or found is None or not folder.st_mode & stat.S_ISVTX:
        return False
    return user.uid not in (folder.st_uid, found.st_uid)


def _cannot_move(op: str, path: str, user: User) -> bool:
    """A directory that gets another parent must itself be writable: its `..` changes."""
    found = lstat(path)
    return (
        op in ("rename", "exchange") and found is not None and stat.S_ISDIR(found.st_mode) and not _may(path, _W, user)
    )


def _protected_regular(path: str, found: os.stat_result, user: User) -> bool:
    """fs.protected_regular: a foreign file in a sticky folder that all may write is not opened with O_CREAT."""
    folder = lstat(posixpath.dirname(path))
    if folder is None or not folder.st_mode & stat.S_ISVTX or not folder.st_mode & (stat.S_IWOTH | stat.S_IWGRP):
        return False
    return found.st_uid not in (user.uid, folder.st_uid)


def _may_reach(directory: str, user: User) -> bool:
    """Every directory on the way may be searched."""
    at = ""
    for name in directory.split("/"):
        at = f"{at}/{name}" if name else at
        if lstat(at or "/") is None:
            # It went meanwhile, or it was a descriptor's: what cannot be seen explains nothing.
            return True
        if not _may(at or "/", _X, user):
            return False
    return True


def _may(path: str, wanted: int, user: User) -> bool:
    """The bits grant `wanted`, or it cannot be told."""
    found = lstat(path)
    if found is None or stat.S_ISLNK(found.st_mode) or _has_access_list(path):
        return True
    bits = stat.S_IMODE(found.st_mode)
    if found.st_uid == user.uid:
        bits >>= 6
    elif found.st_gid == user.gid or found.st_gid in user.groups:
        bits >>= 3
    return bits & wanted == wanted


def lstat(path: str) -> os.stat_result | None:
    """What is at a path, symlinks not followed; None: nothing, or it cannot be seen."""
    try:
        return os.lstat(path)
    except (OSError, ValueError):
        return None


def _has_access_list(path: str) -> bool:
    try:
        os.getxattr(path, "system.posix_acl_access", follow_symlinks=False)
    except (OSError, ValueError):
        return False
    return True


def _read_only(path: str) -> bool:
    while path != "/" and not os.path.lexists(path):
        path = posixpath.dirname(path)
    return _flag(path, os.ST_RDONLY)


def _flag(path: str, flag: int) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & flag)
    except (OSError, ValueError):
        return False
