"""Private mount namespace and descriptor-based mounting. Every target is a descriptor: no path is followed by root.

Source: open_tree(2), move_mount(2), mount_setattr(2), openat2(2).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

from mcpguard.kernel import syscalls
from mcpguard.model.paths import is_below
from mcpguard.model.values import dataclass

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
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
_DETACH = 2
_MINOR_BITS = 20
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_NO_MAGICLINKS = 0x02


def enter_private_namespace() -> None:
    """Give the caller a mount namespace of its own that nothing propagates into or out of, and System V IPC of its own."""
    syscalls.call("unshare", "unshare", CLONE_NEWNS | CLONE_NEWIPC)
    syscalls.call("mount", "mount --make-rprivate /", b"none", b"/", None, MS_REC | MS_PRIVATE, None)


def return_to_namespace_of(pid: int) -> None:
    """Leave a private mount namespace for that of another process, and see it from where that one does (setns(2))."""
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.call("setns", "setns", namespace, CLONE_NEWNS)
        os.fchdir(root)
        os.chroot(".")
    finally:
        os.close(root)
        os.close(namespace)


def mount_tmpfs(path: str, options: str) -> None:
    """Mount an empty tmpfs on `path`."""
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    syscalls.call("mount", f"tmpfs on {path}", b"mcpguard", os.fsencode(path), b"tmpfs", flags, options.encode())


def mount_devpts(path: str, options: str) -> None:
    """Mount a new instance of devpts on `path`; the kernel makes no other (since Linux 4.7)."""
    flags = MS_NOSUID | MS_NOEXEC
    syscalls.call("mount", f"devpts on {path}", b"devpts", os.fsencode(path), b"devpts", flags, options.encode())


def detach(place_fd: int) -> None:
    """Take the mount whose root the place is, and all below it, out of this namespace."""
    syscalls.call("umount2", "umount", f"/proc/self/fd/{place_fd}".encode(), _DETACH)


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


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of the mount table: file system, which part of it, where, and whether read-only.

    Attributes:
        id, parent: numbers of this mount and of the one that it is mounted on; 0: not known.
        kind, options: of the file system.
    """

    device: str
    root: str
    point: str
    read_only: bool
    id: int = 0
    parent: int = 0
    kind: str = ""
    options: str = ""


def table(path: str = "/proc/self/mountinfo") -> list[Mount]:
    """The mounts of a namespace, this one's by default, in the order of the kernel's list: it says nothing."""
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        return [_mount(line.rstrip("\n")) for line in lines]


def _mount(line: str) -> Mount:
    of_mount, _, of_system = line.partition(" - ")
    f = of_mount.split(" ")
    kind, _source, options = of_system.split(" ", 2)
    read_only = "ro" in f[5].split(",")
    return Mount(f[2], _unescaped(f[3]), _unescaped(f[4]), read_only, int(f[0]), int(f[1]), kind, options)


def visible(mounted: Iterable[Mount], kind: str = "") -> list[Mount]:
    """Those whose root the path of their mount point leads to: nothing is mounted over it, or over a directory above.

    Args:
        kind: of this file system only.
    """
    mounted = list(mounted)
    by_id = {mount.id: mount for mount in mounted if mount.id}
    on: dict[int, list[Mount]] = {}
    for mount in mounted:
        if not mount.id or mount.parent != mount.id:  # the first of all stands on itself
            on.setdefault(mount.parent, []).append(mount)

    def passed_by(mount: Mount) -> bool:
        """The way to it leads into another mount."""
        while mount.parent:
            if any(is_below(mount.point, other.point) for other in on.get(mount.parent, ()) if other is not mount):
                return True
            above = by_id.get(mount.parent)
            if above is None or above is mount:
                return False
            mount = above
        return False

    def covered(mount: Mount) -> bool:
        return bool(mount.id) and any(
            other.point == mount.point for other in on.get(mount.id, ()) if other is not mount
        )

    asked = [mount for mount in mounted if kind in ("", mount.kind)]
    return [mount for mount in asked if not covered(mount) and not passed_by(mount)]


def device_of(fd: int) -> str:
    """The file system of an open file, as the mount table writes it; not for btrfs, which tells another number."""
    device = os.fstat(fd).st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def device_number(device: str) -> int:
    """`major:minor` of the mount table as the kernel's own number (s_dev)."""
    major, _, minor = device.partition(":")
    return int(major) << _MINOR_BITS | int(minor)


def covering(path: str, mounted: list[Mount]) -> Mount:
    """The mount that `path` lies on: the longest mount point above it, the newest where there are several."""
    best = mounted[0]
    for mount in mounted:
        if is_below(path, mount.point) and len(mount.point) >= len(best.point):
            best = mount
    return best


def aliases(path: str, mounted: list[Mount]) -> list[str]:
    """Other paths that the same object has through other mounts of its file system."""
    home = covering(path, mounted)
    inner = _joined(home.root, _rest(path, home.point))
    found = {
        _joined(mount.point, _rest(inner, mount.root))
        for mount in mounted
        if mount.device == home.device and mount is not home and is_below(inner, mount.root)
    }
    return sorted(found - {path})


def real_place(mount: Mount, mounted: list[Mount]) -> str | None:
    """The path under which another mount of the same file system shows what `mount` shows; None when there is none."""
    for other in mounted:
        if other.device == mount.device and other.point != mount.point and is_below(mount.root, other.root):
            return _joined(other.point, _rest(mount.root, other.root))
    return None


def _rest(path: str, root: str) -> str:
    return path if root == "/" else path[len(root) :]


def _joined(root: str, rest: str) -> str:
    return (root.rstrip("/") + "/" + rest.lstrip("/")).rstrip("/") or "/"


def _unescaped(text: str) -> str:
    """The kernel writes space, tab, newline and backslash as three octal digits."""
    for escape, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, plain)
    return text
