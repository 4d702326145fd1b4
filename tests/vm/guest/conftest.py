"""Tests that run inside a guest of the VM lane, as its root, and nowhere else.

What the lane is comes in the environment:
    MCPGUARD_LANE_KERNEL   the series, such as 6.12: the release begins with it
    MCPGUARD_LANE_LSM      bpf: the BPF LSM is active; plain: it is not, and its programs load but enforce nothing
    MCPGUARD_LANE_PREEMPT  voluntary or full; empty: whatever the kernel chose
    MCPGUARD_LANE_DISKS    words of ext4, btrfs, overlay, tmpfs: mounted where `Lane.places` says
    MCPGUARD_LANE_HEADERS  not empty: programs can be compiled for this kernel here
    MCPGUARD_LANE_OUT      a folder whose content reaches the host, in .cache/vm/LANE

A test that is about something which this lane does not have calls `lane.not_here`; any other skip is a failure.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from asked import Lane

if "mcpguard.vm=1" not in Path("/proc/cmdline").read_text().split():
    pytest.exit("tests/vm/guest runs inside a guest only: make test-vm", returncode=4)


@pytest.fixture(scope="session")
def lane() -> Lane:
    """The lane as the host asked for it; a test must not trust it to be so."""
    asked = {name: os.environ[f"MCPGUARD_LANE_{name}"] for name in ("KERNEL", "LSM", "PREEMPT", "DISKS", "HEADERS")}
    return Lane(asked["KERNEL"], asked["LSM"], asked["PREEMPT"], tuple(asked["DISKS"].split()), bool(asked["HEADERS"]))


@pytest.fixture(scope="session")
def tier(lane: Lane) -> int:
    """The tier that this lane's kernel must give."""
    return 1 if lane.lsm == "bpf" else 2
