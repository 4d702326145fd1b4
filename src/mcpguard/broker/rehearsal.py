"""Does the kernel really ask our programs? A process in the leaf, for which no policy stands yet, must be refused everything.

Loading and attaching prove nothing: without `bpf` among the active security modules such programs attach and are never
called, and a kernel whose linker put a function into those that call it asks no program on that function. So the very programs
that will guard the session are tried, before anybody relies on them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
from collections.abc import Callable

from mcpguard.backends.landlock import STAGE
from mcpguard.errors import HostError
from mcpguard.kernel import privileges, syscalls
from mcpguard.kernel.cgroup import Leaf

TYPE_CHECKING = False
if TYPE_CHECKING:
    Act = tuple[str, int, Callable[[], object]]

NOT_TRIED = "the process that was to try could not"
# Without these no tier holds. The others are what Landlock or a read-only mount would keep as well.
NEEDED = ("opening a directory", "making a directory", "looking at a process outside")
_TRIED = f"{STAGE}/rehearsal"
_REFUSED = (errno.EACCES, errno.EPERM)
_ATTRIBUTE, _ACCESS_LIST = "user.mcpguard", "system.posix_acl_access"
# Version 2, then tag, permissions and id of the owner, the group and all others (acl(5)).
_LIST = struct.pack("=I" + "HHI" * 3, 2, 1, 6, 0xFFFFFFFF, 4, 0, 0xFFFFFFFF, 0x20, 0, 0xFFFFFFFF)
_FS_IOC_SETFLAGS = 0x40086602
_FILE_SETATTR = 469  # Linux 6.17
_NO_ATTRIBUTES = bytes(24)


def not_refused(leaf: Leaf) -> tuple[list[str], list[str]]:
    """The acts that a process in the leaf could do although everything is refused there; empty: the programs are asked.

    Returns:
        them, and those that say nothing, because outside of the leaf they cannot be done either: by another module's word, or
        for want of a file system that knows them.

    Raises:
        HostError: they could not be tried for now.
    """
    try:
        with _Place("outside") as place:
            before = {name: _number_of(act) for name, _number, act in _acts(place)}
        if any(before[name] for name in NEEDED):
            raise OSError(next(filter(None, (before[name] for name in NEEDED))), "it cannot be done outside")
        with _Place("inside") as place:
            acts = _acts(place)
            answers = _inside(leaf, acts)
    except OSError as error:
        raise HostError(
            "the kernel's hooks could not be tried",
            why=f"{error.strerror} in {STAGE}",
            do=f"look at {STAGE}, or use --tier 3",
            code="host.rehearsal",
        ) from error
    if answers is None:
        return [NOT_TRIED], []
    done, unsure = [], []
    for (name, number, _act), answer in zip(acts, answers, strict=True):
        if errno.ENOSYS in (before[name], answer):
            continue  # a call that the kernel does not have needs no refusal
        if before[name] in _REFUSED or (answer and answer == before[name]):
            unsure.append(name)
        elif answer != number:
            done.append(name)
    return done, unsure


class _Place:
    """A folder of root's own with a file and a folder to act on; gone afterwards, with whatever was made in it."""

    def __init__(self, name: str) -> None:
        self.path = f"{_TRIED}-{name}-{os.urandom(4).hex()}"
        self.file, self.folder = f"{self.path}/file", f"{self.path}/folder"
        self.fd = -1

    def __enter__(self) -> _Place:
        os.mkdir(self.path, 0o700)
        os.mkdir(self.folder, 0o700)
        for path in (self.file, f"{self.path}/spare"):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        self.fd = os.open(self.file, os.O_RDONLY)  # before anything is refused: what is asked of an open file needs one
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)
        for name in os.listdir(self.path):
            with contextlib.suppress(IsADirectoryError):
                os.unlink(f"{self.path}/{name}")
                continue
            os.rmdir(f"{self.path}/{name}")
        os.rmdir(self.path)


def _acts(place: _Place) -> tuple[Act, ...]:
    """What is tried, with the errno of our refusal. Those that take something away come last."""
    outside, path, file = os.getpid(), place.path, place.file
    return (
        ("opening a directory", errno.EACCES, lambda: os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY))),
        ("making a directory", errno.EACCES, lambda: os.mkdir(f"{path}/made")),
        ("looking at a process outside", errno.EPERM, lambda: os.kill(outside, 0)),
        ("opening a file to write", errno.EACCES, lambda: os.close(os.open(file, os.O_WRONLY))),
        ("making a file by opening it", errno.EACCES, lambda: _create(f"{path}/opened")),
        ("making a node", errno.EACCES, lambda: os.mkfifo(f"{path}/node")),
        ("making a symlink", errno.EACCES, lambda: os.symlink("file", f"{path}/symlink")),
        ("making a hard link", errno.EACCES, lambda: os.link(file, f"{path}/link")),
        ("cutting a file short", errno.EACCES, lambda: os.truncate(file, 0)),
        ("changing a mode", errno.EACCES, lambda: os.chmod(file, 0o640)),
        ("changing an owner", errno.EACCES, lambda: os.chown(file, os.getuid(), os.getgid())),
        ("changing times", errno.EACCES, lambda: os.utime(file, (1, 1))),
        ("setting an attribute", errno.EACCES, lambda: os.setxattr(file, _ATTRIBUTE, b"1")),
        ("removing an attribute", errno.EACCES, lambda: os.removexattr(file, _ATTRIBUTE)),
        ("setting an access list", errno.EACCES, lambda: os.setxattr(file, _ACCESS_LIST, _LIST)),
        ("removing an access list", errno.EACCES, lambda: os.removexattr(file, _ACCESS_LIST)),
        ("changing flags of an open file", errno.EACCES, lambda: fcntl.ioctl(place.fd, _FS_IOC_SETFLAGS, bytes(8))),
        ("changing flags by name", errno.EACCES, lambda: _set_flags(file)),
        ("renaming", errno.EACCES, lambda: os.rename(file, f"{path}/renamed")),
        ("removing a file", errno.EACCES, lambda: os.unlink(f"{path}/spare")),
        ("removing a directory", errno.EACCES, lambda: os.rmdir(place.folder)),
    )


def _create(path: str) -> None:
    """The name is judged before the file is opened: refused only then, it is there."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError:
        if not os.path.lexists(path):
            raise


def _set_flags(path: str) -> None:
    syscalls.syscall(_FILE_SETATTR, syscalls.AT_FDCWD, os.fsencode(path), _NO_ATTRIBUTES, len(_NO_ATTRIBUTES), 0)


def _number_of(act: Callable[[], object]) -> int:
    """The errno of an act; 0: it was done."""
    try:
        act()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _inside(leaf: Leaf, acts: tuple[Act, ...]) -> list[int] | None:
    """What the acts come to in a process in the leaf; None: it could not try."""
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            leaf.enter()
            privileges.drop_capabilities()  # what has them acts for the kernel, and nothing that is guarded has
            os.write(write, bytes(min(_number_of(act), 255) for _name, _number, act in acts))
        finally:
            os._exit(0)
    os.close(write)
    answer = os.read(read, len(acts))
    os.close(read)
    os.waitpid(pid, 0)
    return list(answer) if len(answer) == len(acts) else None
