"""Which lines of a mount table still say where something is."""

from __future__ import annotations

from pathlib import Path

from mcpguard.kernel import mounts


def points(tmp_path: Path, *lines: str) -> list[str]:
    """The ids of the visible mounts; a line is `id parent point`."""
    table = tmp_path / "mountinfo"
    rows = [line.split() for line in lines]
    table.write_text("".join(f"{id} {parent} 0:{id} / {point} rw - tmpfs none rw\n" for id, parent, point in rows))
    return [str(mount.id) for mount in mounts.visible(mounts.table(str(table)))]


def test_mounts_side_by_side_and_in_one_another_are_visible(tmp_path: Path) -> None:
    assert points(tmp_path, "1 0 /", "2 1 /a", "3 2 /a/b", "4 1 /ab") == ["1", "2", "3", "4"]


def test_the_order_of_the_lines_says_nothing(tmp_path: Path) -> None:
    assert points(tmp_path, "22 27 /proc", "24 22 /proc/sys", "27 1 /") == ["22", "24", "27"]


def test_what_is_mounted_over_is_not_visible(tmp_path: Path) -> None:
    assert points(tmp_path, "1 0 /", "2 1 /a", "3 2 /a") == ["1", "3"]
    assert points(tmp_path, "1 0 /", "2 1 /a", "3 2 /a", "4 3 /a/b") == ["1", "3", "4"]


def test_what_lies_below_a_place_that_was_mounted_over_is_not_visible(tmp_path: Path) -> None:
    assert points(tmp_path, "1 0 /", "2 1 /a/b", "3 2 /a/b/c", "4 1 /a") == ["1", "4"]
    assert points(tmp_path, "1 0 /", "2 1 /a", "3 2 /a/b", "4 2 /a") == ["1", "4"]


def test_what_is_hidden_hides_nothing(tmp_path: Path) -> None:
    assert points(tmp_path, "1 0 /", "2 1 /a", "3 2 /a/b", "4 2 /a", "5 4 /a/b/c") == ["1", "4", "5"]


def test_a_root_that_was_mounted_over_is_not_visible(tmp_path: Path) -> None:
    assert points(tmp_path, "1 0 /", "2 1 /", "3 1 /a", "4 2 /b") == ["2", "4"]
