"""What of the user's environment the agent gets."""

from __future__ import annotations

import fnmatch

from hypothesis import given
from hypothesis import strategies as st

from mcpguard.session.environment import scrub

NAMES = st.text("AB_z", max_size=5)
PATTERNS = st.text("AB_z*?[]!", max_size=5)


def test_what_a_pattern_names_is_removed_unless_it_is_kept() -> None:
    mine = {"PATH": "1", "AWS_KEY": "2", "My_Token": "3", "GIT_CONFIG_COUNT": "4", "SECRET": "5", "A_SECRET_B": "6"}
    remove = ("AWS_*", "*_TOKEN", "secret", "*_SECRET_*", "GIT_CONFIG_*")
    assert scrub(mine, remove, ("GIT_CONFIG_*",)) == {"PATH": "1", "GIT_CONFIG_COUNT": "4"}


@given(st.lists(NAMES), st.lists(PATTERNS), st.lists(PATTERNS))
def test_names_are_matched_as_by_fnmatch(names: list[str], remove: list[str], keep: list[str]) -> None:
    def matches(name: str, patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(name.upper(), pattern.upper()) for pattern in patterns)

    left = {name for name in names if not matches(name, remove) or matches(name, keep)}
    assert scrub(dict.fromkeys(names, ""), remove, keep).keys() == left
