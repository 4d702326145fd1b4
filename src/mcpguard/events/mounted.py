"""From the kernel's word for a file (file system, name inside it) to the path that a person knows.

The mount table of this process says where which part of which file system is mounted; it is read again when a file system
is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mcpguard.kernel import mounts
from mcpguard.model.paths import is_below


class MountedPlaces:
    """Where file systems are mounted, as far as was asked."""

    def __init__(self, table: Callable[[], Sequence[mounts.Mount]] = mounts.table) -> None:
        self._table = table
        self._mounts: dict[int, list[mounts.Mount]] = {}
        self._visible: list[mounts.Mount] = []

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
        return _below(best.point, name[len(best.root) :])

    def other_names(self, path: str) -> Iterator[str]:
        """The further paths of what lies at `path` (without symlinks), where its file system is mounted more than once."""
        if not self._mounts:
            self._read()
        above = (mount for mount in self._visible if is_below(path, mount.point))
        here = max(above, key=lambda mount: len(mount.point), default=None)
        if here is None:
            return
        name = _below(here.root, path[len(here.point) :])
        for mount in self._visible:
            if mount.device == here.device and mount is not here and is_below(name, mount.root):
                yield _below(mount.point, name[len(mount.root) :])

    def _read(self) -> None:
        self._mounts = {}
        table = self._table()
        self._visible = mounts.visible(table)
        for mount in table:
            self._mounts.setdefault(mounts.device_number(mount.device), []).append(mount)


def _below(folder: str, rest: str) -> str:
    return (folder.rstrip("/") + "/" + rest.strip("/")).rstrip("/") or "/"
