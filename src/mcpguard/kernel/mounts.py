"""Private mount namespace and descriptor-based mounting. Every target is a descriptor: no path is followed by root.

Source: open_tree(2), move_mount(2), mount_setattr(2), openat2(2).
"""

from __future__ import annotations

import ctypes
import os
import struct

from mcpguard.kernel import syscalls

CLONE_NEWNS = 0x00020000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8

ATTR_RDONLY = 0x1
ATTR_NOEXEC = 0x8

_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_F_EMPTY_PATH = 0x04
_MOVE_T_EMPTY_PATH = 0x40
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_NO_MAGICLINKS = 0x02


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def enter_private_namespace() -> None:
    """Give the caller a mount namespace of its own that nothing propagates into or out of."""
    _checked(syscalls.libc.unshare(ctypes.c_int(CLONE_NEWNS)), "unshare")
    flags = ctypes.c_ulong(MS_REC | MS_PRIVATE)
    _checked(syscalls.libc.mount(b"none", b"/", None, flags, None), "mount --make-rprivate /")


def mount_tmpfs(path: str, options: str) -> None:
    """Mount an empty tmpfs on `path`."""
    flags = ctypes.c_ulong(MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _checked(syscalls.libc.mount(b"mcpguard", os.fsencode(path), b"tmpfs", flags, options.encode()), f"tmpfs on {path}")


def open_exact(path: str) -> int:
    """Open `path` as a place (O_PATH) without following one symlink anywhere on the way, the last component included."""
    how = struct.pack(
        "=QQQ", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    )
    return syscalls.syscall(syscalls.OPENAT2, syscalls.AT_FDCWD, os.fsencode(path), how, len(how))


def clone_tree(place_fd: int) -> int:
    """A detached copy of the mount tree at `place_fd`, ready to be changed and attached."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE
    return syscalls.syscall(syscalls.OPEN_TREE, place_fd, b"", flags)


def set_attributes(mount_fd: int, set_: int, clear: int) -> None:
    """Change attributes of the mount at `mount_fd` and of every mount below it."""
    attributes = struct.pack("=QQQQ", set_, clear, 0, 0)
    flags = syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE
    syscalls.syscall(syscalls.MOUNT_SETATTR, mount_fd, b"", flags, attributes, len(attributes))


def attach(mount_fd: int, place_fd: int) -> None:
    """Put the detached tree on top of the place."""
    flags = _MOVE_F_EMPTY_PATH | _MOVE_T_EMPTY_PATH
    syscalls.syscall(syscalls.MOVE_MOUNT, mount_fd, b"", place_fd, b"", flags)
