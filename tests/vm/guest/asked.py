"""What the host asked this guest to be; `conftest.py` tells where that stands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from kernels import STOCK

from mcpguard.broker import tiers

# The two folders of btrfs are subvolumes of one file system, each mounted by itself.
PLACES = {
    "tmpfs": ("/vmtmp",),
    "ext4": ("/vmext4",),
    "btrfs": ("/vmbtrfs/a", "/vmbtrfs/b"),
    "overlay": ("/vmoverlay",),
}


@dataclass(frozen=True)
class Lane:
    """What this guest was booted to be."""

    kernel: str
    lsm: str
    preempt: str
    disks: tuple[str, ...]
    headers: bool

    def places(self, disk: str) -> list[Path]:
        """Where a file system is mounted."""
        if disk not in self.disks:
            self.not_here(f"no {disk}")
        return [Path(place) for place in PLACES[disk]]

    @property
    def preempts(self) -> bool:
        """Whether this kernel takes a processor from whoever runs a program, and then skips that program for others."""
        return tiers.preemption() not in ("none", "voluntary")

    @property
    def keeps_tracepoints(self) -> bool:
        """Whether it never does that to a program on a raw tracepoint. Kernels beyond the stock ones may; 7.3 does."""
        return not self.preempts or self.kernel in STOCK

    def not_here(self, why: str) -> NoReturn:
        """End a test that is about what this lane does not have."""
        pytest.skip(f"not on this lane: {why}")
