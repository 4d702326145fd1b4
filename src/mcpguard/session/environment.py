"""The agent's environment: the user's, without what the profile removes."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

# A program that finds this knows that it is guarded; nothing trusts it.
SESSION_VARIABLE = "MCPGUARD_SESSION"


def scrub(environment: Mapping[str, str], remove: Sequence[str], keep: Sequence[str]) -> dict[str, str]:
    """Everything whose name matches no pattern of `remove`, or matches one of `keep`; letter case does not count."""
    return {name: value for name, value in environment.items() if not _matches(name, remove) or _matches(name, keep)}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    upper = name.upper()
    return any(fnmatch.fnmatchcase(upper, pattern.upper()) for pattern in patterns)
