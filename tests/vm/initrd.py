"""The guest's first file system: an archive with a busybox, some kernel modules and the first program to run."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path

from kernels import Kernel

FIRST_PROGRAM = Path(__file__).with_name("init.sh")
FOLDERS = ("bin", "modules", "proc", "sys", "dev", "host", "scratch", "newroot", "control")
# The host's root comes by 9p over virtio, and an overlay makes it writable. `dummy` makes one network interface.
ALWAYS = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "dummy")


class Archive:
    """A cpio archive in the "newc" format, the one that the kernel unpacks."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._inode = 0

    def add(self, name: str, content: bytes = b"", mode: int = stat.S_IFREG | 0o644, device: int = 0) -> None:
        """Append one entry; `device` is the minor number of a device whose major is 5 (the consoles)."""
        self._inode += 1
        path = name.encode() + b"\0"
        major = 5 if device else 0
        numbers = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, major, device, len(path), 0)
        self._bytes += b"070701" + b"".join(b"%08X" % number for number in numbers)
        for part in (path, content):
            self._bytes += part
            self._bytes += b"\0" * (-len(self._bytes) % 4)

    def finished(self) -> bytes:
        """The archive as the kernel reads it."""
        self.add("TRAILER!!!", mode=0)
        return bytes(self._bytes)


def build(kernel: Kernel, busybox: Path, modules: Iterable[str]) -> bytes:
    """An archive that brings the guest up to the host's root, with these modules loaded besides."""
    archive = Archive()
    for folder in FOLDERS:
        archive.add(folder, mode=stat.S_IFDIR | 0o755)
    # Without this node the first program has no output, and a failure no message.
    archive.add("dev/console", mode=stat.S_IFCHR | 0o600, device=1)
    archive.add("bin/busybox", busybox.read_bytes(), stat.S_IFREG | 0o755)
    archive.add("init", FIRST_PROGRAM.read_bytes(), stat.S_IFREG | 0o755)
    order = []
    for name, content in kernel.modules([*ALWAYS, *modules]):
        archive.add(f"modules/{name}.ko", content)
        order.append(f"{name}.ko\n")
    archive.add("modules/order", "".join(order).encode())
    return archive.finished()
