"""What "below" means."""

from __future__ import annotations

import pytest

from mcpguard.model.paths import is_below


@pytest.mark.parametrize(
    ("path", "directory", "below"),
    [
        ("/a", "/a", True),
        ("/a/b/c", "/a", True),
        ("/a", "/", True),
        ("/", "/", True),
        ("/ab", "/a", False),
        ("/a", "/a/b", False),
        ("/", "/a", False),
    ],
)
def test_a_path_is_below_a_directory_and_never_below_one_with_the_same_beginning(
    path: str, directory: str, below: bool
) -> None:
    assert is_below(path, directory) is below
