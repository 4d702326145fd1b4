"""Acts that only verdicts of the kernel's own hooks can judge rightly: names made later, odd ways to a file, own namespaces."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable

from acts import act
from acts_escape import call
from acts_file import (
    AT_FDCWD,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    SYS_RENAMEAT2,
    by_python,
    checked,
    libc,
    new_file,
    output_of,
    rename_exchange,
)

X86 = os.uname().machine == "x86_64"
SYS_EXECVEAT, SYS_IOPRIO_SET, SYS_PIVOT_ROOT = (322, 251, 155) if X86 else (281, 30, 41)
AT_EMPTY_PATH, AT_SYMLINK_FOLLOW, RENAME_WHITEOUT = 0x1000, 0x400, 4
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, NODUMP, XFLAG_NODUMP = 0x80086601, 0x40086602, 0x40, 0x80
FS_IOC_SETVERSION, FAT_IOCTL_SET_ATTRIBUTES, EXT4_IOC_ALLOC_DA_BLKS = 0x40087602, 0x40047211, 0x660C
FS_IOC_SET_ENCRYPTION_POLICY, FS_IOC_ADD_ENCRYPTION_KEY = 0x800C6613, 0xC0506617
FICLONE, FIDEDUPERANGE, SUBVOL_CREATE, SNAP_CREATE_V2 = 0x40049409, 0xC0189436, 0x5000940E, 0x50009417
FIOSETOWN, SIOCSPGRP = 0x8901, 0x8902
READ_IMPLIES_EXEC, MS_REMOUNT = 0x0400000, 32
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
WAIT_SECONDS = 180


def ask(door: str, request: str) -> list[int]:
    """Have the process outside do something; returns the descriptors that it sent."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(WAIT_SECONDS)
        line.connect(door)
        line.sendall(request.encode())
        said, descriptors, _flags, _from = socket.recv_fds(line, 1000, 4)
        if said != b"done":
            raise OSError(5, said.decode() or "no answer from outside")
        return list(descriptors)


@act
def after_outside(door: str, request: str, name: str, args: dict[str, object]) -> object:
    """Do another act when the process outside has done its part."""
    from acts import ACTS

    ask(door, request)
    return ACTS[name](**args)


@act
def receive(door: str, request: str) -> str:
    """Read from a descriptor that a process outside sends."""
    found = ask(door, request)
    if not found:
        raise OSError(13, "no descriptor arrived")
    return os.pread(found[0], 4096, 0).decode()


@act
def receive_and_write(door: str, request: str) -> None:
    """Write to a descriptor that a process outside sends."""
    found = ask(door, request)
    if not found:
        raise OSError(13, "no descriptor arrived")
    os.pwrite(found[0], b"planted", 0)


@act
def move(source: str, to: str) -> None:
    """Rename."""
    os.rename(source, to)


@act
def exchange(one: str, other: str) -> None:
    """Exchange two names."""
    rename_exchange(one, other)


@act
def whiteout(source: str, to: str) -> None:
    """Rename, and leave a whiteout behind."""
    checked(libc.syscall(SYS_RENAMEAT2, AT_FDCWD, source.encode(), AT_FDCWD, to.encode(), RENAME_WHITEOUT), source)


@act
def link(source: str, to: str) -> None:
    """A second name."""
    os.link(source, to)


@act
def link_descriptor(source: str, to: str) -> None:
    """A second name for a file that is open for reading."""
    fd = os.open(source, os.O_RDONLY)
    name = f"/proc/self/fd/{fd}".encode()
    checked(libc.linkat(AT_FDCWD, name, AT_FDCWD, to.encode(), AT_SYMLINK_FOLLOW), to)


@act
def name_later(folder: str, to: str) -> None:
    """Make a file without a name, write it, then give it one."""
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"planted")
    name = f"/proc/self/fd/{fd}".encode()
    checked(libc.linkat(AT_FDCWD, name, AT_FDCWD, to.encode(), AT_SYMLINK_FOLLOW), to)


@act
def reopen(path: str, flags: int) -> str:
    """Open a file for its place alone, then open that."""
    fd = os.open(path, os.O_PATH)
    again = os.open(f"/proc/self/fd/{fd}", flags)
    return os.read(again, 4096).decode() if flags == os.O_RDONLY else ""


@act
def execute_descriptor(path: str) -> str:
    """Run the file behind a descriptor that was opened for its place alone."""
    fd = os.open(path, os.O_PATH)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 1)
        words = (ctypes.c_char_p * 2)(path.encode(), None)
        libc.syscall(SYS_EXECVEAT, fd, b"", words, None, AT_EMPTY_PATH)
        os._exit(ctypes.get_errno())
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "execveat", path)
    return said


@act
def map_code(path: str, how: str) -> None:
    """Map a file as code: at once, by a change of the mapping, or by a personality that makes all reading executing."""
    fd = os.open(path, os.O_RDONLY)
    if how == "personality":
        libc.personality(READ_IMPLIES_EXEC)
    wanted = mmap.PROT_READ | (mmap.PROT_EXEC if how == "mmap" else 0)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(4096), wanted, mmap.MAP_PRIVATE, fd, ctypes.c_long(0))
    if address == ctypes.c_void_p(-1).value:
        checked(-1, path)
    if how == "mprotect":
        changed = libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), mmap.PROT_READ | mmap.PROT_EXEC)
        checked(changed, path)
    with open("/proc/self/maps") as maps:
        mine = next(line for line in maps if line.startswith(f"{address:x}-"))
    if "x" not in mine.split()[1]:
        raise OSError(1, f"it is not executable: {mine}", path)


@act
def load_library(path: str) -> None:
    """Load a library into this process."""
    ctypes.CDLL(path)


def with_reading(path: str, work: Callable[[int], object]) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        work(fd)
    finally:
        os.close(fd)


def set_flags(fd: int) -> None:
    flags = array.array("l", [0])
    fcntl.ioctl(fd, FS_IOC_GETFLAGS, flags, True)
    flags[0] ^= NODUMP
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, flags, True)


def set_version(fd: int) -> None:
    fcntl.ioctl(fd, FS_IOC_SETVERSION, struct.pack("i", 77))


def set_fat_attributes(fd: int) -> None:
    fcntl.ioctl(fd, FAT_IOCTL_SET_ATTRIBUTES, struct.pack("I", 1))


def allocate_now(fd: int) -> None:
    fcntl.ioctl(fd, EXT4_IOC_ALLOC_DA_BLKS)


def encrypt(fd: int) -> None:
    """Have an empty folder hold encrypted files from now on, by a key that is not there yet: AES of 256 bits."""
    fcntl.ioctl(fd, FS_IOC_SET_ENCRYPTION_POLICY, struct.pack("=BBBB8s", 0, 1, 4, 3, b"mcpguard"))


def add_encryption_key(fd: int) -> None:
    """Give the whole file system a key, under the name that folders have of it."""
    words = (1, 0, b"mcpguard", 64, 0, b"", b"k" * 64)
    fcntl.ioctl(fd, FS_IOC_ADD_ENCRYPTION_KEY, bytearray(struct.pack("=II32sII32s64s", *words)))


def access_list() -> bytes:
    entries = ((0x01, 6, -1), (0x02, 4, 65534), (0x04, 4, -1), (0x10, 4, -1), (0x20, 4, -1))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


# Changes through a descriptor that was opened for reading, or of what is no content.
ATTRIBUTES: dict[str, Callable[[str], object]] = {
    "fchmod": lambda path: with_reading(path, lambda fd: os.fchmod(fd, 0o640)),
    "fchown": lambda path: with_reading(path, lambda fd: os.fchown(fd, os.getuid(), os.getgid())),
    "futimes": lambda path: with_reading(path, lambda fd: os.utime(fd, (1, 1))),
    "fsetxattr": lambda path: with_reading(path, lambda fd: os.setxattr(fd, "user.mark", b"1")),
    "acl": lambda path: os.setxattr(path, "system.posix_acl_access", access_list()),
    "flags": lambda path: with_reading(path, set_flags),
}


def in_words(number: int, path: str, *words: object) -> None:
    """A call that names a file by its path from the current folder."""
    call(number, AT_FDCWD, path.encode(), *words)


def xattr_by_call(path: str) -> None:
    value = ctypes.create_string_buffer(b"1", 1)
    wanted = ctypes.create_string_buffer(struct.pack("=QII", ctypes.addressof(value), 1, 0), 16)
    in_words(463, path, 0, b"user.mark", ctypes.byref(wanted), 16)


def flags_by_call(path: str) -> None:
    wanted = ctypes.create_string_buffer(struct.pack("=QIIII", XFLAG_NODUMP, 0, 0, 0, 0), 24)
    in_words(469, path, ctypes.byref(wanted), 24, 0)


# Calls that came after Linux 6.1, each the number that it has everywhere.
NEWER: dict[str, Callable[[str], object]] = {
    "fchmodat2": lambda path: in_words(452, path, 0o640, 0),
    "setxattrat": xattr_by_call,
    "removexattrat": lambda path: in_words(466, path, 0, b"user.old"),
    "file_setattr": flags_by_call,
}


@act
def set_by_newer_call(how: str, path: str) -> None:
    """The same by a call that not every kernel has."""
    NEWER[how](path)


@act
def set_attribute(how: str, path: str) -> None:
    """Change something about a file that is not its content."""
    ATTRIBUTES[how](path)


@act
def splice_into(path: str) -> None:
    """Move bytes from a pipe into a file inside the kernel."""
    reader, writer = os.pipe()
    os.write(writer, b"planted")
    fd = os.open(path, os.O_WRONLY)
    os.splice(reader, fd, 7)


@act
def watch(path: str) -> None:
    """Be told of what happens to a file."""
    fd = checked(libc.inotify_init1(0), "inotify_init1")
    checked(libc.inotify_add_watch(fd, path.encode(), 0x2), path)


@act
def clone_file(source: str, to: str) -> str:
    """Share a file's blocks."""
    fd = os.open(source, os.O_RDONLY)
    made = os.open(to, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.ioctl(made, FICLONE, fd)
    return os.pread(made, 4096, 0).decode()


@act
def dedupe_file(source: str, to: str) -> str:
    """Have two files share what is alike in them; neither needs to be open for writing."""
    size = os.stat(source).st_size
    fd, other = os.open(source, os.O_RDONLY), os.open(to, os.O_RDONLY)
    wanted = bytearray(struct.pack("=QQHHIqQQiI", 0, size, 1, 0, 0, other, 0, 0, 0, 0))
    fcntl.ioctl(fd, FIDEDUPERANGE, wanted)
    status = struct.unpack_from("=i", wanted, 48)[0]
    if status < 0:
        raise OSError(-status, os.strerror(-status), to)
    return "differs" if status else "alike"


@act
def snapshot(subvolume: str, folder: str, below: str) -> str:
    """Make a snapshot of a subvolume and read a file of it under the new name."""
    fd = os.open(subvolume, os.O_RDONLY)
    at = os.open(folder, os.O_RDONLY)
    # Longer than ioctl takes as plain bytes.
    fcntl.ioctl(at, SNAP_CREATE_V2, bytearray(struct.pack("<qQQ32x4040s", fd, 0, 0, b"snap")))
    return by_python(f"{folder}/snap/{below}")


def name_owner(request: int, pid: int) -> None:
    """Have a process get the signals of a socket, by a command to it."""
    with socket.socket(socket.AF_UNIX) as line:
        fcntl.ioctl(line, request, struct.pack("i", pid))


OTHERS: dict[str, Callable[[int], object]] = {
    "kill": lambda pid: os.kill(pid, 0),
    "setpriority": lambda pid: os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid) + 1),
    "sched_setaffinity": lambda pid: os.sched_setaffinity(pid, os.sched_getaffinity(pid)),
    "sched_setscheduler": lambda pid: os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0)),
    "ioprio_set": lambda pid: call(SYS_IOPRIO_SET, 1, pid, 2 << 13 | 7),
    "setown": lambda pid: fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, pid),
    "setown_ex": lambda pid: fcntl.fcntl(os.pipe()[0], 15, struct.pack("ii", 1, pid)),
    "fiosetown": lambda pid: name_owner(FIOSETOWN, pid),
    "siocspgrp": lambda pid: name_owner(SIOCSPGRP, pid),
}


@act
def touch_process(how: str, pid: int) -> None:
    """Do something to another process."""
    OTHERS[how](pid)


@act
def talk(address: str, kind: int, folder: str = "") -> str:
    """Send a line to a unix socket; `@` is abstract; relative to `folder` when that is given."""
    if folder:
        os.chdir(folder)
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, kind) as line:
        line.settimeout(WAIT_SECONDS)
        if kind == socket.SOCK_DGRAM:
            line.sendto(b"hello", name)
            return ""
        line.connect(name)
        return line.recv(100).decode()


@act
def talk_to_own(address: str, kind: int) -> str:
    """Bind a socket, and send to it."""
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, kind) as server, socket.socket(socket.AF_UNIX, kind) as client:
        server.bind(name)
        if kind == socket.SOCK_DGRAM:
            client.sendto(b"hello", name)
            return server.recv(100).decode()
        server.listen()
        client.connect(name)
        accepted, _ = server.accept()
        client.sendall(b"hello")
        return accepted.recv(100).decode()


@act
def receive_late(door: str) -> str:
    """Take files of a file system that is mounted while the guard's own process stands still, then goes on."""
    ask(door, "mount while it stands")
    told = {"first": arrived(door, "send late")}
    ask(door, "go on")
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        told["later"] = arrived(door, "send late")
        if told["later"] == "read":
            break
        time.sleep(0.2)
    told["vault"] = arrived(door, "send late vault")
    return json.dumps(told)


def arrived(door: str, request: str) -> str:
    found = ask(door, request)
    return "read" if found and os.pread(found[0], 4096, 0) else "nothing"


def outcome(path: str) -> str:
    """`read`, or the errno of the refusal."""
    try:
        by_python(path)
    except OSError as refused:
        return os.strerror(refused.errno or 0)
    return "read"


def enter_own_namespaces() -> None:
    uid, gid = os.getuid(), os.getgid()
    checked(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID), "unshare")
    map_own_ids(uid, gid)
    make_mounts_private()


def map_own_ids(uid: int, gid: int) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def make_mounts_private() -> None:
    checked(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount / private")


def do_mount(source: str, target: str, kind: str | None, flags: int = 0, options: str = "") -> None:
    more = options.encode() if options else None
    words = (source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags), more)
    checked(libc.mount(*words), f"mount {target}")


@act
def own_sandbox(folder: str, vault: str, locked: str) -> str:
    """Make namespaces, bind mounts, a new root, tmpfs and proc, as agents' own sandboxes do; reach for files by all of them,
    and by taking off or changing what is mounted over them.

    Returns what became of each: of what must work, and of what must not.
    """
    uid, gid = os.getuid(), os.getgid()
    told: dict[str, str] = {}

    def note(name: str, work: Callable[[], object]) -> None:
        try:
            told[name] = str(work() or "done")
        except OSError as refused:
            told[name] = f"{os.strerror(refused.errno or 0)}: {refused.filename or refused}"

    new_file(f"{folder}/told")  # in a namespace whose ids are not mapped nobody makes one
    checked(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID), "unshare")
    note("ids", lambda: map_own_ids(uid, gid))
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        with open(f"{folder}/told") as file:
            return file.read()
    with open(f"{folder}/told", "w") as file:
        root, new = f"{folder}/root", f"{folder}/new"
        note("private mounts", make_mounts_private)
        note("cover off", lambda: unmount(os.path.dirname(vault)))
        note("vault without cover", lambda: by_python(vault))
        note("locked mounted anew", lambda: do_mount("none", os.path.dirname(locked), None, MS_REMOUNT | MS_BIND))
        note("write locked mounted anew", lambda: new_file(locked))
        note("bind of the vault", lambda: do_mount(os.path.dirname(vault), f"{folder}/bound", None, MS_BIND | MS_REC))
        note("vault by bind", lambda: by_python(f"{folder}/bound/{os.path.basename(vault)}"))
        note("bind of a file", lambda: do_mount(vault, f"{folder}/onto", None, MS_BIND))
        note("vault by bound file", lambda: by_python(f"{folder}/onto"))
        note("bind of locked", lambda: do_mount(os.path.dirname(locked), f"{folder}/bound2", None, MS_BIND | MS_REC))
        note("write locked by bind", lambda: new_file(f"{folder}/bound2/{os.path.basename(locked)}"))
        note("create in locked by bind", lambda: new_file(f"{folder}/bound2/new"))
        note("tmpfs", lambda: do_mount("tmpfs", new, "tmpfs"))
        note("use tmpfs", lambda: new_file(f"{new}/file"))
        note("read tmpfs", lambda: by_python(f"{new}/file"))
        layers = f"lowerdir={os.path.dirname(vault)}:{os.path.dirname(locked)}"
        note("overlay", lambda: do_mount("overlay", f"{folder}/layered", "overlay", options=layers))
        note("vault by overlay", lambda: by_python(f"{folder}/layered/{os.path.basename(vault)}"))
        note("bind of everything", lambda: do_mount("/", root, None, MS_BIND | MS_REC))
        note("new proc", lambda: do_mount("proc", f"{root}/proc", "proc"))
        note("read new proc", lambda: by_python(f"{root}/proc/self/status")[:5])
        note("vault by new proc", lambda: by_python(f"{root}/proc/self/root{vault}"))
        note("vault by new root's name", lambda: by_python(root + vault))
        note("pivot", lambda: pivot(root))
        note("vault after pivot", lambda: by_python(vault))
        note("vault by old root", lambda: by_python(f"/tmp{vault}"))
        note("write locked after pivot", lambda: new_file(locked))
        note("free after pivot", lambda: new_file(f"{folder}/told-too"))
        with contextlib.suppress(OSError):
            told["cat after pivot"] = output_of("cat", f"{folder}/told-too")
        file.write(json.dumps(told))
    os._exit(0)


def pivot(root: str) -> None:
    os.chdir(root)
    checked(libc.syscall(SYS_PIVOT_ROOT, b".", b"tmp"), "pivot_root")
    os.chdir("/")


@act
def remove_pin(path: str) -> None:
    """Unlink a pinned kernel object."""
    os.unlink(path)


@act
def unmount(path: str) -> None:
    """Take a file system away."""
    checked(libc.umount2(path.encode(), 2), path)


@act
def outlive(door: str, path: str, result: str, host: str) -> None:
    """Ask for a name and read, have the guard's own processes killed, read again; what became of both goes into a file."""
    with contextlib.suppress(OSError):
        socket.getaddrinfo(host, 443)
    before = outcome(path)
    time.sleep(3)  # what is on its way into the record gets there
    ask(door, "kill the guard")
    time.sleep(0.5)
    new_file(result, json.dumps({"before": before, "after": outcome(path), "cat": cat(path)}))


def cat(path: str) -> str:
    pid = os.fork()
    if pid == 0:
        os.execv("/usr/bin/cat", ["cat", path])
    return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


@act
def run_storm(command: list[str]) -> str:
    """Run a program that counts by itself what it could do; what it says counts, and not how it ends."""
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


@act
def flood_ring(door: str, command: list[str], later: str) -> str:
    """Run a program while nobody reads the rings; end when a refusal of `later` is on record, so that there is room again."""
    ask(door, "stand still")
    try:
        out = run_storm(command)
    finally:
        ask(door, "go on")
    while True:
        outcome(later)
        try:
            ask(door, "look for later")
            return out
        except OSError:
            time.sleep(2)


@act
def read_both(door: str, paths: list[str], times: int) -> str:
    """Meet another session outside, then read each file many times; what became of each."""
    ask(door, "meet")
    return json.dumps([sorted({outcome(path) for _ in range(times)}) for path in paths])
