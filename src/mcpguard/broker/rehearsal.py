"""Does the kernel really ask our programs? A process in the leaf, for which no policy stands yet, must be refused everything.

Loading and attaching prove nothing: without `bpf` among the active security modules such programs attach and are never
called. So the very programs that will guard the session are tried, before anybody relies on them.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

from mcpguard.backends.landlock import STAGE
from mcpguard.kernel import privileges
from mcpguard.kernel.cgroup import Leaf

NOT_TRIED = "the process that was to try could not"
_TRIED = f"{STAGE}/rehearsal"


def not_refused(leaf: Leaf) -> list[str]:
    """The acts that a process in the leaf could do although everything is refused there; empty: the programs are asked."""
    outside = os.getpid()
    acts: tuple[tuple[str, int, Callable[[], None]], ...] = (
        ("opening a directory", errno.EACCES, _open_root),
        ("making a directory", errno.EACCES, _make),
        ("looking at a process outside", errno.EPERM, lambda: os.kill(outside, 0)),
    )
    for _name, _number, act in acts:
        act()  # the control: outside of the leaf each of them succeeds
    pid = os.fork()
    if pid == 0:
        done = 1 << len(acts)
        try:
            signal.set_wakeup_fd(-1)
            leaf.enter()
            privileges.drop_capabilities()  # what has them acts for the kernel, and nothing that is guarded has
            done = 0
            for place, (_name, number, act) in enumerate(acts):
                try:
                    act()
                    done |= 1 << place
                except OSError as error:
                    done |= (error.errno != number) << place
        finally:
            os._exit(done)
    _pid, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0 or code >> len(acts):
        return [NOT_TRIED]
    return [name for place, (name, _number, _act) in enumerate(acts) if code >> place & 1]


def _open_root() -> None:
    os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY))


def _make() -> None:
    path = f"{_TRIED}-{os.getpid()}"
    os.mkdir(path)
    os.rmdir(path)
