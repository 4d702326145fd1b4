"""Calls that only newer kernels have change nothing that is protected either."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pytest
from harness import need_root
from matrix import Duel, Task, duel
from world import World

pytestmark = pytest.mark.kernel

PROFILE = """\
name: matrix
extends: [dev-tools]
files:
  write: ["{workspace}"]
  execute: ["{workspace}"]
  readonly: ["{workspace}/locked"]
"""
# Since which Linux there is each.
NEWER = {"fchmodat2": (6, 6), "setxattrat": (6, 13), "removexattrat": (6, 13), "file_setattr": (6, 17)}


def tasks(world: World) -> Sequence[Task]:
    wanted = []
    for folder in ("locked", "free"):
        (world.project / folder).mkdir()
        for how in NEWER:
            path = world.project / folder / how
            path.write_text("original\n")
            os.setxattr(path, "user.old", b"1")
            wanted.append(Task(f"{folder} {how}", "set_by_newer_call", {"how": how, "path": str(path)}))
    return wanted


@pytest.fixture(scope="module")
def calls() -> Iterator[Duel]:
    need_root()
    with duel(PROFILE, tasks) as fought:
        yield fought


@pytest.mark.parametrize("how", NEWER)
def test_what_a_newer_call_would_change_stays_and_is_on_record(how: str, calls: Duel) -> None:
    locked = f"locked {how}"
    if tuple(map(int, os.uname().release.split(".")[:2])) < NEWER[how]:
        assert (calls.control[locked].errno, calls.guarded[locked].ok) == ("ENOSYS", False)
        return
    calls.assert_refused(locked)
    calls.assert_recorded(locked, "locked")
    calls.assert_allowed(f"free {how}")
