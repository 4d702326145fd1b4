"""Where maps, programs and links live on when no process of ours does: a directory of root's on the BPF file system.

One directory for each build of the BPF objects, made beside its place and renamed when it is whole. All changes happen
under one lock. Who uses a directory holds a shared lock on it, so that nobody takes it away meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import stat
import time
from collections.abc import Iterator

from mcpguard.errors import HostError, KernelError
from mcpguard.kernel import places, syscalls
from mcpguard.model import plain_json as json
from mcpguard.model.digests import blake2b
from mcpguard.model.values import dataclass

FILE_SYSTEM, ROOT = places.FILE_SYSTEM, places.PINS
LOCK = f"{places.RUN}/engine.lock"
# What `version` read last, in root's own folder; nothing that was changed just now, for clocks tick.
_VERSION, _SETTLED_S = f"{places.RUN}/objects.json", 2
MAPS, PROGRAMS, LINKS = "maps", "programs", "links"
_UNFINISHED = "new-"
# The kernel takes removed links apart in one queue of each processor, and each waits there for work that goes through the same
# queue. It takes 256; if all of them are links, they wait for ever, and with them all else that needs the queue.
_AT_ONCE = 64
_PATIENCE_S = 30
_leaving: list[int] = []  # programs whose links we removed, and that may be there still
_MAGIC = 0xCAFE4A11
_MOUNT_FLAGS = 2 | 4 | 8  # nosuid, nodev, noexec


@dataclass(slots=True)
class Lock:
    """The lock while it is held. `left_to_child`: a forked child has it too, and holds it until it ends."""

    fd: int
    left_to_child: bool = False


@contextlib.contextmanager
def locked() -> Iterator[Lock]:
    """Alone among all processes of mcpguard on this host. Nobody but root can open the lock, so nobody can hold us up."""
    os.makedirs(os.path.dirname(LOCK), mode=0o755, exist_ok=True)
    lock = Lock(os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    try:
        fcntl.flock(lock.fd, fcntl.LOCK_EX)
        yield lock
    finally:
        # Said aloud: a child that was forked meanwhile, for whatever else, still has the descriptor.
        if not lock.left_to_child:
            fcntl.flock(lock.fd, fcntl.LOCK_UN)
        os.close(lock.fd)


@functools.cache
def version(objects: str, layout: int) -> str:
    """One name for all compiled objects together: another byte anywhere is another engine.

    Files that nobody has touched since they were read are not read again.
    """
    names = sorted(name for name in os.listdir(objects) if name.endswith(".bpf.o"))
    found = [os.stat(f"{objects}/{name}") for name in names]
    # The kernel sets the last of these by its own clock, whenever anything else of a file changes.
    files = [[one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns] for one in found]
    key = [str(objects), layout, names, files]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(_VERSION, encoding="utf-8") as file:
        kept = json.loads(file.read())
        if kept["key"] == key:
            return str(kept["version"])
    digest = blake2b(layout.to_bytes(4, "big"), digest_size=12)
    for name in names:
        with open(f"{objects}/{name}", "rb") as file:
            content = file.read()
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(content)
    made = str(digest.hexdigest())
    if max((one.st_ctime for one in found), default=0.0) < time.time() - _SETTLED_S:
        _keep_version(key, made)
    return made


def _keep_version(key: list[object], made: str) -> None:
    new = f"{_VERSION}.{os.getpid()}"
    with contextlib.suppress(OSError):
        with open(new, "w", encoding="utf-8", opener=_own) as file:
            file.write(json.dumps({"key": key, "version": made}))
        os.replace(new, _VERSION)


def _own(path: str, flags: int) -> int:
    """Root's alone, whatever mask root runs with: who writes here says which engine guards."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def prepare() -> None:
    """Have the BPF file system mounted and our directory in it, root's own.

    Raises:
        HostError: it cannot be mounted, or the directory is not root's alone.
    """
    if not _is_bpf_file_system():
        result = syscalls.libc.mount(b"bpf", FILE_SYSTEM.encode(), b"bpf", ctypes.c_ulong(_MOUNT_FLAGS), b"mode=0700")
        if result < 0:
            raise HostError(
                "there is no BPF file system on this host",
                why=f"mounting one at {FILE_SYSTEM}: {os.strerror(ctypes.get_errno())}",
                do=f"mount -t bpf bpf {FILE_SYSTEM}",
                code="host.no-bpffs",
            )
    with contextlib.suppress(FileExistsError):
        os.mkdir(ROOT, 0o700)
    found = os.lstat(ROOT)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o077:
        raise HostError(
            f"{ROOT} is not root's alone",
            why=f"it has mode {found.st_mode & 0o7777:04o} and owner {found.st_uid}; somebody else made it",
            do=f"look at what it is, remove it, and try again: rm -r {ROOT}",
            code="host.pins-not-ours",
        )


def _is_bpf_file_system() -> bool:
    status = (ctypes.c_long * 32)()
    if syscalls.libc.statfs(FILE_SYSTEM.encode(), ctypes.byref(status)) < 0:
        return False
    return bool(status[0] == _MAGIC)


def begin(name: str) -> str:
    """An empty directory to build in; to be called under the lock."""
    folder = f"{ROOT}/{_UNFINISHED}{name}-{os.getpid()}"
    remove(folder)
    for path in (folder, *(f"{folder}/{part}" for part in (MAPS, PROGRAMS, LINKS))):
        os.mkdir(path, 0o700)
    return folder


def finish(folder: str, name: str) -> str:
    """Put a whole directory in its place, in one step."""
    place = f"{ROOT}/{name}"
    os.rename(folder, place)
    return place


def hold(folder: str) -> int:
    """A descriptor that keeps the directory from being removed by others for as long as it is open."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def is_held(folder: str) -> bool:
    """Whether any process uses the directory."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def folders() -> list[str]:
    """All directories, and what a killed process left unfinished; to be called under the lock."""
    with os.scandir(ROOT) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def links() -> int:
    """How many programs are attached by what is pinned on this host; to be called under the lock."""
    found = 0
    for folder in folders():
        # A process that was killed while it removed an engine leaves one without links.
        with contextlib.suppress(FileNotFoundError):
            found += 0 if is_unfinished(folder) else len(os.listdir(f"{folder}/{LINKS}"))
    return found


def others(build: str) -> list[str]:
    """Those that are not of this build; to be called under the lock."""
    return [folder for folder in folders() if not os.path.basename(folder).startswith(build)]


def is_unfinished(folder: str) -> bool:
    return os.path.basename(folder).startswith(_UNFINISHED)


def remove(folder: str) -> None:
    """Remove a directory and what is pinned in it, links first; one that is not there is no error.

    Raises:
        OSError: something cannot be removed, or the kernel does not get on with what was; the rest stays for the next time.
    """
    _remove_links(folder)
    for part in (LINKS, PROGRAMS, MAPS, ""):
        place = f"{folder}/{part}" if part else folder
        try:
            names = os.listdir(place)
        except FileNotFoundError:
            continue
        for name in names:
            os.unlink(f"{place}/{name}")
        os.rmdir(place)


def _remove_links(folder: str) -> None:
    """Remove links so that never more than `_AT_ONCE` of them are still attached.

    A link is gone when the program that it has the name of is: nothing else holds that.
    """
    from mcpguard.kernel import bpf

    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(f"{folder}/{LINKS}"):
            if len(_leaving) >= _AT_ONCE:
                _await_leaving()
            program = f"{folder}/{PROGRAMS}/{name}"
            with contextlib.suppress(KernelError):
                fd = bpf.pinned(program)
                try:
                    _leaving.append(bpf.program_id(fd))
                finally:
                    os.close(fd)
            os.unlink(f"{folder}/{LINKS}/{name}")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(program)


def _await_leaving() -> None:
    from mcpguard.kernel import bpf

    deadline = time.monotonic() + _PATIENCE_S
    while _leaving:
        if not bpf.program_exists(_leaving[-1]):
            _leaving.pop()
        elif time.monotonic() > deadline:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), "links that were removed are still attached")
        else:
            time.sleep(0.002)
