"""Our classes of fields behave as those of `dataclasses` do, wherever we use them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mcpguard.model import values


def classes(maker: Any, field: Any) -> tuple[type, type]:
    """The same two classes, made by `dataclasses` or by us."""

    @maker(frozen=True, slots=True)
    class Point:
        x: int
        y: tuple[int, ...] = (1,)

        def sum(self) -> int:
            return self.x + sum(self.y)

    @maker(slots=True)
    class Bag:
        name: str
        things: list[int] = field(default_factory=list)

    return Point, Bag


OURS = classes(values.dataclass, values.field)
THEIRS = classes(dataclasses.dataclass, dataclasses.field)


@pytest.mark.parametrize(("point", "bag"), [OURS, THEIRS], ids=["ours", "theirs"])
def test_they_are_made_compared_and_shown_alike(point: Any, bag: Any) -> None:
    one = point(3)
    assert (one.x, one.y, one.sum()) == (3, (1,), 4)
    assert one == point(x=3, y=(1,)) != point(4)
    assert one != (3, (1,)) and bag("a") == bag("a") != bag("a", [1])
    assert {one: 1}[point(3)] == 1
    assert repr(one).endswith("Point(x=3, y=(1,))")
    assert values.replace(one, x=9) == dataclasses.replace(one, x=9) == point(9)
    assert dataclasses.asdict(bag("a", [2])) == {"name": "a", "things": [2]}
    assert not hasattr(one, "__dict__")


@pytest.mark.parametrize(("point", "bag"), [OURS, THEIRS], ids=["ours", "theirs"])
def test_frozen_stays_as_it_is_and_defaults_are_not_shared(point: Any, bag: Any) -> None:
    with pytest.raises(AttributeError):
        point(3).x = 4
    with pytest.raises(AttributeError):
        del point(3).x
    with pytest.raises(TypeError):
        point()
    with pytest.raises(TypeError):
        values.replace(point(3), z=1)
    with pytest.raises(TypeError):
        hash(bag("a"))
    first, second = bag("a"), bag("a")
    first.things.append(1)
    first.name = "b"
    assert (second.name, second.things) == ("a", [])


def test_the_first_objects_of_a_class_and_all_further_ones_are_made_alike() -> None:
    point, bag = classes(values.dataclass, values.field)
    for number in range(100):
        assert point(number) == point(x=number) == point(number, y=(1,))
        assert (point(number).x, point(number, (2,)).y, bag(name="a").things) == (number, (2,), [])
        for wrong in (lambda: point(), lambda: point(1, (2,), 3), lambda: point(1, x=2), lambda: point(1, z=2)):
            with pytest.raises(TypeError):
                wrong()
