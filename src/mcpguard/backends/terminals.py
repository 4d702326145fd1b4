"""Terminals of the session's own: an instance of devpts that nobody else has, in every tier.

What lies in the host's instance, now or later, has no name in the session: its mounts are taken out of the private
namespace. What the session was started on keeps the name that it has outside. Runs in the child, as root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator, Sequence

from mcpguard.kernel import mounts, terminals
from mcpguard.kernel.terminals import Terminal

_MULTIPLEXER = "/dev/ptmx"
_KEPT_OPTIONS = ("uid=", "gid=", "mode=", "ptmxmode=", "max=")
_USUAL_OPTIONS = "mode=620,ptmxmode=666"
# Room for what is open besides the terminals.
_SPARE_DESCRIPTORS = 64


def arrange(own: Sequence[Terminal]) -> list[int]:
    """Give the caller's private mount namespace a devpts of its own, in which the terminals `own` keep their names.

    A terminal that cannot keep its name (it has none here, or its number cannot be had) stays usable by its descriptor.

    Returns:
        descriptors that keep the names taken; to be held as long as the session lives.

    Raises:
        OSError: the host's terminals could not be taken away; the caller must not go on.
    """
    shown = _shown()
    options = next((mount.options for mount in shown if mount.point == terminals.FOLDER), _USUAL_OPTIONS)
    nodes = {terminal.index: node for terminal in own if (node := _node(terminal)) is not None}
    _detach_all(own)
    if not os.path.isdir(terminals.FOLDER):
        return []
    mounts.mount_devpts(terminals.FOLDER, ",".join(o for o in options.split(",") if o.startswith(_KEPT_OPTIONS)))
    if any(mount.point == _MULTIPLEXER for mount in shown):
        _show(f"{terminals.FOLDER}/ptmx", _MULTIPLEXER)
    with _descriptors(max(nodes, default=0) + _SPARE_DESCRIPTORS):
        held = terminals.take(nodes)
    for index in held:
        place = mounts.open_exact(f"{terminals.FOLDER}/{index}")
        mounts.attach(nodes[index], place)
        os.close(place)
    for node in nodes.values():
        os.close(node)
    return list(held.values())


def _shown() -> list[mounts.Mount]:
    return mounts.visible(mounts.table(), terminals.FILE_SYSTEM)


def _node(terminal: Terminal) -> int | None:
    """A detached copy of the mount of a terminal's node; None: its name here is not its own."""
    with contextlib.suppress(FileNotFoundError):
        place = mounts.open_exact(terminal.path)
        try:
            if os.path.sameopenfile(place, terminal.fd):
                return mounts.clone_tree(place)
        finally:
            os.close(place)
    return None


def _detach_all(own: Sequence[Terminal]) -> None:
    """Take out every mount of a devpts, but where the session's own terminal is shown under another name (/dev/console)."""
    kept = {(terminal.device, f"/{terminal.index}") for terminal in own}
    while mount := next((mount for mount in _shown() if (mount.device, mount.root) not in kept), None):
        place = mounts.open_exact(mount.point)
        if mounts.device_of(place) != mount.device:
            raise OSError(errno.ESTALE, "it moved while it was looked at", mount.point)
        mounts.detach(place)
        os.close(place)


def _show(source: str, target: str) -> None:
    fd, place = mounts.open_exact(source), mounts.open_exact(target)
    tree = mounts.clone_tree(fd)
    mounts.attach(tree, place)
    for opened in (tree, fd, place):
        os.close(opened)


@contextlib.contextmanager
def _descriptors(number: int) -> Iterator[None]:
    """Let the caller have that many for a moment."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if number > soft:
        with contextlib.suppress(ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (number, max(number, hard)))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
