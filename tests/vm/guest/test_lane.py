"""The guest is the machine that was asked for. Without this, every other result of a lane means nothing."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from asked import Lane

REPOSITORY = Path(__file__).parents[3]
OBJECTS = REPOSITORY / "src" / "mcpguard" / "_bpf"
DISKS = ("tmpfs", "ext4", "btrfs", "overlay")
MOUNTED = {
    "/proc": "proc",
    "/sys": "sysfs",
    "/dev": "devtmpfs",
    "/dev/pts": "devpts",
    "/dev/shm": "tmpfs",
    "/run": "tmpfs",
    "/tmp": "tmpfs",
    "/sys/fs/cgroup": "cgroup2",
    "/sys/fs/bpf": "bpf",
    "/sys/kernel/security": "securityfs",
    "/sys/kernel/tracing": "tracefs",
    "/sys/kernel/debug": "debugfs",
    "/": "overlay",
}

pytestmark = pytest.mark.kernel


def mounts() -> dict[str, tuple[str, str]]:
    """Mount point -> type of the file system, and the folder of it that is mounted; the topmost mount counts."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        found[words[4]] = (words[words.index("-") + 1], words[3])
    return found


def active_lsms() -> list[str]:
    return Path("/sys/kernel/security/lsm").read_text().strip().split(",")


def test_the_kernel_is_the_asked_one(lane: Lane) -> None:
    assert os.uname().release.startswith(f"{lane.kernel}.")


def test_bpf_is_an_active_lsm_exactly_when_asked(lane: Lane) -> None:
    assert lane.lsm in ("bpf", "plain")
    assert ("bpf" in active_lsms()) == (lane.lsm == "bpf")


def test_landlock_is_active() -> None:
    assert "landlock" in active_lsms()


def test_the_kernel_preempts_as_asked(lane: Lane) -> None:
    chosen = re.search(r"\((\w+)\)", Path("/sys/kernel/debug/sched/preempt").read_text())
    assert chosen is not None
    assert lane.preempt in ("", chosen[1])


def test_what_a_booted_system_mounts_is_mounted() -> None:
    now = mounts()
    assert {place: now.get(place, ("nothing",))[0] for place in MOUNTED} == MOUNTED


@pytest.mark.parametrize("disk", DISKS)
def test_each_file_system_is_what_it_is_called_and_takes_files(lane: Lane, disk: str) -> None:
    now = mounts()
    for place in lane.places(disk):
        assert now[str(place)][0] == disk
        file = place / "written"
        file.write_text("by the lane's own test")
        file.rename(place / "renamed")
        assert (place / "renamed").read_text() == "by the lane's own test"
        (place / "renamed").unlink()


def test_the_subvolumes_of_btrfs_are_two_mounts_of_one_file_system(lane: Lane) -> None:
    first, second = lane.places("btrfs")
    now = mounts()
    assert (now[str(first)][1], now[str(second)][1]) == ("/a", "/b")
    assert first.stat().st_dev != second.stat().st_dev, "each subvolume has a device number of its own"
    assert os.statvfs(first).f_blocks == os.statvfs(second).f_blocks > 0


def test_the_overlay_has_a_lower_layer(lane: Lane) -> None:
    (place,) = lane.places("overlay")
    assert (place / "below").read_text() == "from the lower layer\n"


def test_root_has_every_capability() -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    effective = re.search(r"^CapEff:\s+(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert effective is not None
    assert os.geteuid() == 0
    assert int(effective[1], 16) == (1 << (last + 1)) - 1


def test_cgroups_can_be_made_and_entered() -> None:
    leaf = Path("/sys/fs/cgroup/lane-test")
    leaf.mkdir()
    try:
        with subprocess.Popen(["sleep", "60"]) as process:
            (leaf / "cgroup.procs").write_text(str(process.pid))
            assert Path(f"/proc/{process.pid}/cgroup").read_text() == "0::/lane-test\n"
            process.kill()
    finally:
        leaf.rmdir()


def test_the_guest_reaches_itself_and_nobody_else() -> None:
    assert {name for _, name in socket.if_nameindex()} == {"lo", "dummy0"}
    with socket.socket(type=socket.SOCK_DGRAM) as probe, pytest.raises(OSError, match="unreachable"):
        probe.connect(("198.51.100.1", 9))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass


def test_the_compiled_programs_are_here() -> None:
    sources = {path.name.removesuffix(".c") for path in (REPOSITORY / "bpf").glob("*.bpf.c")}
    assert sources
    assert {path.name.removesuffix(".o") for path in OBJECTS.glob("*.bpf.o")} == sources


def test_the_kernel_describes_its_types() -> None:
    assert Path("/sys/kernel/btf/vmlinux").stat().st_size > 0


def test_the_host_cannot_be_written() -> None:
    """The host's files are the lower layer of `/`; what is written lands in the guest's memory."""
    options = Path("/proc/self/mountinfo").read_text()
    shares = [line for line in options.splitlines() if " - 9p " in line]
    assert [line.split()[4] for line in shares] == ["/run/vm/control"]
