"""The agent's environment: the user's, without what the profile removes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mcpguard.model.wildcards import Wildcards

# A program that finds this knows that it is guarded; nothing trusts it.
SESSION_VARIABLE = "MCPGUARD_SESSION"


def scrub(environment: Mapping[str, str], remove: Sequence[str], keep: Sequence[str]) -> dict[str, str]:
    """Everything whose name matches no pattern of `remove`, or matches one of `keep`; letter case does not count."""
    removed, kept = (Wildcards(pattern.upper() for pattern in patterns) for patterns in (remove, keep))
    return {name: value for name, value in environment.items() if name.upper() not in removed or name.upper() in kept}
