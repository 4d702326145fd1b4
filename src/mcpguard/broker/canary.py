"""The canary: a child inside the finished sandbox that tries what must be refused.

Attached does not mean enforced. Each act is one that plain Linux permits; the broker checks that before (`Target.open`),
so a refusal can come from the sandbox only.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from functools import partial

from mcpguard.backends.landlock import CANARY, Masked
from mcpguard.model import plain_json as json
from mcpguard.model.values import dataclass

# In 127/8 every address is the host itself; no profile has a reason to name this one, and the broker denies it.
ADDRESS = "127.86.71.1"
_REFUSED = (errno.EACCES, errno.EPERM)
_ENOUGH_MASKS = 8


@dataclass(slots=True)
class Target:
    """What lies outside the sandbox and must not be reached from inside.

    outside_pid: a process of the same user, so that only the sandbox can refuse a signal to it.
    """

    listener: socket.socket
    port: int
    outside_pid: int

    @staticmethod
    def open(*, outside_pid: int) -> Target:
        """Listen, and prove that the listener can be reached from outside the sandbox."""
        listener = socket.create_server((ADDRESS, 0))
        port = int(listener.getsockname()[1])
        _connect(port)
        return Target(listener, port, outside_pid)

    def close(self) -> None:
        self.listener.close()


def run_inside(target: Target, hidden: list[Masked], *, reads_everything: bool, signals: bool) -> tuple[list[str], int]:
    """Try everything from a forked child of the caller, which is confined already.

    Args:
        reads_everything: a rule lets the agent read the canary's file; then only what is hidden can be tried.
        signals: whether this session confines signals (the hooks, or Landlock ABI 6).

    Returns:
        the acts that were not refused (empty: the sandbox holds), and the canary's pid.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, json.dumps(_not_refused(target, hidden, reads_everything, signals)).encode())
            os._exit(0)
        except BaseException as error:
            os.write(write, json.dumps([f"the canary failed: {error!r}"]).encode())
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    failures = json.loads(answer) if answer else ["the canary died"]
    return [str(failure) for failure in failures], pid


def _not_refused(target: Target, hidden: list[Masked], reads_everything: bool, signals: bool) -> list[str]:
    failures = []
    if not reads_everything and not _refused(partial(_open_and_close, CANARY)):
        failures.append("reading a file that no rule allows")
    if not _refused(partial(_connect, target.port)):
        failures.append("connecting to an address that a rule denies")
    if not _refused(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()):
        failures.append("making a packet socket")
    if signals and not _refused(lambda: os.kill(target.outside_pid, 0)):
        failures.append("signalling a process outside")
    for mask in hidden[:_ENOUGH_MASKS]:
        if not _refused(partial(_open_and_close, mask.path)):
            failures.append(f"opening the hidden {mask.path}")
    return failures


def _connect(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as attempt:
        attempt.settimeout(2)
        attempt.connect((ADDRESS, port))


def _open_and_close(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


def _refused(act: Callable[[], None]) -> bool:
    try:
        act()
    except OSError as error:
        return error.errno in _REFUSED
    return False
