"""Terminals of others are out of reach, also those that were opened after the launch; own ones work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest
import terminals
from harness import need_root
from matrix import Duel, Task, duel
from outside import Outside
from terminals import HONEST, MADE, NAMELESS, REFUSED, TYPED
from world import World

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def ways() -> Iterator[Duel]:
    need_root()
    with contextlib.ExitStack() as stack:
        others = stack.enter_context(terminals.Terminals())
        stack.enter_context(terminals.one_open())

        def prepare(world: World) -> Sequence[Task]:
            outside = Outside(world, others.answers)
            stack.enter_context(outside.listening())
            node = Task(MADE, "make_terminal_node", {"door": outside.door, "folder": str(world.project)})
            return [*terminals.tasks(world, outside.door), node]

        yield stack.enter_context(duel(terminals.PROFILE, prepare))


@pytest.mark.parametrize("id", [*NAMELESS, *REFUSED])
def test_a_terminal_opened_after_the_launch_cannot_be_used(id: str, ways: Duel) -> None:
    assert TYPED in ways.control[id].out, ways.control[id]
    ways.assert_refused(id)
    assert TYPED not in ways.guarded[id].out


@pytest.mark.parametrize("id", NAMELESS)
def test_its_name_does_not_exist_inside(id: str, ways: Duel) -> None:
    assert ways.guarded[id].errno == "ENOENT"


@pytest.mark.parametrize("id", REFUSED)
def test_the_attempt_on_its_holder_is_on_record(id: str, ways: Duel) -> None:
    ways.assert_recorded(id)


def test_no_node_with_its_number_can_be_made(ways: Duel) -> None:
    ways.assert_refused(MADE)


def test_none_of_the_terminals_outside_is_in_sight(ways: Duel) -> None:
    assert len(ways.control["in sight"].out.split()) > 1
    assert ways.guarded["in sight"].out == "ptmx"


@pytest.mark.parametrize("id", HONEST)
def test_terminals_made_inside_work_and_leave_no_denial(id: str, ways: Duel) -> None:
    ways.assert_allowed(id)
