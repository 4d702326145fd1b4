"""The privileged half of a session: makes the cgroup, loads and attaches, starts the child confined, then idles.

It takes a compiled request from the user's process and nothing else: no YAML, no look-up in a directory of the user with
root's rights, no code from one. It cleans up when the agent has ended, also when the user's process was killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from mcpguard.broker.channel import opened
from mcpguard.broker.engine import Engine
from mcpguard.broker.launch import Launch
from mcpguard.broker.protocol import error_to_json
from mcpguard.errors import HostError, KernelError, McpguardError
from mcpguard.kernel import cgroup
from mcpguard.kernel.places import RUN

# More than a session takes; a power of two.
_DESCRIPTORS = 256


def serve(connection: int, caller_uid: int, *, audit: bool, tier: int | None, resolver: int) -> None:
    """Serve one session for the user `caller_uid`, then return.

    Loading takes longer than anything else and needs nothing of the request, so it begins before the request is there.

    Args:
        connection: descriptor of the socket to the user's process; taken over.
    """
    _make_room(connection)
    try:
        with _leaf() as leaf:
            Launch(opened(connection), caller_uid, leaf, Engine(leaf, audit, tier, resolver)).run()
    except McpguardError as error:
        _tell(connection, error)
    except OSError as error:
        call = str(error.filename or "a system call")
        _tell(connection, KernelError(call, error.errno or errno.EIO, do="run `mcpguard doctor`"))


def _make_room(descriptor: int) -> None:
    """Have the table of descriptors grow now: once there are threads, the kernel waits for all processors before it does."""
    with contextlib.suppress(OSError):  # of the limit there may be less
        os.close(fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _DESCRIPTORS - 1))


def _tell(connection: int, error: McpguardError) -> None:
    with contextlib.suppress(OSError):
        opened(connection).send(error_to_json(error))


@contextlib.contextmanager
def _leaf() -> Iterator[cgroup.Leaf]:
    """A cgroup leaf of the session's own; all that lives in it ends with it."""
    mount = cgroup.unified_mount()
    if mount is None:
        raise HostError(
            "there is no cgroup v2 on this host",
            why="the process tree of an agent is a cgroup v2 leaf, and no cgroup2 file system is mounted",
            do="mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1",
            code="host.no-cgroup2",
        )
    os.makedirs(RUN, mode=0o755, exist_ok=True)
    cgroup.remove_stale(mount)
    leaf = cgroup.make_leaf(mount, f"{os.getpid()}-{os.urandom(4).hex()}")
    try:
        yield leaf
    finally:
        with contextlib.suppress(OSError):
            leaf.kill()
        leaf.remove()
