"""Terminals of others are out of reach, also those that were opened after the launch; own ones work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest
import terminals
from harness import SYSTEM_PYTHON, Sandbox, need_root, sandbox
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


def test_the_attempt_by_its_number_is_on_record(ways: Duel) -> None:
    ways.assert_recorded("number", "terminals of others")


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


# --- hosts that have /dev in another form -----------------------------------------------------------------------

NEW_DEVPTS = "mount -t devpts -o mode=620,gid=5,ptmxmode=666 devpts /dev/pts"
# As containers have it: a link beside, or the instance's own node bound to the usual place.
BARE = """mount -t tmpfs dev /dev; mkdir /dev/shm
    mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9; mknod -m 666 /dev/tty c 5 0"""
FORMS = {
    "link": f"{BARE}; mkdir /dev/pts; {NEW_DEVPTS}; ln -s pts/ptmx /dev/ptmx",
    "bound": f"{NEW_DEVPTS}; mount --bind /dev/pts/ptmx /dev/ptmx",
    "covered twice": f"{NEW_DEVPTS}; {NEW_DEVPTS}",
}
USES_OWN = """
import os, pty, sys
pty.spawn(["tty"])
master, slave = os.openpty()
again = os.open(os.ttyname(slave), os.O_RDWR | os.O_NOCTTY)
found = os.fstat(again)
print("made", os.stat("/dev/pts").st_dev == found.st_dev, found.st_gid, oct(found.st_mode & 0o777))
"""


@pytest.fixture
def box() -> Iterator[Sandbox]:
    need_root()
    with sandbox() as made:
        made.write_profile("matrix", terminals.PROFILE)
        yield made


def arranged(words: str) -> tuple[str, ...]:
    """Words that run a program where something else is mounted, in a namespace that leaves no trace."""
    return ("unshare", "-m", "sh", "-ec", f'{words}; exec "$@"', "sh")


@pytest.mark.parametrize("form", FORMS)
def test_terminals_are_made_inside_whatever_form_the_hosts_folder_has(form: str, box: Sandbox) -> None:
    box.prefix = arranged(FORMS[form])
    for run in (box.control, box.run):
        done = run([SYSTEM_PYTHON, "-c", USES_OWN])
        assert "/dev/pts/0" in done.out, done
        assert "made True 5 0o620" in done.out, done


def test_a_host_without_the_folder_is_no_trouble_and_a_second_place_is_taken_away(box: Sandbox) -> None:
    second = box.world.project / "second"
    second.mkdir()
    box.prefix = arranged(f"mount --bind /dev/pts '{second}'; {BARE}")
    with terminals.one_open() as name:
        act = ["sh", "-c", f"echo fake prompt > {second}/{name.rpartition('/')[2]}"]
        assert box.control(act).code == 0
        assert box.run(act).code != 0
        box.assert_told(f"second/{name.rpartition('/')[2]}", None)
    assert box.run(["sh", "-c", "echo honest"]).out == "honest\n"


def test_the_hosts_terminals_in_a_second_place_are_taken_away_too(box: Sandbox) -> None:
    second = box.world.project / "second"
    second.mkdir()
    box.prefix = arranged(f"mount --bind /dev/pts '{second}'")
    with terminals.one_open() as name:
        act = ["sh", "-c", f"echo fake prompt > {second}/{name.rpartition('/')[2]}"]
        assert box.control(act).code == 0
        assert box.run(act).code != 0
        box.assert_told(f"second/{name.rpartition('/')[2]}", None)
        assert box.run(["ls", "second"]).out == ""


@pytest.mark.parametrize("number", ["", "*"])
def test_a_rule_on_a_terminal_of_the_host_is_in_nobodys_way(number: str, box: Sandbox) -> None:
    with terminals.one_open() as name:
        denied = f"/dev/pts/{number}" if number else name
        box.write_profile("ruled", f'name: ruled\nextends: [dev-tools]\nfiles:\n  deny: ["{denied}"]\n')
        done = box.run(["sh", "-c", "echo honest"])
        assert (done.code, done.out) == (0, "honest\n"), done
