"""Names by patterns with `*`, `?` and `[...]`, as a shell has them; no expression is made that a launch would wait for."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable


class Wildcards:
    """Which names one of some patterns matches; letter case counts. Most are a word with a `*` at one end, or at both."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._whole: set[str] = set()
        self._others: set[str] = set()
        beginnings: list[str] = []
        ends: list[str] = []
        parts: list[str] = []
        for pattern in set(patterns):
            inner = pattern.strip("*")
            at_ends = (pattern.startswith("*"), pattern.endswith("*"))
            if set(inner) & set("*?[") or len(inner) + sum(at_ends) != len(pattern):
                self._others.add(pattern)
            elif all(at_ends):
                parts.append(inner)
            elif any(at_ends):
                (ends if at_ends[0] else beginnings).append(inner)
            else:
                self._whole.add(pattern)
        self._beginnings, self._ends, self._parts = tuple(beginnings), tuple(ends), tuple(parts)

    def __contains__(self, name: str) -> bool:
        """Asked of each name in a workspace; most have nothing in common with any pattern."""
        if name in self._whole or name.startswith(self._beginnings) or name.endswith(self._ends):
            return True
        # An expression that yields is set up for nothing where there are none.
        if self._parts and any(part in name for part in self._parts):
            return True
        return bool(self._others) and any(fnmatch.fnmatchcase(name, pattern) for pattern in self._others)
