"""What comes to each of the kernel's hooks, as directly as it can: see `bare.Act`."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import socket
import stat
import struct
import termios
import tty
from collections.abc import Callable
from errno import EACCES, ENODEV, ENOEXEC, ENOTTY, EPERM

from acts_escape import (
    PTRACE_DETACH,
    PTRACE_SEIZE,
    SYS_INIT_MODULE,
    SYS_PTRACE,
    call,
    load_bpf_map,
    open_perf,
)
from acts_file import AT_FDCWD, CLONE_NEWNS, CLONE_NEWUSER, MS_PRIVATE, MS_REC, checked, libc
from acts_names import (
    NEWER,
    OTHERS,
    SYS_PIVOT_ROOT,
    access_list,
    add_encryption_key,
    allocate_now,
    do_mount,
    encrypt,
    set_fat_attributes,
    set_flags,
    set_version,
    with_reading,
)
from bare import ACCESS_LIST, LOCKED, MARK, VAULT, Act, Doing, Scene
from bpf_tree import errno_of

from mcpguard.wire import _abi

NAMESPACES, IO_URING = _abi.MG_SESSION_NAMESPACES, _abi.MG_SESSION_IO_URING
SYS_MOVE_PAGES = 279 if os.uname().machine == "x86_64" else 239
OPEN_TREE, MOVE_MOUNT, FSCONFIG, FSPICK = 428, 429, 431, 433
OPEN_TREE_CLONE, MOVE_MOUNT_EMPTY_PATH, RECONFIGURE = 1, 4, 7
PTRACE_TRACEME, TIOCSTI, TIOCLINUX = 0, 0x5412, 0x541C
SET_SELECTION, PASTE_SELECTION = 2, 3
RING_SETUP, RING_ENTER, RING_REGISTER, REGISTER_PERSONALITY = 425, 426, 427, 9
SETUP_SQPOLL, SQ_WAKEUP, GETEVENTS = 2, 2, 1
OP_NOP, OP_OPENAT, OP_SOCKET, OP_URING_CMD = 0, 18, 45, 46


def on_file(do: Callable[[str], object], name: str = "file", place: str = LOCKED) -> Act:
    return Act(lambda scene: lambda: do(scene.path(name)), place=place)


def on_host(begin: Callable[[Scene], Doing], *, unguarded: int = 0, told: bool = False, flags: int = 0) -> Act:
    return Act(begin, EPERM, unguarded, "", capable=True, told=told, flags=flags)


# --- files ------------------------------------------------------------------------------------------------------


def receive(scene: Scene) -> Doing:
    """Somebody outside has sent the file already."""
    ours, theirs = socket.socketpair()
    socket.send_fds(theirs, [b"x"], [os.open(scene.path(), os.O_RDONLY)])

    def do() -> None:
        if not socket.recv_fds(ours, 1, 1)[1]:
            raise OSError(EACCES, "no descriptor came")

    return do


def map_file(path: str, protection: int) -> int:
    fd = os.open(path, os.O_RDONLY)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(4096), protection, mmap.MAP_PRIVATE, fd, ctypes.c_long(0))
    if address == ctypes.c_void_p(-1).value:
        checked(-1, path)
    return int(address)


def change_protection(scene: Scene) -> Doing:
    def do() -> None:
        address = map_file(scene.path(), mmap.PROT_READ)
        wanted = mmap.PROT_READ | mmap.PROT_EXEC
        checked(libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), wanted), "mprotect")

    return do


def create(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o600))


def watch(path: str) -> None:
    checked(libc.inotify_add_watch(checked(libc.inotify_init1(0), "inotify_init1"), path.encode(), 2), path)


def link(scene: Scene) -> Doing:
    return lambda: os.link(scene.side / "mine", scene.path("linked"))


def rename(scene: Scene) -> Doing:
    return lambda: os.rename(scene.side / "mine", scene.path())


def by_command(do: Callable[[int], object], name: str = "file", unguarded: int = 0) -> Act:
    """A change by a descriptor that was opened for reading."""
    return Act(lambda scene: lambda: with_reading(scene.path(name), do), unguarded=unguarded)


NAMES: dict[str, Act] = {
    "mknod": on_file(lambda path: os.mknod(path, stat.S_IFIFO | 0o600), "pipe"),
    "mkdir": on_file(os.mkdir, "made"),
    "symlink": on_file(lambda path: os.symlink("/nowhere", path), "pointer"),
    "unlink": on_file(os.unlink),
    "rmdir": on_file(os.rmdir, "sub"),
    "link": Act(link),
    "rename": Act(rename),
}
CHANGED: dict[str, Act] = {
    "chmod": on_file(lambda path: os.chmod(path, 0o777)),
    "chown": on_file(lambda path: os.chown(path, os.getuid(), os.getgid())),
    "truncate": on_file(lambda path: os.truncate(path, 0)),
}
# The kernel takes the privilege away by itself, and tells the hook so.
PRIVILEGED = on_file(lambda path: os.truncate(path, 0), "privileged")
TIMES = on_file(lambda path: os.utime(path, (1, 1)))
FILES: dict[str, Act] = {
    "file_open": on_file(lambda path: os.close(os.open(path, os.O_WRONLY))),
    "file_receive": Act(receive, place=VAULT),
    "mmap_file": on_file(lambda path: map_file(path, mmap.PROT_READ | mmap.PROT_EXEC)),
    "file_mprotect": Act(change_protection),
    **{f"path_{name}": act for name, act in (NAMES | CHANGED).items()},
    "inode_setattr": TIMES,
    "inode_setxattr": on_file(lambda path: os.setxattr(path, MARK, b"1")),
    "inode_removexattr": on_file(lambda path: os.removexattr(path, MARK), "marked"),
    "inode_set_acl": on_file(lambda path: os.setxattr(path, ACCESS_LIST, access_list())),
    "inode_remove_acl": on_file(lambda path: os.removexattr(path, ACCESS_LIST), "marked"),
    "inode_file_setattr": on_file(NEWER["file_setattr"]),
    "file_ioctl": by_command(set_flags),
    "file_ioctl, a version": by_command(set_version),
    "file_ioctl, blocks taken now": by_command(allocate_now),
    "file_ioctl, an encrypted folder": by_command(encrypt, "sub"),
    "file_ioctl, attributes that other file systems have": by_command(set_fat_attributes, unguarded=ENOTTY),
    "file_ioctl, a key for the file system": Act(
        lambda scene: lambda: with_reading(scene.path("sub"), add_encryption_key), place="", capable=True
    ),
    "path_notify": on_file(watch, place=VAULT),
}
INODES: dict[str, Act] = {
    "inode_create": on_file(create, "new"),
    **{f"inode_{name}": act for name, act in NAMES.items()},
    **{f"inode_setattr, {name}": act for name, act in CHANGED.items()},
    "inode_setattr, truncate of a privileged file": PRIVILEGED,
    "inode_setattr": TIMES,
}
MORE = {"path_truncate of a privileged file": PRIVILEGED, "path_mknod by open": on_file(create, "new")}


# --- processes, namespaces, the kernel itself -------------------------------------------------------------------


def seize(pid: int) -> None:
    call(SYS_PTRACE, PTRACE_SEIZE, pid, None, None)
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, 0x40000000)
    call(SYS_PTRACE, PTRACE_DETACH, pid, None, int(signal.SIGCONT))


def to_victim(how: str) -> Callable[[Scene], Doing]:
    return lambda scene: lambda: OTHERS[how](scene.victim)


def private_mounts(scene: Scene) -> str:
    """A mount namespace of one's own, with a file system in `sub`; returns where."""
    checked(libc.unshare(CLONE_NEWNS), "unshare")
    checked(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount / private")
    place = scene.path("sub")
    do_mount("tmpfs", place, "tmpfs")
    os.mkdir(f"{place}/old")
    os.mkdir(f"{place}/new")
    return place


def ask_for_module(scene: Scene) -> Doing:
    """A file system that no module is there for; the mount fails in any case, and what counts is whether one was looked for."""
    place = private_mounts(scene)

    def do() -> None:
        before = scene.asked.read_text()
        failed = errno_of(lambda: do_mount("none", f"{place}/new", "nosuchfs"))
        if failed != ENODEV:
            raise OSError(failed, "mount")
        raise OSError(EPERM if scene.asked.read_text() == before else ENODEV, "no module")

    return do


def mount(scene: Scene) -> Doing:
    place = private_mounts(scene)
    return lambda: do_mount("tmpfs", f"{place}/new", "tmpfs")


def remount(scene: Scene) -> Doing:
    """By the newer calls, which ask no other hook before."""
    place = private_mounts(scene)

    def do() -> None:
        context = call(FSPICK, AT_FDCWD, place.encode(), 0)
        call(FSCONFIG, context, RECONFIGURE, None, None, 0)

    return do


def unmount(scene: Scene) -> Doing:
    place = private_mounts(scene)
    return lambda: checked(libc.umount2(place.encode(), 0), place)


def pivot(scene: Scene) -> Doing:
    os.chdir(private_mounts(scene))
    return lambda: checked(libc.syscall(SYS_PIVOT_ROOT, b".", b"old"), "pivot_root")


def move_mount(scene: Scene) -> Doing:
    place = private_mounts(scene)
    tree = call(OPEN_TREE, AT_FDCWD, place.encode(), OPEN_TREE_CLONE)
    return lambda: call(MOVE_MOUNT, tree, b"", AT_FDCWD, f"{place}/new".encode(), MOVE_MOUNT_EMPTY_PATH)


class Uring:
    """A small io_uring."""

    def __init__(self, flags: int = 0) -> None:
        facts = ctypes.create_string_buffer(120)
        struct.pack_into("=I", facts, 8, flags)
        self.fd = call(RING_SETUP, 8, facts)
        self._entries, completions = struct.unpack_from("=2I", facts.raw, 0)
        self._asked, self._done = struct.unpack_from("=10I", facts.raw, 40), struct.unpack_from("=10I", facts.raw, 80)
        size = max(self._asked[6] + self._entries * 4, self._done[5] + completions * 16)
        self._shared = mmap.mmap(self.fd, size)
        self._queue = mmap.mmap(self.fd, self._entries * 64, offset=0x10000000)

    def request(
        self, op: int, fd: int = 0, address: int = 0, *, flags: int = 0, personality: int = 0, off: int = 0
    ) -> int:
        """One request, and its result."""
        entry = struct.pack("=BBHiQQIIQHHI", op, flags, 0, fd, off, address, 0, 0, 0, 0, personality, 0)
        self._queue[0:64] = entry.ljust(64, b"\0")
        struct.pack_into("=I", self._shared, self._asked[6], 0)
        struct.pack_into("=I", self._shared, self._asked[1], 1)
        call(RING_ENTER, self.fd, 1, 1, GETEVENTS | SQ_WAKEUP, None, 0)
        return int(struct.unpack_from("=Qi", self._shared, self._done[5])[1])

    def checked(self, op: int, fd: int = 0, address: int = 0, **more: int) -> int:
        result = self.request(op, fd, address, **more)
        if result < 0:
            raise OSError(-result, "a request")
        return result

    def opened(self, path: str, flags: int = 0) -> None:
        name = ctypes.create_string_buffer(path.encode())
        os.close(self.checked(OP_OPENAT, AT_FDCWD, ctypes.addressof(name), flags=flags))


def with_other_rights(_scene: Scene) -> Doing:
    ring = Uring()
    number = call(RING_REGISTER, ring.fd, REGISTER_PERSONALITY, None, 0)
    return lambda: ring.checked(OP_NOP, personality=number)


def command_to_device(_scene: Scene) -> Doing:
    ring = Uring()
    fd = os.open("/dev/null", os.O_RDONLY)
    return lambda: ring.checked(OP_URING_CMD, fd)


def type_ahead(_scene: Scene) -> Doing:
    """Put a letter where the person's own come from."""
    _ours, terminal = os.openpty()
    return lambda: fcntl.ioctl(terminal, TIOCSTI, b"x")


def paste(_scene: Scene) -> Doing:
    """Put a letter there by a console's selection: one from the screen, pasted as if the person had."""
    console = os.open("/dev/tty1", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    tty.setraw(console)
    termios.tcflush(console, termios.TCIFLUSH)
    os.write(console, b"\x1b[2J\x1b[Hx")

    def do() -> None:
        # The first letter of the first line, letter by letter.
        fcntl.ioctl(console, TIOCLINUX, bytearray(struct.pack("=B5H", SET_SELECTION, 1, 1, 1, 1, 0)))
        fcntl.ioctl(console, TIOCLINUX, bytearray([PASTE_SELECTION]))
        if os.read(console, 8) != b"x":
            raise OSError(ENODEV, "nothing was pasted")

    return do


def connect(scene: Scene) -> Doing:
    def do() -> None:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(scene.path("stream"))

    return do


def send(scene: Scene) -> Doing:
    def do() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.sendto(b"x", scene.path("dgram"))

    return do


HOST: dict[str, Act] = {
    "ptrace_access_check": on_host(lambda scene: lambda: seize(scene.victim)),
    "ptrace_traceme": on_host(lambda _scene: lambda: call(SYS_PTRACE, PTRACE_TRACEME, 0, None, None)),
    "task_kill": on_host(to_victim("kill")),
    "task_setnice": on_host(to_victim("setpriority"), told=True),
    "task_setioprio": on_host(to_victim("ioprio_set"), told=True),
    "task_setscheduler": on_host(to_victim("sched_setaffinity"), told=True),
    # It is asked after ptrace_access_check, so that one refuses.
    "task_movememory": on_host(lambda scene: lambda: call(SYS_MOVE_PAGES, scene.victim, 0, None, None, None, 0)),
    "file_fcntl": on_host(to_victim("setown"), told=True),
    "file_fcntl, another way": on_host(to_victim("setown_ex"), told=True),
    "file_ioctl, typing": on_host(type_ahead),
    "file_ioctl, pasting": on_host(paste),
    "file_ioctl, an owner": on_host(to_victim("fiosetown"), told=True),
    "file_ioctl, a group": on_host(to_victim("siocspgrp"), told=True),
    "bpf": on_host(lambda _scene: load_bpf_map),
    "perf_event_open": on_host(lambda _scene: open_perf),
    "kernel_module_request": on_host(ask_for_module, unguarded=ENODEV, flags=NAMESPACES),
    "kernel_load_data": on_host(lambda _scene: lambda: call(SYS_INIT_MODULE, bytes(256), 256, b""), unguarded=ENOEXEC),
    "uring_override_creds": on_host(with_other_rights),
    "uring_cmd": on_host(command_to_device),
    "uring_sqpoll": on_host(lambda _scene: lambda: Uring(SETUP_SQPOLL)),
    "uring_allowed": on_host(lambda _scene: Uring),
    "userns_create": on_host(lambda _scene: lambda: checked(libc.unshare(CLONE_NEWUSER), "unshare")),
    "sb_mount": on_host(mount),
    "sb_remount": on_host(remount),
    "sb_umount": on_host(unmount),
    "sb_pivotroot": on_host(pivot),
    "move_mount": on_host(move_mount),
    "path_chroot": on_host(lambda scene: lambda: os.chroot(scene.path("sub"))),
    "socket_create": on_host(lambda _scene: lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
    "socket_create, raw": on_host(lambda _scene: lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()),
    "socket_create, netlink": on_host(lambda _scene: lambda: socket.socket(16, socket.SOCK_RAW, 9).close()),
    "socket_create, by a ring": on_host(
        lambda _scene: lambda: Uring().checked(OP_SOCKET, socket.AF_PACKET, off=socket.SOCK_RAW), flags=IO_URING
    ),
}
PEERS: dict[str, Act] = {
    "unix_stream_connect": Act(connect),
    "unix_may_send": Act(send),
}
