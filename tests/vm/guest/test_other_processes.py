"""A process outside, of the same user and with no more rights, is out of reach in the tiers of the hooks too, by every way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import arena
import pytest
from arena import CAPLESS, Duel, Outside, Task, World
from asked import Lane
from outside import victim
from test_escapes import LEAKS_CANARY, tasks_on

pytestmark = pytest.mark.kernel

PROFILE = """\
name: matrix
extends: [dev-tools]
files:
  write: ["{workspace}"]
  execute: ["{workspace}"]
"""
# To enter a namespace of somebody else takes a capability, which the acts of the control have not.
WAYS = [task.id for task in tasks_on(1, 0, (0, 0)) if task.id != "namespace"]


@pytest.fixture(scope="module")
def touched(lane: Lane) -> Iterator[Duel]:
    with contextlib.ExitStack() as stack:

        def prepare(world: World, outside: Outside) -> Sequence[Task]:
            found = stack.enter_context(victim(world, CAPLESS))
            return [task for task in tasks_on(found.pid, found.fd, found.stack) if task.id in WAYS]

        yield stack.enter_context(arena.fight(PROFILE, prepare, Path("/vmtmp/worlds")))


@pytest.mark.parametrize("id", WAYS)
def test_a_process_outside_cannot_be_touched(id: str, touched: Duel) -> None:
    touched.assert_refused(id)
    touched.assert_recorded(id)


@pytest.mark.parametrize("id", LEAKS_CANARY)
def test_a_process_outside_keeps_its_secrets(id: str, touched: Duel) -> None:
    canaries = (*touched.free.canaries.values(), *touched.caged.canaries.values())
    assert any(canary in touched.control[id].out for canary in canaries), touched.control[id]
    assert not any(canary in touched.guarded[id].out for canary in canaries)
