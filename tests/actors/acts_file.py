"""Acts on files: ways to read one, ways to reach it by another name, and ways to change one."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

from acts import Failed, act

SYS_OPENAT2, SYS_RENAMEAT2 = 437, 316 if os.uname().machine == "x86_64" else 276
AT_FDCWD, RENAME_EXCHANGE = -100, 2
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
FLIPS = 300
LINK_SECONDS = 10
libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    """The result of a C call, or its errno as the OSError that it stands for."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise Failed(f"{command[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


# Readers: each returns what the file holds.


def by_python(path: str) -> str:
    with open(path) as file:
        return file.read()


def by_os_open(path: str) -> str:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4096).decode()
    finally:
        os.close(fd)


def by_mmap(path: str) -> str:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        return view[:].decode()


def by_openat2(path: str) -> str:
    how = (ctypes.c_uint64 * 3)(os.O_RDONLY, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    fd = checked(libc.syscall(SYS_OPENAT2, AT_FDCWD, path.encode(), ctypes.byref(how), size), path)
    with os.fdopen(fd) as file:
        return file.read()


def by_copying_in_the_kernel(path: str) -> str:
    with open(path, "rb") as source, open(f"{path.rpartition('/')[2]}.copy-{os.getpid()}", "w+b") as copy:
        os.unlink(copy.name)
        os.copy_file_range(source.fileno(), copy.fileno(), 4096)
        copy.seek(0)
        return copy.read().decode()


def by_copy(path: str) -> str:
    copy = f"copy-{os.getpid()}"
    try:
        output_of("cp", path, copy)
        return by_python(copy)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(copy)


NODE_READ = "process.stdout.write(require('fs').readFileSync(process.argv[1]))"
READERS: dict[str, Callable[[str], str]] = {
    "python": by_python,
    "os_open": by_os_open,
    "mmap": by_mmap,
    "openat2": by_openat2,
    "copy_file_range": by_copying_in_the_kernel,
    "cp": by_copy,
    "cat": lambda path: output_of("cat", path),
    "head": lambda path: output_of("head", "-n3", path),
    "dd": lambda path: output_of("dd", f"if={path}", "status=none"),
    "grep": lambda path: output_of("grep", "-r", "canary", path),
    "tar": lambda path: output_of("tar", "-chO", "--absolute-names", path),
    "node": lambda path: output_of("node", "-e", NODE_READ, path),
    "static": lambda path: output_of("./acts", "cat", path),
    "late": lambda path: output_of("./acts", "late", path),
    "vfork": lambda path: output_of("./acts", "vfork", path),
    "uring": lambda path: output_of("./acts", "uring", path),
    "cat-32bit": lambda path: output_of("./acts", "cat-32bit", path),
}


# Aliases: each yields another name for the file, made by the act itself.


def scratch_name() -> str:
    return f"alias-{os.getpid()}"


@contextlib.contextmanager
def symlink(path: str) -> Iterator[str]:
    name = scratch_name()
    os.symlink(path, name)
    yield name


@contextlib.contextmanager
def vanished_symlink(path: str) -> Iterator[str]:
    """A link that is gone as soon as it was used, so that nobody can look where it led."""
    with symlink(path) as name:
        try:
            yield name
        finally:
            os.unlink(name)


@contextlib.contextmanager
def chain_of_symlinks(path: str) -> Iterator[str]:
    with symlink(os.path.dirname(path)) as folder:
        hop = f"{folder}-hop"
        os.symlink(f"{folder}/{os.path.basename(path)}", hop)
        yield hop


@contextlib.contextmanager
def hard_link(path: str) -> Iterator[str]:
    name = scratch_name()
    os.link(path, name)
    try:
        yield name
    finally:
        os.unlink(name)


@contextlib.contextmanager
def held_folder(path: str) -> Iterator[str]:
    """The file below a file descriptor of its folder that was opened for nothing but its place."""
    fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/{os.getpid()}/fd/{fd}/{os.path.basename(path)}"
    finally:
        os.close(fd)


@contextlib.contextmanager
def renamed_parent(path: str) -> Iterator[str]:
    folder = os.path.dirname(path)
    moved = f"{folder}-moved"
    os.rename(folder, moved)
    try:
        yield f"{moved}/{os.path.basename(path)}"
    finally:
        os.rename(moved, folder)


@contextlib.contextmanager
def bind_mount(path: str) -> Iterator[str]:
    """The folder mounted elsewhere, in a mount namespace of the act's own."""
    name = scratch_name()
    os.mkdir(name)
    try:
        if libc.unshare(CLONE_NEWNS) < 0:
            checked(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
        checked(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount /")
        checked(libc.mount(os.path.dirname(path).encode(), name.encode(), None, MS_BIND | MS_REC, None), "mount")
        yield f"{name}/{os.path.basename(path)}"
        checked(libc.umount2(name.encode(), 2), "umount")
    finally:
        os.rmdir(name)


def same(path: str) -> contextlib.AbstractContextManager[str]:
    return contextlib.nullcontext(path)


def dotted(path: str) -> contextlib.AbstractContextManager[str]:
    folder, name = os.path.split(path)
    return contextlib.nullcontext(f"{folder}/../{os.path.basename(folder)}//./{name}")


def through_own_root(path: str) -> contextlib.AbstractContextManager[str]:
    return contextlib.nullcontext(f"/proc/self/root{path}")


ALIASES: dict[str, Callable[[str], contextlib.AbstractContextManager[str]]] = {
    "direct": same,
    "symlink": symlink,
    "symlinks": chain_of_symlinks,
    "vanished-symlink": vanished_symlink,
    "hard-link": hard_link,
    "dots": dotted,
    "proc-root": through_own_root,
    "proc-fd": held_folder,
    "renamed-parent": renamed_parent,
    "bind-mount": bind_mount,
}


@act
def read(reader: str, alias: str, path: str) -> str:
    """Read the file by a reader, under an alias."""
    with ALIASES[alias](path) as name:
        return READERS[reader](name)


@act
def read_from_thread(path: str) -> str:
    """Read on a second thread, through a program that this thread starts."""
    found: list[str | Exception] = []

    def work() -> None:
        try:
            found.append(by_python(path) + output_of("cat", path))
        except Exception as refused:
            found.append(refused)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


@act
def read_as_daemon(path: str) -> str:
    """Read from a process that left its session and whose parent is gone, so that it was given a new one."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while os.getppid() == os.getsid(0):
                time.sleep(0.001)
            try:
                text = by_python(path)
            except OSError as refused:
                text = f"!{refused.errno}"
            os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    if text.startswith("!"):
        raise OSError(int(text[1:]), "refused to the daemon", path)
    return text


@act
def read_swapped_symlink(path: str, harmless: str) -> str:
    """Read through a link that another process points back and forth between a harmless file and the secret."""
    name = scratch_name()
    flipper = os.fork()
    if flipper == 0:
        while True:
            for target in (harmless, path):
                os.symlink(target, f"{name}.new")
                os.rename(f"{name}.new", name)
    try:
        seen: set[str] = set()
        refusals = 0
        deadline = time.monotonic() + LINK_SECONDS
        while len(seen) < 2 and refusals < FLIPS and time.monotonic() < deadline:
            try:
                seen.add(by_python(name))
            except FileNotFoundError:
                time.sleep(0.001)
            except OSError:
                refusals += 1
        if refusals:
            raise OSError(13, f"refused {refusals} times, read {seen}", path)
        return "".join(seen)
    finally:
        os.kill(flipper, 9)
        os.waitpid(flipper, 0)
        for leftover in (name, f"{name}.new"):
            with contextlib.suppress(OSError):
                os.unlink(leftover)


@act
def execute(path: str) -> str:
    """Run a program file."""
    return output_of(path)


# Changes: each does one thing to `folder`, which holds `file` and the empty folder `sub`; `side` is free to use.


def rename_exchange(one: str, other: str) -> None:
    checked(libc.syscall(SYS_RENAMEAT2, AT_FDCWD, one.encode(), AT_FDCWD, other.encode(), RENAME_EXCHANGE), one)


def new_file(path: str, text: str = "planted") -> None:
    with open(path, "w") as file:
        file.write(text)


def with_open(path: str, flags: int, work: Callable[[int], object]) -> None:
    fd = os.open(path, flags)
    try:
        work(fd)
    finally:
        os.close(fd)


def map_and_write(path: str) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[0:1] = b"#"


def rename_over(folder: str, side: str) -> None:
    new_file(f"{side}/new")
    os.rename(f"{side}/new", f"{folder}/file")


def link_into(folder: str, side: str) -> None:
    new_file(f"{side}/linked")
    os.link(f"{side}/linked", f"{folder}/linked")


def exchange(folder: str, side: str) -> None:
    new_file(f"{side}/other")
    rename_exchange(f"{side}/other", f"{folder}/file")


def append(folder: str, side: str) -> None:
    with open(f"{folder}/file", "a") as file:
        file.write("more")


CHANGES: dict[str, Callable[[str, str], object]] = {
    "create": lambda folder, side: new_file(f"{folder}/new"),
    "overwrite": lambda folder, side: new_file(f"{folder}/file"),
    "append": append,
    "truncate": lambda folder, side: os.truncate(f"{folder}/file", 0),
    "ftruncate": lambda folder, side: with_open(f"{folder}/file", os.O_RDWR, lambda fd: os.ftruncate(fd, 1)),
    "fallocate": lambda folder, side: with_open(
        f"{folder}/file", os.O_WRONLY, lambda fd: os.posix_fallocate(fd, 0, 99)
    ),
    "mmap-shared": lambda folder, side: map_and_write(f"{folder}/file"),
    "rename-over": rename_over,
    "rename-away": lambda folder, side: os.rename(f"{folder}/file", f"{side}/taken"),
    "rename-exchange": exchange,
    "rename-folder": lambda folder, side: os.rename(folder, f"{folder}-renamed"),
    "unlink": lambda folder, side: os.unlink(f"{folder}/file"),
    "rmdir": lambda folder, side: os.rmdir(f"{folder}/sub"),
    "remove-tree": lambda folder, side: shutil.rmtree(folder),
    "mkdir": lambda folder, side: os.mkdir(f"{folder}/made"),
    "link-into": link_into,
    "symlink": lambda folder, side: os.symlink("/nowhere", f"{folder}/pointer"),
    "mknod": lambda folder, side: os.mknod(f"{folder}/pipe", stat.S_IFIFO | 0o600),
    "chmod": lambda folder, side: os.chmod(f"{folder}/file", 0o777),
    "chmod-folder": lambda folder, side: os.chmod(folder, 0o777),
    "chown": lambda folder, side: os.chown(f"{folder}/file", os.getuid(), os.getgid()),
    "setxattr": lambda folder, side: os.setxattr(f"{folder}/file", "user.mark", b"1"),
    "utimes": lambda folder, side: os.utime(f"{folder}/file", (1, 1)),
}


@act
def change(how: str, folder: str, side: str) -> None:
    """Change something in `folder`."""
    CHANGES[how](folder, side)


@act
def move_and_back(path: str) -> None:
    """Give a folder another name, and the old one again."""
    os.rename(path, f"{path}-moved")
    os.rename(f"{path}-moved", path)


@act
def create(path: str) -> None:
    """Make a file that did not exist, with the folders that lead to it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    new_file(path)
