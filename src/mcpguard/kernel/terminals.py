"""Pseudo terminals: which of them a process has, and numbers taken in a new instance of devpts.

Source: pty(7), ioctl_tty(2), proc_pid_stat(5), the kernel's documentation of devpts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mcpguard.kernel import mounts

FOLDER = "/dev/pts"
FILE_SYSTEM = "devpts"
_SLAVES = 136  # major number
_NUMBER_OF = 0x80045430  # TIOCGPTN
_OPENED_QUIETLY = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Terminal:
    """A pseudo terminal that somebody has.

    Attributes:
        fd: an open descriptor of it. While one is open the kernel gives its number to no other terminal.
        device: the instance of devpts that it lives in, as the mount table writes it.
        index: its number in there.
    """

    fd: int
    device: str
    index: int

    @property
    def path(self) -> str:
        """Its name, where that instance is the one that is mounted."""
        return f"{FOLDER}/{self.index}"


def own() -> tuple[Terminal, ...]:
    """The terminals on standard input, output and error, and the controlling one. What is opened for it stays open."""
    handed_in = [terminal for fd in (0, 1, 2) if (terminal := _terminal(fd)) is not None]
    found = {(terminal.device, terminal.index): terminal for terminal in handed_in}
    controlling = _controlling()
    if controlling is not None:
        if (controlling.device, controlling.index) in found:
            os.close(controlling.fd)
        else:
            found[controlling.device, controlling.index] = controlling
    return tuple(found.values())


def _terminal(fd: int) -> Terminal | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    if os.major(status.st_rdev) != _SLAVES:
        return None
    return Terminal(fd, mounts.device_of(fd), os.minor(status.st_rdev))


def _controlling() -> Terminal | None:
    """/dev/tty does not tell which one it stands for, and its number is that of a terminal in any instance of devpts."""
    number = int(Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[4])
    if os.major(number) != _SLAVES:
        return None
    try:
        fd = os.open(f"{FOLDER}/{os.minor(number)}", _OPENED_QUIETLY)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        os.tcgetpgrp(fd)  # refused for every terminal but the caller's own
        return _terminal(fd)
    os.close(fd)
    return None


def hand_over(terminal: Terminal, uid: int) -> None:
    """Let a user open a terminal again that was made for this process alone and belongs to root.

    With `use_pty` sudo runs what it starts on a terminal of its own. Its first process is our parent then; the user's own
    terminal has another one, whoever that terminal belongs to.
    """
    if uid and os.fstat(terminal.fd).st_uid == 0 and os.getsid(0) == os.getppid():
        with contextlib.suppress(OSError):
            os.tcgetpgrp(terminal.fd)  # the controlling one of that session, and no other
            os.fchown(terminal.fd, uid, -1)


def take(wanted: Collection[int]) -> dict[int, int]:
    """Take these numbers in the instance that is mounted now, so that it gives them to nobody else.

    The kernel always gives the lowest number that is free. Where there are not so many, what could be had is returned.

    Returns:
        the master of each by its number; the number is free again when that is closed.
    """
    taken: dict[int, int] = {}
    with contextlib.suppress(OSError):
        while set(wanted) - taken.keys() and len(taken) <= max(wanted):
            master = os.open(f"{FOLDER}/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            taken[_number(master)] = master
    for index in taken.keys() - set(wanted):
        os.close(taken.pop(index))
    return taken


def _number(master: int) -> int:
    (number,) = struct.unpack("=i", fcntl.ioctl(master, _NUMBER_OF, bytes(4)))
    return int(number)
