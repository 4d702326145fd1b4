"""Ctrl-C on a terminal whose program takes keys as they come, for as long as that program is stopped.

Source: termios(3), tcsetpgrp(3), ioctl_tty(2).
"""

from __future__ import annotations

import contextlib
import os
import signal
import termios
from collections.abc import Collection, Iterator

_LOCAL, _CHARACTERS = 3, 6  # of what tcgetattr gives
_CTRL_C = b"\x03"


class Keys:
    """The controlling terminal of this process, with Ctrl-C as a signal to its group, until `give_back`."""

    def __init__(self, stopped: Collection[int]) -> None:
        """Take the terminal from the group of a stopped process, or from our own; from nobody else, and no other key.

        Args:
            stopped: processes that read and write nothing meanwhile.

        Raises:
            OSError: there is no terminal, or it is somebody else's now.
        """
        self._fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            with _from_behind():
                self._group = os.tcgetpgrp(self._fd)
                if self._group not in {os.getpgrp(), *_groups(stopped)}:
                    raise ProcessLookupError(self._group)
                self._modes = termios.tcgetattr(self._fd)
                characters = list(self._modes[_CHARACTERS])
                characters[termios.VINTR] = _CTRL_C
                local = self._modes[_LOCAL] | termios.ISIG
                termios.tcsetattr(self._fd, termios.TCSANOW, [*self._modes[:3], local, *self._modes[4:6], characters])
                os.tcsetpgrp(self._fd, os.getpgrp())
        except BaseException:
            os.close(self._fd)
            raise

    def give_back(self) -> None:
        """Leave it as it was, unless somebody else has it by now."""
        with contextlib.suppress(OSError), _from_behind():
            if os.tcgetpgrp(self._fd) == os.getpgrp():
                termios.tcsetattr(self._fd, termios.TCSANOW, self._modes)
                os.tcsetpgrp(self._fd, self._group)
        os.close(self._fd)


def _groups(pids: Collection[int]) -> Iterator[int]:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            yield os.getpgid(pid)


@contextlib.contextmanager
def _from_behind() -> Iterator[None]:
    """The kernel stops who sets a terminal from behind, unless that signal is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        yield
    except termios.error as error:
        raise OSError(*error.args) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
