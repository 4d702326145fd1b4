"""Paths of a file whose file system is mounted in several places."""

from __future__ import annotations

import pytest

from mcpguard.events.mounted import MountedPlaces
from mcpguard.kernel.mounts import Mount, device_number

TABLE = [
    Mount("8:1", "/", "/", False, 1, 1),
    Mount("8:1", "/home/me", "/second", False, 2, 1),
    Mount("8:1", "/home/me/open", "/third/open", False, 3, 1),
    Mount("0:30", "/", "/tmp", False, 4, 1),
    Mount("8:1", "/var", "/hidden", False, 5, 1),
    Mount("0:31", "/", "/hidden", False, 6, 5),
]


@pytest.mark.parametrize(
    ("path", "others"),
    [
        ("/home/me/open/private", ["/second/open/private", "/third/open/private"]),
        ("/second/open/private", ["/home/me/open/private", "/third/open/private"]),
        ("/third/open", ["/home/me/open", "/second/open"]),
        ("/home/me", ["/second"]),
        ("/home/mesa", []),
        ("/tmp/file", []),
        ("/var/file", []),
        ("/", []),
    ],
)
def test_the_other_names_are_those_of_all_places_that_can_be_seen(path: str, others: list[str]) -> None:
    assert list(MountedPlaces(lambda: TABLE).other_names(path)) == others


def test_a_name_inside_a_file_system_is_told_by_the_nearest_place() -> None:
    places = MountedPlaces(lambda: TABLE)
    assert places.path(device_number("8:1"), "/etc/passwd") == "/etc/passwd"
    assert places.path(device_number("8:1"), "/home/me/x") == "/second/x"
    assert places.path(device_number("0:30"), "/") == "/tmp"
    assert places.path(device_number("0:99"), "/x").endswith(")/x")
