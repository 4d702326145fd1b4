"""Acts that try to leave the tree, to use a process outside it, or to loosen the guard."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import stat
import struct
import threading
import time
from collections.abc import Callable, Sequence

from acts import act
from acts_file import by_python, checked, libc, output_of

X86 = os.uname().machine == "x86_64"
SYS_PTRACE, SYS_BPF, SYS_PERF = (101, 321, 298) if X86 else (117, 280, 241)
SYS_ADD_KEY, SYS_KEYCTL, SYS_VM_READV = (248, 250, 310) if X86 else (217, 219, 270)
SYS_VM_WRITEV, SYS_INIT_MODULE, SYS_HANDLE_AT = (311, 175, 304) if X86 else (271, 105, 265)
SYS_PIDFD_OPEN, SYS_PIDFD_GETFD, SYS_PIDFD_SEND = 434, 438, 424
SYS_TGKILL, SYS_SIGQUEUE = (234, 129) if X86 else (131, 138)
SYS_SETHOSTNAME, SYS_ACCT, SYS_SYSLOG = (170, 163, 103) if X86 else (161, 89, 116)
SYS_USERFAULTFD, SYS_KCMP, SYS_FANOTIFY = (323, 312, 300) if X86 else (282, 272, 262)
SYS_QUOTACTL, SYS_SETTIMEOFDAY, SYS_MOUNT = (179, 164, 165) if X86 else (60, 170, 40)
SYS_OPEN_TREE, SYS_FSOPEN = 428, 430
PTRACE_ATTACH, PTRACE_DETACH, PTRACE_SEIZE = 16, 17, 0x4206
F_SETSIG, SYSLOG_SIZE, Q_SYNC = 10, 10, 0x80000100


def call(number: int, *words: object) -> int:
    # A bare int would fill half of an argument's register, and the kernel reads all of it.
    whole = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    return checked(libc.syscall(ctypes.c_long(number), *whole), f"system call {number}")


@act
def signal_to(pid: int, number: int) -> None:
    """Send a signal."""
    os.kill(pid, number)


@act
def signal_by_pidfd(pid: int, number: int) -> None:
    """The same by a handle."""
    call(SYS_PIDFD_SEND, os.pidfd_open(pid), number, None, 0)


@act
def signal_group(pid: int) -> None:
    """Send nothing to a whole process group, as a try."""
    os.killpg(os.getpgid(pid), 0)


@act
def signal_thread(pid: int) -> None:
    """The same to one thread."""
    call(SYS_TGKILL, pid, pid, 0)


@act
def signal_with_value(pid: int) -> None:
    """The same with a value, which a debugger would send."""
    call(SYS_SIGQUEUE, pid, 0, ctypes.create_string_buffer(struct.pack("iii", 0, 0, -1), 128))


@act
def signal_by_arrival(pid: int, number: int) -> None:
    """Have the kernel send a signal when something arrives in a pipe of one's own."""
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, pid)
    fcntl.fcntl(reader, F_SETSIG, number)
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.write(writer, b"x")


@act
def seize(pid: int) -> None:
    """Take a process over without stopping it."""
    call(SYS_PTRACE, PTRACE_SEIZE, pid, None, None)


@act
def copy_into_memory(pid: int, start: int) -> None:
    """Write into the memory of a process: the first byte of its stack, as it is."""
    byte = ctypes.create_string_buffer(1)
    mine = (ctypes.c_uint64 * 2)(ctypes.addressof(byte), 1)
    theirs = (ctypes.c_uint64 * 2)(start, 1)
    call(SYS_VM_READV, pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)
    call(SYS_VM_WRITEV, pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)


@act
def reach_guard(how: str) -> None:
    """The process that started the first of all acts, which is the guard where there is one."""
    with open(f"/proc/{os.getppid()}/stat") as stat:
        guard = int(stat.read().rpartition(")")[2].split()[1])
    if how == "signal":
        os.kill(guard, 0)
    elif how == "descriptor":
        os.close(call(SYS_PIDFD_GETFD, os.pidfd_open(guard), 1, 0))
    elif how == "open file":
        os.close(os.open(f"/proc/{guard}/fd/0", os.O_RDONLY))
    else:
        read_file(f"/proc/{guard}/{how}")


@act
def ptrace(pid: int) -> None:
    """Take a process over."""
    call(SYS_PTRACE, PTRACE_ATTACH, pid, None, None)
    os.waitpid(pid, 0x40000000)
    call(SYS_PTRACE, PTRACE_DETACH, pid, None, None)


@act
def read_memory(pid: int) -> str:
    """Find a text in another process's stack through /proc/PID/mem."""
    start, end = stack_of(pid)
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(start)
        return memory.read(end - start).decode(errors="replace")[-4096:]


def stack_of(pid: int) -> tuple[int, int]:
    with open(f"/proc/{pid}/maps") as maps:
        line = next(line for line in maps if "[stack]" in line)
    start, end = line.split()[0].split("-")
    return int(start, 16), int(end, 16)


@act
def copy_memory(pid: int, start: int, size: int) -> str:
    """The same by process_vm_readv, at an address that was told."""
    text = ctypes.create_string_buffer(size)
    mine = (ctypes.c_uint64 * 2)(ctypes.addressof(text), size)
    theirs = (ctypes.c_uint64 * 2)(start, size)
    call(SYS_VM_READV, pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)
    return text.raw.decode(errors="replace")[-4096:]


@act
def write_memory(pid: int, address: int) -> None:
    """Write what stands there already through /proc/PID/mem."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        there = memory.read(8)
        memory.seek(address)
        memory.write(there)


@act
def read_link(path: str) -> str:
    """Where a link leads."""
    return os.readlink(path)


@act
def list_folder(path: str) -> str:
    """The names in a folder."""
    return " ".join(os.listdir(path))


@act
def take_descriptor(pid: int, fd: int) -> str:
    """Copy a file descriptor out of another process and read from it."""
    taken = call(SYS_PIDFD_GETFD, os.pidfd_open(pid), fd, 0)
    return os.pread(taken, 4096, 0).decode()


@act
def read_file(path: str) -> str:
    """Read any file, as it is."""
    with open(path, "rb") as file:
        return file.read(65536).decode(errors="replace").replace("\0", "\n")


@act
def write_file(path: str, text: str) -> None:
    """Append to any file, as it is."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


@act
def remove(path: str) -> None:
    """Remove a file or a whole tree."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


@act
def move_to_cgroup(folder: str, path: str) -> str:
    """Leave for another cgroup, then read."""
    with open(f"{folder}/cgroup.procs", "w") as members:
        members.write(str(os.getpid()))
    return by_python(path)


@act
def make_cgroup(folder: str) -> None:
    """Make a cgroup."""
    os.mkdir(folder)
    os.rmdir(folder)


@act
def run_program(command: list[str]) -> str:
    """Run any program."""
    return output_of(*command)


@act
def unshare(flags: int) -> None:
    """Leave namespaces."""
    checked(libc.unshare(flags), "unshare")


@act
def chroot(path: str) -> None:
    """Change the root."""
    os.chroot(path)


@act
def join_namespace(pid: int, kind: str) -> None:
    """Enter a namespace of another process."""
    with open(f"/proc/{pid}/ns/{kind}") as handle:
        checked(libc.setns(handle.fileno(), 0), "setns")


@act
def load_bpf_map() -> None:
    """Make a BPF map."""
    wanted = ctypes.create_string_buffer(struct.pack("IIII", 2, 4, 4, 1), 128)
    os.close(call(SYS_BPF, 0, ctypes.byref(wanted), 128))


@act
def open_perf() -> None:
    """Count something of the kernel's."""
    wanted = ctypes.create_string_buffer(struct.pack("IIQ", 1, 112, 0), 112)
    os.close(call(SYS_PERF, ctypes.byref(wanted), 0, -1, -1, 0))


@act
def add_key() -> None:
    """Put a key in the keyring of the session."""
    call(SYS_ADD_KEY, b"user", b"mcpguard-test", b"x", 1, -2)


@act
def read_keyrings() -> None:
    """Ask for the keyring of the session."""
    call(SYS_KEYCTL, 0, -3, 0)


HOST = os.uname().nodename.encode()
# Calls that configure the host, or watch it; each does nothing, or nothing that lasts.
KERNEL_CALLS: dict[str, Callable[[], int]] = {
    "name the host": lambda: call(SYS_SETHOSTNAME, HOST, len(HOST)),
    "stop accounting": lambda: call(SYS_ACCT, None),
    "ask for the kernel's log": lambda: call(SYS_SYSLOG, SYSLOG_SIZE, None, 0),
    "handle page faults": lambda: call(SYS_USERFAULTFD, 0),
    "compare processes": lambda: call(SYS_KCMP, os.getpid(), os.getpid(), 0, 0, 0),
    "set the clock": lambda: call(SYS_SETTIMEOFDAY, None, None),
    "watch a file system": lambda: call(SYS_FANOTIFY, 0, 0),
    "write quotas": lambda: call(SYS_QUOTACTL, Q_SYNC, None, 0, None),
    "clone a mount": lambda: call(SYS_OPEN_TREE, -100, b"/", 1),
    "make a file system": lambda: call(SYS_FSOPEN, b"tmpfs", 0),
}


@act
def call_kernel(name: str) -> None:
    """Make one of those calls."""
    KERNEL_CALLS[name]()


@act
def make_device(path: str) -> None:
    """A way to the first disk, past every file system."""
    os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(8, 0))
    os.unlink(path)


@act
def give_capability(path: str) -> None:
    """Have a program start with every capability."""
    with open(path, "w"):
        os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000001, 0xFFFFFFFF, 0, 0, 0))


@act
def open_by_handle(path: str, folder: str) -> str:
    """Open a file by its number in the file system, past every folder above it."""
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    mount = ctypes.c_int()
    checked(libc.name_to_handle_at(-100, path.encode(), ctypes.byref(handle), ctypes.byref(mount), 0), path)
    fd = os.open(folder, os.O_RDONLY)
    opened = call(SYS_HANDLE_AT, fd, ctypes.byref(handle), os.O_RDONLY)
    return os.read(opened, 4096).decode()


@act
def execute_memory(program: str, words: Sequence[str] = ()) -> str:
    """Run a program that lies in no file system, with these arguments."""
    fd = os.memfd_create("nameless", 0)
    with open(program, "rb") as source:
        os.sendfile(fd, source.fileno(), 0, os.fstat(source.fileno()).st_size)
    return output_of(f"/proc/{os.getpid()}/fd/{fd}", *words)


@act
def rename_itself(name: str, path: str) -> str:
    """Take another process's name, then read."""
    checked(libc.prctl(15, name.encode(), 0, 0, 0), "prctl")
    return by_python(path)


@act
def wait_and_read(ready: str, go: str, result: str, path: str) -> None:
    """Say that it is there, wait for the word, then read the secret and leave what came of it in a file."""
    with open(ready, "w") as file:
        file.write(str(os.getpid()))
    while not os.path.exists(go):
        time.sleep(0.01)
    try:
        text = by_python(path)
    except OSError as refused:
        text = f"refused {refused.errno}"
    with open(f"{result}.new", "w") as file:
        file.write(text)
    os.rename(f"{result}.new", result)


@act
def tamper(folder: str) -> str:
    """Open every file below a folder for writing, and make one more; says which calls the kernel let through."""
    done: list[str] = []
    last: OSError | None = None
    paths = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    for path in [*paths, f"{folder}/planted"]:
        try:
            os.close(os.open(path, os.O_WRONLY | (os.O_CREAT if path.endswith("planted") else 0)))
            done.append(path)
        except OSError as refused:
            last = refused
    if last and not done:
        raise last
    return "\n".join(done)


@act
def flood_and_read(path: str, harmless: str, times: int) -> str:
    """Bury one read under very many others."""
    for _ in range(times):
        os.close(os.open(harmless, os.O_RDONLY))
    return by_python(path)


@act
def storm(path: str, threads: int, times: int) -> str:
    """Ask for the file from many threads at once, again and again; succeeds when even one of them gets it."""
    refusals = []
    found = []

    def ask() -> None:
        for _ in range(times):
            try:
                found.append(by_python(path))
            except OSError as refused:
                refusals.append(refused)

    asking = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    if not found:
        raise refusals[0]
    return found[0]
