"""Who asks the gate, and what became of it: by the kernel's word alone, for the tree has the same user as the gate."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import struct
import time

from mcpguard.kernel import cgroup, proc
from mcpguard.model.values import dataclass

_CREDENTIALS = struct.Struct("iII")
# From <asm-generic/socket.h>; Linux 6.5.
_SO_PEERPIDFD = 77
_INT = struct.Struct("i")
_LOOK_S = 0.1


class Stranger(Exception):
    """Who asked is no process of this session, or sent what no shim sends. The text says which."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A process of the session.

    Attributes:
        pid: as it is seen outside.
        held: a pidfd, so that the number stays this process's.
        place: its leaf: the session's own, or one below.
    """

    pid: int
    held: int
    place: str

    def ended(self) -> bool:
        poll = select.poll()  # `select` takes no number above 1023
        poll.register(self.held, select.POLLIN)
        return bool(poll.poll(0))

    def began(self) -> str:
        """Clock ticks since the boot, as /proc has it: with the number it tells this process from all others.

        Raises:
            ProcessLookupError: it has ended, and what has the number now is another one.
        """
        fields = proc.stat_of(self.pid)
        if not fields or self.ended():
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return fields[proc.START]

    def kill(self) -> None:
        import signal

        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.held, signal.SIGKILL)

    def go_on(self) -> None:
        """Where it stands still."""
        import signal

        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.held, signal.SIGCONT)

    def close(self) -> None:
        os.close(self.held)


def welcome(line: socket.socket, leaf: str) -> Peer:
    """Who connected.

    Args:
        leaf: the session's own leaf, as /proc/PID/cgroup has it: `/mcpguard/...`.

    Raises:
        Stranger: it is not in this leaf now, or below.
    """
    pid, uid, _gid = _CREDENTIALS.unpack(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != os.geteuid() or pid <= 0:
        raise Stranger("another user")
    held = _hold(line, pid)
    peer = Peer(pid, held, cgroup.place_of(pid))
    if not cgroup.is_in(peer.place, leaf) or peer.ended():
        peer.close()
        raise Stranger("no process of this session")
    return peer


def _hold(line: socket.socket, pid: int) -> int:
    try:
        return _INT.unpack(line.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, _INT.size))[0]  # type: ignore[no-any-return]
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINVAL):
            raise Stranger("a process that has ended") from None
    try:
        return os.pidfd_open(pid)
    except OSError:
        raise Stranger("a process that has ended") from None


def hear(line: socket.socket, most: int) -> tuple[bytes, list[int]]:
    """One packet, and the descriptors that came with it, which are the caller's from now on.

    Raises:
        Stranger: it was longer than `most`, or had more than two descriptors.
    """
    flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    data, ancillary, received, _address = line.recvmsg(most, socket.CMSG_SPACE(2 * _INT.size), flags)
    found = [
        number
        for level, kind, payload in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (number,) in _INT.iter_unpack(payload[: len(payload) // _INT.size * _INT.size])
    ]
    if received & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or (data and len(found) != 2):
        close_all(found)
        raise Stranger("a packet that no shim sends")
    return data, found


def has_its_starter(pid: int, leaf: str) -> bool:
    """Whether the process that a process comes from lives in the session, so that it is not the session's first one.

    Args:
        leaf: of the session, as `kernel.cgroup.place_of` tells it.
    """
    return f"{cgroup.place_of(proc.parent_of(pid))}/".startswith(f"{leaf}/")


def stop_at_its_end(line: socket.socket, pid: int) -> None:
    """Have the kernel stop a process as soon as its end of this line closes: in an execution that is before what is executed
    runs. It stands still until it is told to go on, so what it is then can be looked at.

    Raises:
        OSError: the kernel would not.
    """
    import fcntl
    import signal

    fcntl.fcntl(line, fcntl.F_SETOWN, pid)
    fcntl.fcntl(line, fcntl.F_SETSIG, signal.SIGSTOP)  # in place of SIGIO
    fcntl.fcntl(line, fcntl.F_SETFL, fcntl.fcntl(line, fcntl.F_GETFL) | os.O_ASYNC)


def stop_no_more(line: socket.socket) -> None:
    """When this returns, the process was stopped for this line, or never will be.

    Raises:
        OSError: there is no such line.
    """
    import fcntl

    fcntl.fcntl(line, fcntl.F_SETFL, fcntl.fcntl(line, fcntl.F_GETFL) & ~os.O_ASYNC)


def close_all(descriptors: list[int]) -> None:
    for number in descriptors:
        with contextlib.suppress(OSError):
            os.close(number)


def is_pipe(descriptor: int) -> bool:
    """Whether it is a pipe of the kernel's own, without a name anywhere."""
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode) and os.readlink(f"/proc/self/fd/{descriptor}").startswith(
        "pipe:"
    )


def is_stream(descriptor: int) -> bool:
    """Whether it is a connected unix stream socket."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as one:
        if one.family != socket.AF_UNIX or one.type != socket.SOCK_STREAM:
            return False
        try:
            one.getpeername()
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Executed:
    """What a process was executed as, seen while it stands still. Who has another process wake it is seen as what it is then.

    Attributes:
        image: device and inode of its program.
        arguments: each word with a closing zero.
        environment: `NAME=value` each.
        folder: where it works.
        folder_id: device and inode of that.
    """

    image: tuple[int, int] | None
    arguments: bytes
    environment: tuple[bytes, ...]
    folder: str
    folder_id: tuple[int, int] | None


def executed(pid: int) -> Executed:
    """What a process is now: two looks agree. While it executes the next program of a chain there is little to be seen."""
    until = time.monotonic() + _LOOK_S
    before = None
    while True:
        found = _look(pid)
        if found.image is None or (found.arguments and found == before) or time.monotonic() > until:
            return found
        before = found


def _look(pid: int) -> Executed:
    return Executed(
        _identity_of(f"/proc/{pid}/exe"),
        _read(f"/proc/{pid}/cmdline"),
        tuple(entry for entry in _read(f"/proc/{pid}/environ").split(b"\0") if entry),
        _link(f"/proc/{pid}/cwd"),
        _identity_of(f"/proc/{pid}/cwd"),
    )


def _identity_of(path: str) -> tuple[int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def path_of(pid: int) -> str | None:
    """Path of the program that a process executes; None where it has none any more."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
