"""The record of what a tree does: processes, opened files by the kernel's own path, changes, and everything refused."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bpf_tree import Tree, engine_on_calls, errno_of, in_child

from mcpguard.backends import call_ends, tracing
from mcpguard.backends.engine import ANY_CALL, ANY_SEND, EVENT, Engine
from mcpguard.kernel import perf_events, syscalls
from mcpguard.kernel.cgroup import Leaf
from mcpguard.model.access import Access
from mcpguard.model.profile import SystemSwitches
from mcpguard.session.seccomp import build_filter
from mcpguard.wire.records import (
    CallRecord,
    ExecRecord,
    ExitRecord,
    ForkRecord,
    OpenRecord,
    PathCallRecord,
)

pytestmark = pytest.mark.kernel

NOBODY = 65534
CLONE_NEWNS = 0x20000
CLONE_FS = 0x200
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def tree(leaf: Leaf) -> Iterator[Tree]:
    planted = Tree.plant(leaf, engine_on_calls()).trace()
    yield planted
    planted.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that an ordinary user can reach, with the names resolved."""
    for part in (tmp_path, *tmp_path.parents):
        if part.stat().st_mode & 0o5 != 0o5:
            part.chmod(part.stat().st_mode | 0o5)
    return tmp_path.resolve()


def as_nobody(act: Callable[[], object]) -> int:
    """The errno of an act without any privilege."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return errno_of(act)


def checked(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def opens(tree: Tree, path: str) -> list[OpenRecord]:
    return [r for r in tree.activity() if isinstance(r, OpenRecord) and r.path == path]


def refused(tree: Tree) -> list[PathCallRecord]:
    return [r for r in tree.denials() if isinstance(r, PathCallRecord)]


def changes(tree: Tree) -> list[PathCallRecord]:
    return [r for r in tree.activity() if isinstance(r, PathCallRecord)]


# --- processes


def test_a_program_is_on_record_from_fork_to_exit(tree: Tree) -> None:
    def act() -> list[int]:
        child = subprocess.Popen(["/bin/sh", "-c", "exit 7", "two words"], close_fds=False)
        child.wait()
        return [os.getpid(), child.pid]

    parent, child = tree.run(act)
    records = tree.activity()
    assert [r.head.pid for r in records if isinstance(r, ForkRecord) and r.child == child] == [parent]
    (executed,) = [r for r in records if isinstance(r, ExecRecord) and r.head.pid == child]
    assert executed.exe == os.path.realpath("/bin/sh")
    assert executed.argv == ("/bin/sh", "-c", "exit 7", "two words")
    assert executed.head.ppid == parent
    assert [r.code for r in records if isinstance(r, ExitRecord) and r.head.pid == child] == [7 << 8]


def test_a_signal_shows_as_the_end(tree: Tree) -> None:
    def act() -> int:
        child = subprocess.Popen(["/bin/sleep", "60"])
        child.kill()
        child.wait()
        return child.pid

    child = tree.run(act)
    assert [r.code for r in tree.activity() if isinstance(r, ExitRecord) and r.head.pid == child] == [signal.SIGKILL]


def test_threads_are_no_processes(tree: Tree) -> None:
    def act() -> int:
        threads = [threading.Thread(target=os.getpid) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return os.getpid()

    pid = tree.run(act)
    mine = [r for r in tree.activity() if r.head.pid == pid]
    assert not any(isinstance(r, ForkRecord) for r in mine)
    assert sum(isinstance(r, ExitRecord) for r in mine) == 1


def test_long_arguments_are_cut_and_say_so(tree: Tree) -> None:
    tree.run(lambda: subprocess.run(["/bin/true", "x" * 5000], check=True).returncode)
    (record,) = [r for r in tree.activity() if isinstance(r, ExecRecord) and r.exe.endswith("/true")]
    assert record.argv_cut
    assert record.argv[0] == "/bin/true"
    assert 1000 < len(record.argv[1]) < 5000


def test_tasks_outside_the_tree_are_not_on_record(tree: Tree, folder: Path) -> None:
    def act() -> int:
        (folder / "f").write_text("x")
        (folder / "f").rename(folder / "g")
        subprocess.run(["/bin/true"], check=True)
        return as_nobody(lambda: os.open("/etc/shadow", os.O_RDONLY))

    assert in_child(act) == errno.EACCES
    assert tree.activity() == []
    assert tree.denials() == []


# --- opens


@pytest.mark.parametrize("way", ["plain", "symlink", "dots", "proc", "relative", "descriptor"])
def test_an_opened_file_has_the_kernels_path(way: str, tree: Tree, folder: Path) -> None:
    target = folder / "real" / "file"
    target.parent.mkdir()
    target.write_text("x")
    (folder / "link").symlink_to("real")
    name = {
        "plain": target,
        "symlink": folder / "link" / "file",
        "dots": f"{folder}/real/../real/./file",
        "proc": f"/proc/self/root{target}",
        "relative": "file",
        "descriptor": "file",
    }[way]

    def act() -> None:
        if way == "relative":
            os.chdir(target.parent)
        directory = os.open(target.parent, os.O_PATH) if way == "descriptor" else None
        os.open(name, os.O_RDONLY, dir_fd=directory)

    tree.run(act)
    (record,) = opens(tree, str(target))
    assert (record.access, record.kind, record.created, record.count) == (Access.READ, "file", False, 1)


def test_calls_that_wait_for_ever_hide_no_others(tree: Tree, folder: Path) -> None:
    """Some ways to see the end of a call keep something for each that has begun, and run out of it."""
    waiting = 200
    os.mkfifo(folder / "never")

    def act() -> None:
        for _ in range(waiting):
            threading.Thread(target=os.open, args=(folder / "never", os.O_RDONLY), daemon=True).start()
        for number in range(100):
            (folder / f"file-{number}").write_text("x")

    tree.run(act)
    made = {r.path for r in tree.activity() if isinstance(r, OpenRecord) and r.path.startswith(str(folder))}
    assert made == {str(folder / f"file-{number}") for number in range(100)}


def test_a_program_that_takes_the_place_of_threads_in_calls_is_on_record(tree: Tree, folder: Path) -> None:
    """Threads that are in the middle of a call when another one executes a program never come back from it."""
    os.mkfifo(folder / "never")

    def act() -> int:
        pid = os.fork()
        if pid == 0:
            for _ in range(20):
                threading.Thread(target=os.open, args=(folder / "never", os.O_RDONLY), daemon=True).start()
            os.execv("/bin/sh", ["sh", "-c", f"exec 3>{folder}/after"])
        return os.waitpid(pid, 0)[1]

    assert tree.run(act) == 0
    assert [r.created for r in opens(tree, str(folder / "after"))] == [True]


def test_what_stands_above_the_number_of_a_call_hides_nothing(tree: Tree, folder: Path) -> None:
    """The kernel reads half of the register that has the number."""
    (folder / "f").touch(0o600)
    path, above = os.fsencode(folder / "f"), ctypes.c_long(7 << 32 | 257)  # openat

    def act() -> int:
        descriptor: int = _libc.syscall(above, -100, path, os.O_RDONLY)
        with contextlib.suppress(OSError):
            as_nobody(lambda: checked("syscall", above, -100, path, os.O_RDWR))
        return descriptor

    assert tree.run(act) >= 0
    assert len(opens(tree, str(folder / "f"))) == 1
    assert [r.path for r in refused(tree)] == [str(folder / "f")]


def test_a_bind_mount_shows_where_the_file_is_seen(tree: Tree, folder: Path) -> None:
    source, place = folder / "source", folder / "place"
    source.mkdir()
    place.mkdir()
    (source / "file").write_text("x")

    def act() -> None:
        checked("unshare", CLONE_NEWNS)
        checked("mount", None, b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
        checked("mount", str(source).encode(), str(place).encode(), None, 0x1000, None)  # MS_BIND
        os.open(place / "file", os.O_RDONLY)

    tree.run(act)
    assert len(opens(tree, str(place / "file"))) == 1


@pytest.mark.parametrize(
    ("flags", "access", "created"),
    [
        (os.O_RDONLY, Access.READ, False),
        (os.O_WRONLY, Access.WRITE, False),
        (os.O_RDWR, Access.READ | Access.WRITE, False),
        (os.O_WRONLY | os.O_CREAT | os.O_EXCL, Access.WRITE, True),
    ],
)
def test_access_and_creation_are_told_apart(
    flags: int, access: Access, created: bool, tree: Tree, folder: Path
) -> None:
    path = folder / "f"
    if not created:
        path.touch()
    tree.run(lambda: os.open(path, flags) and None)
    (record,) = opens(tree, str(path))
    assert (record.access, record.created) == (access, created)


def test_kinds_of_files_are_told_apart(tree: Tree, folder: Path) -> None:
    def act() -> None:
        os.open(folder, os.O_RDONLY)
        os.open("/dev/null", os.O_WRONLY)
        memory = os.memfd_create("secret")
        os.open(f"/proc/self/fd/{memory}", os.O_RDWR)
        reader, _ = os.pipe()
        os.open(f"/proc/self/fd/{reader}", os.O_RDONLY)

    tree.run(act)
    kinds = {r.path: r.kind for r in tree.activity() if isinstance(r, OpenRecord)}
    assert kinds[str(folder)] == "directory"
    assert kinds["/dev/null"] == "device"
    assert [kind for path, kind in kinds.items() if "memfd:secret" in path] == ["memfd"]
    assert "other" in kinds.values()


def test_paths_at_the_limit_are_whole(tree: Tree, folder: Path) -> None:
    depth = (4000 - len(str(folder))) // 101

    def act() -> str:
        os.chdir(folder)
        for _ in range(depth):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
        os.open("file", os.O_RDONLY | os.O_CREAT)
        return os.getcwd()

    where = tree.run(act)
    assert len(where) > 3800
    (record,) = opens(tree, f"{where}/file")
    assert not record.cut


def test_counts_of_opens_add_up(tree: Tree, folder: Path) -> None:
    path = folder / "f"
    path.touch()

    def act() -> None:
        for _ in range(777):
            os.close(os.open(path, os.O_RDONLY))

    tree.run(act)
    records = opens(tree, str(path))
    assert len(records) == 10, "the first, and one at each power of two"
    assert sum(r.count for r in records) == 512
    rest = dict(tree.session.final_counts())
    assert rest[records[0].series] == 777 - 512


def test_another_program_in_the_same_process_starts_anew(tree: Tree, folder: Path) -> None:
    (folder / "f").touch()
    script = "import os, sys; [os.open(sys.argv[1], 0) for _ in range(3)]"
    again = f"{script}; os.execv(sys.executable, [sys.executable, '-c', {script!r}, sys.argv[1]])"
    tree.run(lambda: subprocess.run([sys.executable, "-c", again, str(folder / "f")], check=True).returncode)
    records = opens(tree, str(folder / "f"))
    assert [r.count for r in records] == [1, 1, 1, 1]
    assert len({r.series for r in records}) == 2


def test_a_flood_of_opens_loses_no_denial_and_is_accounted_for(tree: Tree, folder: Path) -> None:
    """Activity may overflow, and then says by how much; denials have their own ring."""
    files, rounds = 2000, 100
    for number in range(files):
        (folder / str(number)).touch()

    def act() -> None:
        for _ in range(4):
            if os.fork() == 0:
                for _ in range(rounds // 4):
                    for number in range(files):
                        os.close(os.open(folder / str(number), os.O_RDONLY))
                as_nobody(lambda: os.open("/etc/shadow", os.O_RDONLY))
                os._exit(0)
        for _ in range(4):
            os.wait()

    tree.run(act)
    seen = [r for r in tree.activity() if isinstance(r, OpenRecord) and r.path.startswith(str(folder))]
    series = {r.series for r in seen}
    rest = sum(count for one, count in tree.session.final_counts() if one in series)
    lost = sum(r.head.lost_before for r in tree.activity())
    total = sum(r.count for r in seen) + rest
    assert total <= files * rounds
    assert total == files * rounds or lost > 0
    assert {r.head.lost_before for r in tree.denials()} == {0}
    assert sum(r.path == "/etc/shadow" for r in refused(tree)) == 4


# --- changes


def test_changes_are_on_record_with_base_and_name(tree: Tree, folder: Path) -> None:
    def act() -> None:
        os.chdir(folder)
        os.mkdir("d")
        Path("a").touch()
        os.rename("a", f"{folder}/d/b")
        os.link("d/b", "c")
        os.symlink("c", "s")
        os.truncate("c", 3)
        os.chmod("c", 0o600)
        os.chown("c", 0, 0)
        os.setxattr("c", "user.x", b"1")
        os.utime("c", (1, 1))
        os.unlink("c")
        os.unlink("s")
        os.rename(f"{folder}/d/b", "b")
        os.rmdir("d")

    try:
        tree.run(act)
    except AssertionError as error:
        assert "Operation not supported" in str(error), error  # a file system without user attributes
        pytest.skip("no user extended attributes here")
    base = str(folder)
    seen = [(r.op, r.base, r.path, r.base2, r.path2, r.result) for r in changes(tree)]
    assert ("mkdir", base, "d", None, None, 0) in seen
    assert ("rename", base, "a", "", f"{folder}/d/b", 0) in seen
    assert ("link", base, "d/b", base, "c", 0) in seen
    assert ("symlink", base, "s", base, "c", 0) in seen
    for op in ("truncate", "chmod", "chown", "xattr", "utimes", "unlink"):
        assert (op, base, "c", None, None, 0) in seen, op
    assert ("rename", "", f"{folder}/d/b", base, "b", 0) in seen
    assert ("rmdir", base, "d", None, None, 0) in seen


def test_changes_by_descriptor_name_the_file(tree: Tree, folder: Path) -> None:
    path = folder / "f"

    def act() -> None:
        with open(path, "w") as file:
            os.ftruncate(file.fileno(), 5)
            os.fchmod(file.fileno(), 0o640)
            os.utime(file.fileno(), (1, 1))

    tree.run(act)
    seen = {(r.op, r.base, r.path) for r in changes(tree)}
    assert {("truncate", str(path), ""), ("chmod", str(path), ""), ("utimes", str(path), "")} <= seen


# --- refusals


def test_a_refused_open_tells_where_a_relative_path_starts(tree: Tree, folder: Path) -> None:
    (folder / "secret").touch(0o600)

    def act() -> int:
        os.chdir(folder)
        return as_nobody(lambda: os.open("secret", os.O_WRONLY | os.O_NOFOLLOW))

    assert tree.run(act) == errno.EACCES
    (record,) = refused(tree)
    assert (record.op, record.result, record.access) == ("open", errno.EACCES, Access.WRITE)
    assert (record.base, record.path, record.base2, record.follow) == (str(folder), "secret", None, False)
    assert record.head.comm


def test_a_refused_open_by_descriptor_tells_its_directory(tree: Tree, folder: Path) -> None:
    (folder / "secret").touch(0o600)

    def act() -> int:
        directory = os.open(folder, os.O_PATH)
        os.chdir("/")
        return as_nobody(lambda: os.open("secret", os.O_RDONLY, dir_fd=directory))

    assert tree.run(act) == errno.EACCES
    (record,) = refused(tree)
    assert (record.base, record.path) == (str(folder), "secret")


PATH_ACTS: dict[str, Callable[[str], object]] = {
    "open": lambda d: os.open(f"{d}/f", os.O_RDWR),
    "create": lambda d: os.open(f"{d}/n", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "truncate": lambda d: os.truncate(f"{d}/f", 0),
    "unlink": lambda d: os.unlink(f"{d}/f"),
    "rmdir": lambda d: os.rmdir(f"{d}/d"),
    "mkdir": lambda d: os.mkdir(f"{d}/n"),
    "mknod": lambda d: os.mknod(f"{d}/n"),
    "symlink": lambda d: os.symlink("x", f"{d}/n"),
    "link": lambda d: os.link(f"{d}/f", f"{d}/n"),
    "rename": lambda d: os.rename(f"{d}/f", f"{d}/n"),
    "chmod": lambda d: os.chmod(f"{d}/f", 0),
    "chown": lambda d: os.chown(f"{d}/f", 1, 1),
    "xattr": lambda d: os.setxattr(f"{d}/f", "user.x", b"1"),
    "utimes": lambda d: os.utime(f"{d}/f", (1, 1)),
    "exec": lambda d: os.execv(f"{d}/f", ["f"]),
    "exchange": lambda d: checked("renameat2", -100, f"{d}/f".encode(), -100, f"{d}/d".encode(), 2),
}


@pytest.mark.parametrize("op", PATH_ACTS)
def test_every_refused_path_call_is_on_record(op: str, tree: Tree, folder: Path) -> None:
    (folder / "f").touch(0o644)
    (folder / "d").mkdir()
    number = tree.run(lambda: as_nobody(lambda: PATH_ACTS[op](str(folder))))
    assert number in (errno.EACCES, errno.EPERM)
    (record,) = refused(tree)
    assert (record.op, record.result) == (op, number)
    assert record.path.startswith(str(folder))
    assert (record.path2 is not None) == (op in ("link", "rename", "exchange", "symlink"))
    assert record.access == (Access.EXECUTE if op == "exec" else record.access)
    assert op == "exec" or Access.WRITE in record.access


@pytest.mark.parametrize("op", ["stat", "lstat", "readlink", "chdir"])
def test_a_refused_look_is_on_record(op: str, tree: Tree, folder: Path) -> None:
    (folder / "closed").mkdir(0o700)
    look: Callable[[Path], object] = getattr(os, op)
    assert tree.run(lambda: as_nobody(lambda: look(folder / "closed" / "x"))) == errno.EACCES
    (record,) = refused(tree)
    assert (record.op, record.access) == (op.removeprefix("l"), Access.READ)
    assert record.path == str(folder / "closed" / "x")


def test_a_refused_change_by_descriptor_names_the_file(tree: Tree, folder: Path) -> None:
    (folder / "f").touch(0o644)

    def act() -> int:
        fd = os.open(folder / "f", os.O_RDONLY)
        return as_nobody(lambda: os.fchmod(fd, 0o777))

    assert tree.run(act) == errno.EPERM
    (record,) = refused(tree)
    assert (record.op, record.base, record.path) == ("chmod", str(folder / "f"), "")


def test_moving_across_file_systems_counts_as_refused(tree: Tree, folder: Path) -> None:
    """In a mount plan of bind mounts this is what a rename out of a protected place gets."""
    (folder / "f").touch()
    assert tree.run(lambda: errno_of(lambda: os.rename(folder / "f", "/proc/f"))) in (errno.EXDEV, errno.ENOENT)
    assert tree.run(lambda: errno_of(lambda: os.rename(folder / "f", "/dev/shm/mcpguard-f"))) == errno.EXDEV
    assert refused(tree)[-1].path2 == "/dev/shm/mcpguard-f"


def test_a_read_only_file_system_counts_as_refused(tree: Tree, folder: Path) -> None:
    def act() -> int:
        checked("unshare", CLONE_NEWNS)
        checked("mount", None, b"/", None, 0x44000, None)
        checked("mount", b"none", str(folder).encode(), b"tmpfs", 1, None)
        return errno_of(lambda: os.mkdir(folder / "x"))

    assert tree.run(act) == errno.EROFS
    assert [(r.op, r.result) for r in refused(tree)] == [("mkdir", errno.EROFS)]


def _vector() -> ctypes.Array[ctypes.c_uint64]:
    """One struct iovec of eight bytes."""
    return (ctypes.c_uint64 * 2)(ctypes.addressof(_room), 8)


def _performance_events() -> ctypes.Array[ctypes.c_char]:
    """A perf_event_attr that wants to know of namespaces, which no setting of a host gives to everybody."""
    return ctypes.create_string_buffer(bytes(40) + (1 << 28).to_bytes(8, "little") + bytes(80))


_room = ctypes.create_string_buffer(8)
CALLS: dict[str, tuple[Callable[[], object], int | None]] = {
    "signal": (lambda: os.kill(1, 0), 1),
    "unshare": (lambda: checked("unshare", CLONE_NEWNS), CLONE_NEWNS),
    "ptrace": (lambda: checked("ptrace", 16, 1, 0, 0), 1),
    "socket": (lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW), socket.AF_PACKET),
    "mount": (lambda: checked("mount", b"none", b"/tmp", b"tmpfs", 0, None), 0),
    "chroot": (lambda: os.chroot("/"), None),
    "process-memory": (lambda: checked("process_vm_readv", 1, *2 * (ctypes.byref(_vector()), 1), 0), 1),
    "perf": (lambda: checked("syscall", 298, _performance_events(), -1, 0, -1, 0), None),
    "bpf": (lambda: checked("syscall", 321, 5, ctypes.create_string_buffer(128), 128), 5),
}


@pytest.mark.parametrize("op", CALLS)
def test_refused_calls_without_a_path_are_on_record(op: str, tree: Tree) -> None:
    act, argument = CALLS[op]
    number = tree.run(lambda: as_nobody(act))
    assert number in (errno.EPERM, errno.EACCES)
    (record,) = [r for r in tree.denials() if isinstance(r, CallRecord)]
    assert (record.op, record.result) == (op, number)
    assert argument is None or record.argument == argument


# They end, multiply or stop whoever makes them, whatever they are given, or take long.
NOT_TRIED = ("exit", "exit_group", "fork", "vfork", "pause", "rt_sigreturn", "sync", "uretprobe", "uprobe")
# All calls that any kernel has are below.
NUMBERS = 480


def every_call_behind_the_filter() -> None:
    """Make each call there is with arguments that none takes, and some that the filter looks at."""
    import pyseccomp

    filter_ = build_filter(SystemSwitches())
    rules = ctypes.create_string_buffer(filter_, len(filter_))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(filter_) // 8, ctypes.addressof(rules)))
    not_tried = {pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) for name in NOT_TRIED} | {335, 336}
    signal.signal(signal.SIGSYS, signal.SIG_IGN)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    checked("prctl", 38, 1, 0, 0, 0)
    checked("prctl", 22, 2, program, 0, 0)
    for number in range(NUMBERS):
        if number not in not_tried:
            _libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
    for act in (
        *(act for act, _ in CALLS.values()),
        lambda: checked("ioctl", 0, ctypes.c_long(0x5412), b"x"),
        lambda: checked("ioctl", 0, ctypes.c_long(0x541C), b"x"),
        lambda: checked("ioctl", 0, ctypes.c_long(0x50009417), b"x"),
        lambda: checked("ioctl", 0, ctypes.c_long(1 << 32 | 0x5412), b"x"),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW),
        lambda: socket.socketpair(socket.AF_INET),
        lambda: checked("unshare", 0x10000000),
        lambda: os.open("/etc/shadow", os.O_RDONLY),
        lambda: os.rename("/etc/passwd", "/etc/passwd.old"),
        lambda: os.kill(1, 9),
        lambda: os.setuid(0),
        lambda: os.setgroups([0]),
    ):
        with contextlib.suppress(OSError):
            act()


def told_behind_the_filter(one: Tree) -> list[tuple[object, ...]]:
    one.run(every_call_behind_the_filter)
    return sorted(
        (str(r.op), r.result, getattr(r, "number", -1), getattr(r, "argument", -1), getattr(r, "path", ""))
        for r in one.denials()
        if isinstance(r, CallRecord | PathCallRecord)
    )


def test_what_a_filter_refuses_is_told_like_by_the_tracepoint(tree: Tree, other_leaf: Leaf) -> None:
    """Where programs on the calls make the record: a call that a filter refuses reaches none of them."""
    plain = Tree.plant(other_leaf, Engine.open()).trace()
    try:
        assert plain.engine.has(ANY_CALL)
        told = [told_behind_the_filter(one) for one in (plain, tree)]
    finally:
        plain.close()
    assert told[0] == told[1]
    ops = {str(one[0]) for one in told[0]}
    assert {"mount", "module", "bpf", "io-uring", "ioctl", "keyctl", "unshare", "clone", "socket"} <= ops
    assert {"ptrace", "perf", "setns", "chroot", "signal", "identity", "host", "open", "rename"} <= ops


def test_by_the_event_the_same_is_told_as_by_the_tracepoint(
    leaf: Leaf, other_leaf: Leaf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels that would skip programs on the tracepoint have it made so; all can."""
    monkeypatch.setattr(call_ends, "why_not", lambda: "not here")
    raw = Tree.plant(leaf, Engine.open(kind="-raw")).trace()
    monkeypatch.setattr(call_ends, "why_not", str)
    event = Tree.plant(other_leaf, Engine.open(kind="-event")).trace()
    try:
        ways = [[one.engine.tracepoint(name) for name in (ANY_CALL, ANY_SEND)] for one in (raw, event)]
        assert ways == [["sys_exit"] * 2, [EVENT] * 2], event.engine.absent
        assert {ANY_CALL, ANY_SEND} <= event.engine.linked()
        assert event.engine.absent.keys() == raw.engine.absent.keys()
        assert (raw.engine.second_best, event.engine.second_best) == ({}, {})  # nothing lacks where it is of no use
        told = [told_behind_the_filter(one) for one in (raw, event)]
        sent = [len(one.rings["mg_messages"].drain()) for one in (raw, event)]
        event.leaf.kill()
    finally:
        raw.close()
        event.close()
    assert told[0] == told[1] != []
    assert sent[0] == sent[1] > 0  # what a child says to this test


def counted_by_others(calls: int) -> int:
    """What somebody else's event of this thread counts of that many calls."""
    number = perf_events._number(EVENT)
    attributes = struct.pack("@IIQQQQQ", 2, 64, number, 0, 0, 0, 0).ljust(64, b"\0")
    fd = syscalls.syscall(298, ctypes.create_string_buffer(attributes), 0, -1, -1, 0)
    try:
        for _ in range(calls):
            os.getppid()
        return int(struct.unpack("=Q", os.read(fd, 8))[0])
    finally:
        os.close(fd)


def test_others_get_the_event_too(leaf: Leaf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program's answer decides whether the kernel counts an event for whoever asked for it."""
    assert counted_by_others(100) >= 100
    monkeypatch.setattr(call_ends, "why_not", str)
    event = Tree.plant(leaf, Engine.open(kind="-others")).trace()
    try:
        assert {ANY_CALL, ANY_SEND} <= event.engine.linked()
        assert event.engine.tracepoint(ANY_CALL) == event.engine.tracepoint(ANY_SEND) == EVENT
        assert counted_by_others(100) >= 100
    finally:
        event.close()


def no_event(_name: str) -> int:
    raise OSError(errno.ENOENT, "no tracefs")


def another_event(_name: str) -> int:
    return real_event("sched/sched_process_fork")


real_event = perf_events.tracepoint


@pytest.mark.parametrize(
    ("spoiled", "why"),
    [(no_event, "No such file"), (another_event, "was not asked")],
    ids=["there is none", "it never asks"],
)
def test_where_the_event_does_not_hold_the_tracepoint_stands_in_and_says_why(
    spoiled: Callable[[str], int], why: str, leaf: Leaf, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_ends, "why_not", str)
    monkeypatch.setattr(perf_events, "tracepoint", spoiled)
    tree = Tree.plant(leaf, Engine.open(kind=f"-{spoiled.__name__}")).trace()
    (folder / "secret").touch(0o600)
    try:
        assert [tree.engine.tracepoint(name) for name in (ANY_CALL, ANY_SEND)] == ["sys_exit"] * 2
        assert tree.engine.second_best.keys() == {"trace", "messages"}
        assert why in tree.engine.second_best["trace"] and why in tracing.why_everybody_pays(tree.engine)
        assert tree.run(lambda: as_nobody(lambda: os.open(folder / "secret", os.O_RDONLY))) == errno.EACCES
        assert [r.path for r in refused(tree)] == [str(folder / "secret")]
    finally:
        tree.close()


# Numbers beyond those that this process has.
DESCRIPTORS = ("/proc/self/fd/777", "/proc/thread-self/fd/777", "/proc/{pid}/task/{pid}/fd/777", "/dev/fd/777")
# What names may be put together of, where they are short enough to be read.
PIECES = ("f", "x", "/", "fd/", "ffd/", "777", "778/", "fd/777", "99999999")


def test_what_a_refused_descriptor_stood_for_is_told_with_the_refusal(tree: Tree, folder: Path) -> None:
    """The process has ended when its records are read, and nobody can ask then."""
    secret, closed = folder / "secret", folder / "closed"
    secret.touch(0o600)
    closed.mkdir(0o700)
    below = f"/proc/self/fd/778/{closed.name}/x"

    def act() -> int:
        os.dup2(os.open(secret, os.O_RDONLY), 777)
        os.dup2(os.open(folder, os.O_PATH), 778)

        def tried() -> None:
            for name in (*DESCRIPTORS, below):
                with contextlib.suppress(PermissionError):
                    os.open(name.format(pid=os.getpid()), os.O_RDWR)
            with contextlib.suppress(PermissionError):
                checked("linkat", -100, b"/proc/self/fd/777", -100, os.fsencode(closed / "link"), 0x400)

        return as_nobody(tried)

    assert tree.run(act) == 0
    records = refused(tree)
    pid = records[0].head.pid
    assert [(r.op, r.path, r.base) for r in records] == [
        *(("open", name.format(pid=pid), str(secret)) for name in DESCRIPTORS),
        ("open", below, str(folder)),
        ("link", "/proc/self/fd/777", str(secret)),
    ]


def test_a_descriptor_is_told_as_the_first_one_that_the_name_has_or_not_at_all(tree: Tree) -> None:
    """Who reads the record looks for it in the name, too. Another's path there would be told as what was refused."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="") as made:
        short = Path(made)
        short.chmod(0o755)
        behind = {number: short / str(number) for number in (777, 778, 779)}
        (short / "c").mkdir(0o700)
        for path in behind.values():
            path.touch()
        names = [f"{short}/c/{''.join(pieces)}/fd/779" for pieces in itertools.product(PIECES, repeat=3)]

        def act() -> int:
            for number, path in behind.items():
                os.dup2(os.open(path, os.O_RDONLY), number)

            def tried() -> None:
                for name in names:
                    with contextlib.suppress(PermissionError):
                        os.open(name, os.O_RDWR)

            return as_nobody(tried)

        assert tree.run(act) == 0
    records = refused(tree)
    assert [r.path for r in records] == names
    told = 0
    for record in records:
        first = re.search(r"/fd/(\d{1,7})(?=/|$)", record.path)
        assert first and record.base in ("", str(behind.get(int(first[1]), ""))), record
        told += record.base != ""
    assert told > len(names) // 2


def test_what_a_threads_own_descriptor_stands_for_is_not_told_as_the_processs(tree: Tree, folder: Path) -> None:
    """/proc/self names what the process has under the number, and that is what was asked for."""
    secret, dull = folder / "secret", folder / "dull"
    secret.touch(0o600)
    dull.touch(0o600)

    def act() -> int:
        os.dup2(os.open(secret, os.O_RDONLY), 777)

        def apart() -> None:
            checked("unshare", 0x400)  # CLONE_FILES
            os.dup2(os.open(dull, os.O_RDONLY), 777)
            with contextlib.suppress(PermissionError):
                as_nobody(lambda: os.open("/proc/self/fd/777", os.O_RDWR))

        thread = threading.Thread(target=apart)
        thread.start()
        thread.join()
        return 0

    assert tree.run(act) == 0
    assert [(r.path, r.base) for r in refused(tree)] == [("/proc/self/fd/777", "")]


def test_where_the_process_stood_is_told_with_a_refusal_and_with_what_leads_through_proc(
    tree: Tree, folder: Path
) -> None:
    """A moment later it stands elsewhere, and that is all that anybody can see then."""
    closed, stood = folder / "closed", folder / "stood"
    closed.mkdir(0o700)
    stood.mkdir()
    own = "/proc/self/cwd/"

    def act() -> int:
        beside = os.open(folder, os.O_PATH)
        os.chdir(stood)

        def tried() -> None:
            for name, at in (
                (f"{own}../closed/x", None),
                (f"{closed}/x", None),
                ("../closed/x", None),
                ("closed/x", beside),
            ):
                with contextlib.suppress(PermissionError):
                    os.open(name, os.O_RDONLY, dir_fd=at)
            with contextlib.suppress(PermissionError):
                os.rename(f"{own}../closed/x", f"{own}x")

        os.mkdir(f"{own}made")
        os.mkdir(stood / "plain")
        code = as_nobody(tried)
        os.chdir("/")
        return code

    assert tree.run(act) == 0
    assert [(r.path, r.cwd) for r in changes(tree)] == [(f"{own}made", str(stood)), (f"{stood}/plain", "")]
    assert [(r.op, r.base, r.path, r.path2, r.cwd) for r in refused(tree)] == [
        ("open", "", f"{own}../closed/x", None, str(stood)),
        ("open", "", f"{closed}/x", None, str(stood)),
        ("open", str(stood), "../closed/x", None, str(stood)),
        ("open", str(folder), "closed/x", None, str(stood)),
        ("rename", "", f"{own}../closed/x", f"{own}x", str(stood)),
    ]


@pytest.mark.parametrize("way", ["self", "thread-self"])
def test_of_a_thread_that_stands_apart_the_process_counts_or_itself(way: str, tree: Tree, folder: Path) -> None:
    closed, stood = folder / "closed", folder / "stood"
    closed.mkdir(0o700)
    stood.mkdir()
    name = {"self": "/proc/self/cwd/../closed/x", "thread-self": f"/proc/thread-self/cwd{closed}/x"}[way]

    def act() -> int:
        os.chdir(stood)
        found: list[int] = []

        def apart() -> None:
            checked("unshare", CLONE_FS)
            os.chdir("/")
            found.append(errno_of(lambda: os.open(name, os.O_RDONLY)))

        def tried() -> None:
            thread = threading.Thread(target=apart)
            thread.start()
            thread.join()

        as_nobody(tried)
        return found[0]

    assert tree.run(act) == errno.EACCES
    (record,) = refused(tree)
    assert record.cwd == (str(stood) if way == "self" else "/")


def test_names_that_no_record_holds_are_a_refusal_that_is_told_as_lost(tree: Tree, folder: Path) -> None:
    """Two names as long as they get, each in a folder as deep as they get: that is more than a record holds."""
    long = f"{'./' * 2046}x"

    def act() -> int:
        os.chdir(folder)
        for _ in range(130):
            os.mkdir("d" * 31, 0o755)
            os.chdir("d" * 31)
        os.mknod("x")

        def tried() -> None:
            with contextlib.suppress(PermissionError):
                os.rename(long, f"{long[:-1]}y")
            with contextlib.suppress(PermissionError):
                os.open("short", os.O_WRONLY | os.O_CREAT, 0o600)

        return as_nobody(tried)

    assert tree.run(act) == 0
    told = [(r.op, r.head.lost_before) for r in refused(tree)]
    assert told == [("open", 1)]


def test_identical_refusals_are_counted_and_different_ones_kept(tree: Tree, folder: Path) -> None:
    (folder / "secret").touch(0o600)

    def act() -> int:
        def loop() -> None:
            for _ in range(1000):
                with contextlib.suppress(PermissionError):
                    os.open(folder / "secret", os.O_RDONLY)
            for number in range(500):
                with contextlib.suppress(PermissionError):
                    os.mkdir(folder / f"n{number}")

        return as_nobody(loop)

    assert tree.run(act) == 0
    same = [r for r in refused(tree) if r.op == "open"]
    assert len(same) == 10
    rest = dict(tree.session.final_counts())
    assert sum(r.count for r in same) + rest[same[0].series] == 1000
    assert len({r.path for r in refused(tree) if r.op == "mkdir"}) == 500


def test_honest_failures_are_no_refusals(tree: Tree, folder: Path) -> None:
    def act() -> None:
        for name in ("missing", "missing/deeper"):
            with contextlib.suppress(OSError):
                os.open(folder / name, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.mkdir(folder)
        with contextlib.suppress(OSError):
            os.kill(2**22 - 1, 0)

    tree.run(act)
    assert tree.denials() == []


def test_the_record_goes_on_when_we_are_gone(tree: Tree, folder: Path) -> None:
    (folder / "f").touch()
    assert tracing.detach_verify(tree.engine) == []
    tree.let_go()
    tree.run(lambda: os.open(folder / "f", os.O_RDONLY))
    assert any(isinstance(r, OpenRecord) and r.path == str(folder / "f") for r in tree.activity())
