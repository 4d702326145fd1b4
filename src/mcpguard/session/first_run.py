"""The agent's own folders for its first run: tier 3 opens only what exists, so what is missing is made before the plan.

As the user, empty, for nobody else, and through no symlink. What is still empty at the end is taken away, by whoever made it
and only while no other session counts on it; a mcpguard that is killed leaves an empty folder behind.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from mcpguard.model.policy import Policy
from mcpguard.model.values import dataclass
from mcpguard.profile import places

MODE = 0o700
LOCK = "folders.lock"
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def own_folders(policy: Policy, *, quiet: bool = False) -> Iterator[None]:
    """Keep the folders of `policy.folders` there for the time of a run.

    What the run has put to use is said on stderr at the end.
    """
    if policy.audit or not policy.folders:
        yield
        return
    with _Users.of(policy.folders) as users:
        made = [folder for folder in policy.folders if _make(folder)]
        try:
            yield
        finally:
            # Children come before their parents.
            used = [folder for folder in reversed(made) if not (users.only_us(folder) and _remove(folder))]
    if used and not quiet:
        from mcpguard.events.format import printable, shorten

        names = ", ".join(printable(shorten(folder, policy.user.home)) for folder in reversed(used))
        with contextlib.suppress(OSError):
            sys.stderr.write(f"  note     made for the agent, because it was not there: {names}\n")


def _make(folder: str) -> bool:
    """False where it exists already, or cannot be made here: then the plan says what is missing."""
    if os.path.lexists(folder):
        return False
    with contextlib.suppress(OSError), _parent(folder) as parent:
        os.mkdir(os.path.basename(folder), MODE, dir_fd=parent)
        return True
    return False


def _remove(folder: str) -> bool:
    """True when nothing is left of it. Never takes away what holds something."""
    with contextlib.suppress(OSError), _parent(folder) as parent:
        os.rmdir(os.path.basename(folder), dir_fd=parent)
        return True
    return False


@contextlib.contextmanager
def _parent(folder: str) -> Iterator[int]:
    """The directory that holds `folder`, reached without one symlink on the way."""
    place = os.open("/", _PLACE)
    try:
        for name in os.path.dirname(folder).split("/")[1:]:
            inner = os.open(name, _PLACE, dir_fd=place)
            os.close(place)
            place = inner
        yield place
    finally:
        os.close(place)


@dataclass(frozen=True, slots=True)
class _Users:
    """Which sessions of this user count on a folder: a shared lock for each, on one byte of a file of ours.

    Without it the first of two sessions would take the folder away from the second. The kernel drops the locks of a process
    that is killed.
    """

    fd: int

    @staticmethod
    @contextlib.contextmanager
    def of(folders: tuple[str, ...]) -> Iterator[_Users]:
        fd = -1
        with contextlib.suppress(OSError):  # a home that cannot be written: nothing will be made there either
            os.makedirs(places.state(), mode=MODE, exist_ok=True)
            fd = os.open(f"{places.state()}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        users = _Users(fd)
        try:
            for folder in folders:
                users._lock(folder, exclusive=False)
            yield users
        finally:
            if fd >= 0:
                os.close(fd)

    def only_us(self, folder: str) -> bool:
        return self._lock(folder, exclusive=True)

    def _lock(self, folder: str, *, exclusive: bool) -> bool:
        import fcntl
        import zlib

        byte = zlib.crc32(os.fsencode(folder))
        with contextlib.suppress(OSError, ValueError):  # without the file nothing is locked, so nothing is taken away
            kind = fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH
            fcntl.lockf(self.fd, kind, 1, byte)
            return True
        return False
