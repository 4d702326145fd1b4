"""The subject's cgroup v2 leaf: made, entered, emptied, removed. Root-owned, outside any delegated subtree."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator

from mcpguard.kernel import syscalls
from mcpguard.model.values import dataclass

PARENT = "mcpguard"
_HANDLE_OF_KERNFS = 0xFE


# file_handle(2) of the cgroup file system: bytes of the payload, kind, and the payload, which is the id.
_HANDLE = struct.Struct("=IiQ")


def unified_mount() -> str | None:
    """Where the cgroup v2 tree is mounted (hybrid hosts have it beside v1); None when it is not."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields = line.split(" ")
            if fields[2] == "cgroup2":
                return fields[1].encode().decode("unicode_escape")
    return None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf of our own. `id` is what bpf_get_current_cgroup_id() returns inside it; `fd` is an open directory."""

    path: str
    fd: int
    id: int

    def enter(self, pid: int = 0) -> None:
        """Move a process in, by default the calling one; it and all it starts stay, by the kernel's own rule."""
        with open(f"{self.path}/cgroup.procs", "wb", buffering=0) as procs:
            procs.write(b"%d" % pid)

    def below(self, name: str) -> Leaf:
        """Make a leaf below; what counts here counts there, and it goes with this one."""
        path = f"{self.path}/{name}"
        os.mkdir(path, 0o755)
        return Leaf(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), cgroup_id(path))

    def populated(self) -> bool:
        return is_populated(self.fd)

    def pids(self) -> list[int]:
        """Of all processes inside and below."""
        return processes(self.path)

    def kill(self) -> None:
        """End every process inside at once (cgroup.kill, Linux 5.14); a leaf that is gone has none."""
        with contextlib.suppress(FileNotFoundError), open(f"{self.path}/cgroup.kill", "wb", buffering=0) as kill:
            kill.write(b"1")

    def freeze(self, still: bool) -> None:
        """Have every process inside stand still, or go on (Linux 5.2)."""
        with open(f"{self.path}/cgroup.freeze", "wb", buffering=0) as freeze:
            freeze.write(b"1" if still else b"0")

    def await_frozen(self, timeout_s: float) -> bool:
        """Wait until all stand still; one that waits for a device in the kernel may take longer. True when it is so."""
        deadline = time.monotonic() + timeout_s
        while b"frozen 1" not in _events(self.fd):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.0002)
        return True

    def await_empty(self, timeout_s: float = 2.0) -> bool:
        """Wait until no process lives here any more. True when it is so."""
        deadline = time.monotonic() + timeout_s
        while self.populated():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def remove(self, timeout_s: float = 2.0) -> bool:
        """Remove the leaf, waiting for the kernel to let go of the last process. True when it is gone."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                _remove(self.path)
                return True
            except FileNotFoundError:
                return True
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    return False
            time.sleep(0.005)


def expect_a_move(mount: str) -> None:
    """Have the kernel wait now for what it waits for when a process enters a cgroup (6 to 20 ms): the next few milliseconds it
    need not again. Moves nothing, as this process goes to where it is; where that is refused, the next one waits.
    """
    place = place_of(os.getpid())
    if not place:  # without one the name would be that of the root
        return
    with contextlib.suppress(OSError), open(f"{mount}{place}/cgroup.procs", "wb", buffering=0) as procs:
        procs.write(b"0")


def make_leaf(mount: str, name: str) -> Leaf:
    """Make `<mount>/mcpguard/<name>`; fails when it exists.

    The leaf is locked (flock) for as long as its descriptor is open: an empty leaf without a lock is nobody's.
    """
    parent = f"{mount}/{PARENT}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(parent, 0o755)
    path = f"{parent}/{name}"
    with _locked(parent):
        os.mkdir(path, 0o755)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return Leaf(path, fd, cgroup_id(path))


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def cgroup_id(path: str) -> int:
    """The 64-bit id the kernel knows the cgroup by: the payload of its file handle (name_to_handle_at(2))."""
    import ctypes

    handle, mount_id = ctypes.create_string_buffer(_HANDLE.pack(8, 0, 0), _HANDLE.size), ctypes.c_int()
    if syscalls.libc.name_to_handle_at(-100, os.fsencode(path), handle, ctypes.byref(mount_id), 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(_HANDLE.unpack(handle.raw)[2])


def exists(fd: int, number: int) -> bool:
    """Whether a cgroup with this id is there; `fd` is any open directory of the cgroup v2 tree. In doubt it is.

    Asked by the id itself, so that neither a namespace nor another mount can hide it.
    """
    import ctypes

    handle = _HANDLE.pack(8, _HANDLE_OF_KERNFS, number)
    found = syscalls.libc.open_by_handle_at(fd, handle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if found >= 0:
        os.close(found)
        return True
    return ctypes.get_errno() not in (errno.ESTALE, errno.ENOENT)


def processes(leaf: str) -> list[int]:
    """Numbers of the processes that live in a leaf, and in those below it.

    Raises:
        OSError: it is gone.
    """
    found: list[int] = []
    for place in (leaf, *_below(leaf)):
        with open(f"{place}/cgroup.procs", encoding="ascii") as procs:
            found += [int(line) for line in procs]
    return found


def place_of(pid: int) -> str:
    """The place of a process in the cgroup v2 tree, `/mcpguard/...` for a guarded one; empty where it has none there."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            places = [line.rstrip("\n").removeprefix("0::") for line in file if line.startswith("0::/")]
    except OSError:
        return ""
    return places[0] if len(places) == 1 else ""


def kept_by(pid: int) -> int | None:
    """The number of the rule that a process lives by, in a leaf of its own below its session's; None: it lives in the session's
    leaf or in none, or has ended."""
    parts = place_of(pid).split("/")
    return int(parts[3]) if len(parts) == 4 and parts[1] == PARENT and parts[3].isdecimal() else None


def in_tree(leaf: str) -> str:
    """The path of a leaf as `place_of` tells it."""
    return leaf[max(leaf.rfind(f"/{PARENT}/"), 0) :]


def is_in(place: str, leaf: str) -> bool:
    """Whether a place is a leaf, both as `place_of` tells them, or below it."""
    return place == leaf or place.startswith(f"{leaf}/")


def _below(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def _remove(path: str) -> None:
    for below in _below(path):
        os.rmdir(below)
    os.rmdir(path)


def _kill_frozen(path: str) -> None:
    with open(f"{path}/cgroup.freeze", "rb", buffering=0) as freeze:
        if freeze.read().strip() != b"1":
            return
    with open(f"{path}/cgroup.kill", "wb", buffering=0) as kill:  # Linux 5.14; frozen processes can be killed
        kill.write(b"1")


def is_populated(fd: int) -> bool:
    """Whether any process lives in the cgroup of this open directory, or below; one that was removed has none."""
    try:
        return b"populated 1" in _events(fd)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENODEV)


def is_to_stand_still(path: str) -> bool:
    """Whether the processes of a cgroup stand still, or are about to."""
    with contextlib.suppress(OSError), open(f"{path}/cgroup.freeze", "rb", buffering=0) as freeze:
        return freeze.read(1) == b"1"
    return False


def _events(fd: int) -> bytes:
    events = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)
    try:
        return os.read(events, 256)
    finally:
        os.close(events)


def remove_stale(mount: str) -> int:
    """Remove leaves that nobody holds and no process lives in any more; returns how many."""
    parent = f"{mount}/{PARENT}"
    if not os.path.isdir(parent):
        return 0
    with _locked(parent), os.scandir(parent) as entries:
        return sum(_remove_if_free(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))


def _remove_if_free(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_populated(fd):
            # Its broker was killed; leaves below that are empty now are still its own. What stands still nobody will wake.
            _kill_frozen(path)
            return False
        _remove(path)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
