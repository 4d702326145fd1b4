"""The agent's environment: the user's, without what the profile removes."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

# A program that finds this knows that it is guarded; nothing trusts it.
SESSION_VARIABLE = "MCPGUARD_SESSION"


def scrub(environment: Mapping[str, str], remove: Sequence[str], keep: Sequence[str]) -> dict[str, str]:
    """Everything whose name matches no pattern of `remove`, or matches one of `keep`; letter case does not count."""
    removed, kept = _Names(remove), _Names(keep)
    return {name: value for name, value in environment.items() if name.upper() not in removed or name.upper() in kept}


class _Names:
    """Names by patterns. Most are a word with a `*` at one end: a launch need not compile an expression for each of them."""

    def __init__(self, patterns: Sequence[str]) -> None:
        upper = {pattern.upper() for pattern in patterns}
        literal = {pattern for pattern in upper if not set(pattern.replace("*", "", 1)) & set("*?[")}
        self._whole = {pattern for pattern in literal if "*" not in pattern}
        self._beginnings = tuple(pattern[:-1] for pattern in literal if pattern.endswith("*"))
        self._ends = tuple(pattern[1:] for pattern in literal if pattern.startswith("*"))
        inside = {pattern for pattern in literal - self._whole if "*" not in (pattern[0], pattern[-1])}
        self._others = (upper - literal) | inside

    def __contains__(self, name: str) -> bool:
        return (
            name in self._whole
            or name.startswith(self._beginnings)
            or name.endswith(self._ends)
            or any(fnmatch.fnmatchcase(name, pattern) for pattern in self._others)
        )
