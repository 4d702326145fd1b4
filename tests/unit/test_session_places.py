"""What the hooks are told of the mount table: which mounts a path leads to, and every name that the rules tell apart."""

from __future__ import annotations

import pytest

from mcpguard.broker import protocol
from mcpguard.kernel.mounts import Mount, visible
from mcpguard.model.access import Access, Effect
from mcpguard.model.plan import GuardPlan
from mcpguard.model.policy import PathRule
from mcpguard.model.values import replace
from mcpguard.policy.automaton import Automaton
from mcpguard.policy.image import image_of
from mcpguard.session import places
from mcpguard.wire import _abi


def mount(number: int, parent: int, point: str, root: str = "/", device: str | None = None) -> Mount:
    return Mount(device or f"0:{number}", root, point, read_only=False, id=number, parent=parent)


def seen(*mounted: Mount) -> set[str]:
    return {point for tree in places._trees(mounted).values() for point in tree.points}


def test_a_root_that_is_younger_than_what_moved_into_it_covers_nothing() -> None:
    booted = (mount(21, 29, "/sys"), mount(22, 29, "/proc"), mount(24, 29, "/dev"), mount(25, 24, "/dev/pts"))
    assert seen(*booted, mount(29, 1, "/")) == {"/", "/sys", "/proc", "/dev", "/dev/pts"}


def test_a_root_that_stands_on_itself_is_not_covered_by_itself() -> None:
    assert seen(mount(1, 1, "/"), mount(2, 1, "/proc")) == {"/", "/proc"}


@pytest.mark.parametrize(
    ("table", "left"),
    [
        ((mount(1, 0, "/"), mount(2, 1, "/a"), mount(3, 2, "/a")), {3, 1}),
        ((mount(1, 0, "/"), mount(2, 1, "/a/b"), mount(3, 1, "/a")), {3, 1}),
        ((mount(1, 0, "/"), mount(2, 1, "/a/b"), mount(4, 2, "/a/b/c"), mount(3, 1, "/a")), {3, 1}),
        ((mount(1, 0, "/"), mount(2, 1, "/a"), mount(3, 2, "/a"), mount(4, 3, "/a/b")), {4, 3, 1}),
        ((mount(1, 0, "/"), mount(2, 1, "/a"), mount(4, 2, "/a/b"), mount(3, 2, "/a")), {3, 1}),
        ((mount(1, 0, "/"), mount(2, 1, "/"), mount(3, 1, "/a"), mount(4, 2, "/b")), {2, 4}),
    ],
    ids=["on-it", "above-it", "above-what-it-stands-on", "below-the-newer", "below-the-older", "a-new-root"],
)
def test_what_no_path_leads_to_is_left_out(table: tuple[Mount, ...], left: set[int]) -> None:
    assert {one.id for one in visible(table)} == left


def automaton_and_values(*points: str) -> list[bytes]:
    allowed = PathRule(Effect.ALLOW, Access.READ, "/m", (), 1)
    denied = PathRule(Effect.DENY, Access.READ, "/m/5/secret", (), 2)
    automaton = Automaton.build([allowed, denied])
    return places._values(automaton, image_of(automaton.tables), places._Node(points=list(points)))


def test_a_rule_on_the_fifth_name_of_a_place_is_not_left_out() -> None:
    values = automaton_and_values(*(f"/m/{number}" for number in range(1, 6)))
    assert len(values) == 2
    assert all(_abi.MG_PLACE.unpack(value)[-1] == 2 for value in values)


def test_more_names_than_can_be_judged_are_said_to_be_more() -> None:
    rules = [PathRule(Effect.DENY, Access.READ, f"/m/{number}/secret", (), number) for number in range(1, 9)]
    automaton = Automaton.build(rules)
    node = places._Node(points=[f"/m/{number}" for number in range(1, 9)])
    values = places._values(automaton, image_of(automaton.tables), node)
    assert len(values) == _abi.MG_NAMES_LIMIT + 1
    assert _abi.MG_PLACE.unpack(values[0])[-1] > _abi.MG_NAMES_LIMIT


def test_of_the_hosts_terminals_only_the_own_one_has_a_place() -> None:
    table = (
        Mount("0:1", "/", "/", read_only=False, id=1),
        Mount("0:2", "/", "/dev/pts", read_only=False, id=2, parent=1, kind="devpts"),
        Mount("0:2", "/", "/srv/other/dev/pts", read_only=False, id=3, parent=1, kind="devpts"),
        Mount("0:2", "/9", "/dev/console", read_only=False, id=4, parent=1, kind="devpts"),
    )
    places_of = places.placed(table, [("0:2", 7), ("0:5", 0)])
    assert {(mount.device, mount.root, mount.point) for mount in places_of} == {
        ("0:1", "/", "/"),
        ("0:2", "/7", "/dev/pts/7"),
        ("0:5", "/0", "/dev/pts/0"),
    }


def test_a_request_may_bring_no_more_lines_than_a_policy_has_places_for() -> None:
    """What is over would become part of the policy beside it, which may be another session's."""
    automaton = Automaton.build([PathRule(Effect.ALLOW, Access.READ, "/", (), 1)])
    table = places.table_plan(automaton, "/tmp", [mount(1, 0, "/")])
    most = _abi.MG_LINE.size * _abi.MG_PAGE_LINES * _abi.MG_PAGES_LIMIT
    fitting, over = (replace(table, lines=bytes(most + more)) for more in (0, _abi.MG_LINE.size))
    sent = GuardPlan(fitting, table)
    assert protocol.guard_from_json(protocol.guard_to_json(sent)) == sent
    with pytest.raises(ValueError, match="impossible size"):
        protocol.guard_from_json(protocol.guard_to_json(GuardPlan(over, table)))
