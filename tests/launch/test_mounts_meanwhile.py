"""The child has its mount namespace before there is a plan; what is mounted or taken away meanwhile is in it nonetheless."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mcpguard.broker import child
from mcpguard.kernel import mounts

pytestmark = pytest.mark.kernel


def _seen(folder: Path) -> list[str]:
    return sorted(mount.point.rpartition("/")[2] for mount in mounts.table() if mount.point.startswith(f"{folder}/"))


def _in_between(folder: Path) -> None:
    """The broker's part, in a namespace that the host does not see: one mount comes and one goes while the child waits."""
    mounts.enter_private_namespace()
    mounts.mount_tmpfs(f"{folder}/goes", "size=64k")
    ready, orders = os.pipe(), os.pipe()
    if os.fork() == 0:
        outside, held = child._private_namespace(())
        os.write(ready[1], b"x")
        os.read(orders[0], 1)
        before = _seen(folder)
        same = child.mounted_outside() == outside
        child._renewed_namespace((), held)
        os.chdir(folder)
        told = [before, same, _seen(folder), _terminals(), os.readlink("/proc/self/ns/mnt") == _namespace(os.getppid())]
        (folder / "told").write_text(json.dumps(told))
        os._exit(0)
    os.read(ready[0], 1)
    place = mounts.open_exact(f"{folder}/goes")
    mounts.detach(place)
    mounts.mount_tmpfs(f"{folder}/comes", "size=64k")
    os.write(orders[1], b"x")
    os.wait()


def _namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/mnt")


def _terminals() -> list[str]:
    return sorted(name for name in os.listdir("/dev/pts") if name.isdigit())


def test_a_namespace_that_is_older_than_the_plan_is_made_anew(tmp_path: Path) -> None:
    for name in ("goes", "comes"):
        (tmp_path / name).mkdir()
    pid = os.fork()
    if pid == 0:
        try:
            _in_between(tmp_path)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    before, same, after, terminals, shared = json.loads((tmp_path / "told").read_text())
    assert before == ["goes"] and not same
    assert after == ["comes"]
    assert terminals == [] and not shared
    assert _seen(tmp_path) == []


def test_as_long_as_nothing_changes_the_table_is_the_same() -> None:
    assert child.mounted_outside() == child.mounted_outside()
