"""From the kernel's word for a file (file system, name inside it) to the path that a person knows.

The mount table of this process says where which part of which file system is mounted; it is read again when a file system
is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mcpguard.kernel import mounts
from mcpguard.model.paths import is_below


class MountedPlaces:
    """Where file systems are mounted, as far as was asked."""

    def __init__(self, table: Callable[[], Sequence[mounts.Mount]] = mounts.table) -> None:
        self._table = table
        self._mounts: dict[int, list[mounts.Mount]] = {}

    def path(self, device: int, name: str, *, cut: bool = False) -> str:
        """A path of the host; of what is mounted nowhere, the name with the number of its file system.

        Args:
            device: the kernel's number of the file system (s_dev).
            name: from the root of the file system on; with `cut` only its end.
        """
        if cut:
            return f"...{'' if name.startswith('/') else '/'}{name}"
        found = self._mounts.get(device)
        if found is None:
            self._read()
            found = self._mounts.setdefault(device, [])
        best = max(
            (mount for mount in found if is_below(name, mount.root)), key=lambda mount: len(mount.root), default=None
        )
        if best is None:
            return f"(file system {device >> 20}:{device & 0xFFFFF}){name}"
        rest = name if best.root == "/" else name[len(best.root) :]
        return (best.point.rstrip("/") + "/" + rest.lstrip("/")).rstrip("/") or "/"

    def _read(self) -> None:
        self._mounts = {}
        for mount in self._table():
            self._mounts.setdefault(mounts.device_number(mount.device), []).append(mount)
