"""Who has the ends of pipes and unix sockets in a session, as /proc and the kernel's list of sockets tell it now."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from functools import partial

from mcpguard.kernel import cgroup, proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Device, as the kernel numbers it inside, and inode number.
End = tuple[int, int]
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_UNIX_DIAG_SHUTDOWN: Final = 6
_RCV_SHUTDOWN: Final = 1
_HEADER, _REQUEST, _ANSWER_BYTES, _ATTRIBUTE = (
    struct.Struct("=IHHII"),
    struct.Struct("=BBHIIIII"),
    16,
    struct.Struct("=HH"),
)
_ANY = 0xFFFFFFFF


class Ends:
    """Of one session.

    Args:
        leaf: path of its cgroup leaf.
        input: the end that the session itself has as its standard input; None: it has none that others could write to.
    """

    def __init__(self, leaf: str, input: End | None = None) -> None:
        self.living: Callable[[], list[int]] = partial(cgroup.processes, leaf)
        self.input = input

    def readers(self, end: End) -> list[int]:
        """Processes that have this end as their standard input."""
        found = []
        with contextlib.suppress(OSError, ValueError):
            for pid in self.living():
                if self.reads(pid, end):
                    found.append(pid)
        return found

    def holders(self, end: End) -> Iterator[int]:
        """Processes that have this end open under any number, as far as they show that. Raises OSError, ValueError."""
        return (pid for pid in self.living() if self.holds(pid, end))

    @staticmethod
    def reads(pid: int, end: End) -> bool:
        """Whether a process has this end as its standard input."""
        return _is(f"/proc/{pid}/fd/0", end)

    @staticmethod
    def holds(pid: int, end: End) -> bool | None:
        """Whether a process has this end open, under any number; None: it has ended."""
        try:
            return any(_is(path, end) for path in _descriptors(pid))
        except OSError:
            return None

    @staticmethod
    def can_read(pid: int, end: End) -> bool | None:
        """Whether a process can read there: of a pipe not who has only the other end. None: it has ended, or hides that."""
        try:
            return any(_is(path, end) and _is_open_for(path, stat.S_IRUSR) for path in _descriptors(pid))
        except OSError:
            return None

    @staticmethod
    def can_write(pid: int, end: End) -> bool | None:
        """The same of who can send to this end of a pipe."""
        try:
            return any(_is(path, end) and _is_open_for(path, stat.S_IWUSR) for path in _descriptors(pid))
        except OSError:
            return None

    @staticmethod
    def is_read(pid: int, end: End, channel: str) -> bool:
        """Whether anybody can still read there, be it shown or not.

        Args:
            pid: who sends there; of a pipe it has the other end.
            channel: `pipe` or `unix`.
        """
        if channel != "pipe":
            return bool(_told_of(end[1]))
        with contextlib.suppress(OSError):
            for path in _descriptors(pid):
                if _is(path, end):
                    with open(path, "wb", buffering=0, opener=_without_waiting) as writing:
                        poll = select.poll()
                        poll.register(writing, 0)
                        return not poll.poll(0)  # an error: nobody reads there
        return False

    @staticmethod
    def carries(pid: int) -> bool:
        """Whether a process has a socket with descriptors that it may take, as far as it shows that."""
        with contextlib.suppress(OSError):
            return any(_carries(path.replace("/fd/", "/fdinfo/")) for path in _descriptors(pid))
        return False

    @classmethod
    def is_finished(cls, pid: int, end: End, channel: str) -> bool:
        """Whether a process that wrote to this end has closed its side, so that whoever reads there gets no more. Of one that
        lives and does not show what it has open that cannot be told, and it has not.

        Args:
            channel: `pipe` or `unix`.
        """
        if channel != "pipe":
            return _is_shut(end[1])
        held = cls.holds(pid, end)
        return not held and not (held is None and _lives(pid))


def standard_input() -> End | None:
    """What this process has as its standard input, where that is a pipe or a socket."""
    with contextlib.suppress(OSError):
        state = os.fstat(0)
        if state.st_mode & 0o170000 in (0o010000, 0o140000):
            return os.major(state.st_dev) << 20 | os.minor(state.st_dev), state.st_ino
    return None


def _descriptors(pid: int) -> Iterator[str]:
    with os.scandir(f"/proc/{pid}/fd") as found:
        return iter([entry.path for entry in found])


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags & ~(os.O_CREAT | os.O_TRUNC) | os.O_NONBLOCK)


def _is(path: str, end: End) -> bool:
    return _end_of(path) == end


def _is_open_for(path: str, how: int) -> bool:
    """Whether what is open there is open for reading, or for writing."""
    with contextlib.suppress(OSError):
        return bool(os.lstat(path).st_mode & how)
    return False


def _end_of(path: str) -> End | None:
    with contextlib.suppress(OSError):
        state = os.stat(path)
        return os.major(state.st_dev) << 20 | os.minor(state.st_dev), state.st_ino
    return None


def _lives(pid: int) -> bool:
    return proc.stat_of(pid)[proc.STATE :][:1] not in ([], ["Z"], ["X"])


def _carries(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as told:
        words = told.read().split()
        return any(int(number) > 0 for word, number in itertools.pairwise(words) if word == "scm_fds:")
    return False


def _told_of(inode: int) -> bytes:
    """What the kernel tells of a unix socket; empty where there is none, or it does not tell."""
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY, inode & _ANY, 0, _ANY, _ANY)
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as line:
            line.send(header + request)
            answer = line.recv(1 << 12, socket.MSG_DONTWAIT)  # it is there when the request was sent
    except OSError:
        return b""
    is_answer = len(answer) >= _HEADER.size and _HEADER.unpack_from(answer)[1] == _SOCK_DIAG_BY_FAMILY
    return answer if is_answer else b""


def _is_shut(inode: int) -> bool:
    """Whether nothing more can come to a unix socket; False as well where the kernel does not tell."""
    answer = _told_of(inode)
    at = _HEADER.size + _ANSWER_BYTES
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _UNIX_DIAG_SHUTDOWN:
            return bool(answer[at + _ATTRIBUTE.size] & _RCV_SHUTDOWN)
        at += max(_ATTRIBUTE.size, (length + 3) & ~3)
    return False
