"""Which hooks of the kernel a policy cannot do without (tiers 1 and 2), and what it means where one is missing.

`backends.guard.HOOKS` says of each hook who needs it; here is who that is, and which kind of rule would not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mcpguard.model.access import Access, Effect
from mcpguard.model.coverage import Coverage, Need, Strength
from mcpguard.model.policy import Policy
from mcpguard.model.values import dataclass

DO = "use --tier 3, or take that out of the profile, or accept the gap with --best-effort"
# Rules of this profile protect mcpguard itself, and stand in every policy.
_OURS = "mcpguard"


@dataclass(frozen=True, slots=True)
class Needs:
    """A policy that needs some hooks: how to tell it, what of it needs them, and which kind of rule does not hold without."""

    asks: Callable[[Policy], bool]
    words: str
    kind: str


def _limits(access: Access) -> Callable[[Policy], bool]:
    def asks(policy: Policy) -> bool:
        rules = [rule for rule in policy.paths if rule.access & access and policy.rules[rule.rule].profile != _OURS]
        allowed = [rule for rule in rules if rule.effect is Effect.ALLOW]
        return len(allowed) < len(rules) or not any((rule.pattern, rule.exceptions) == ("/", ()) for rule in allowed)

    return asks


NEEDS: Mapping[Need, Needs] = {
    Need.READ: Needs(_limits(Access.READ), "there are names that it does not let be read", "files"),
    Need.EXECUTE: Needs(_limits(Access.EXECUTE), "there are files that it does not let be executed", "execute"),
    Need.RINGS: Needs(lambda policy: policy.system.io_uring, "it permits io_uring", "processes"),
    Need.DEBUGGERS: Needs(lambda policy: policy.system.debuggers, "it permits debuggers", "processes"),
}


def unmet(policy: Policy, lacking: Mapping[Need, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """By kind of rule, what of a policy does not hold where the kernel lacks these hooks."""
    found: dict[str, tuple[str, ...]] = {}
    for need, hooks in lacking.items():
        wanted = NEEDS[need]
        if wanted.asks(policy):
            found[wanted.kind] = (
                *found.get(wanted.kind, ()),
                f"{_lacks(hooks)}, which the policy needs: {wanted.words}",
            )
    return found


def held_without(row: Coverage, unmet: Mapping[str, tuple[str, ...]]) -> Coverage:
    """What is to be said of a kind of rule where hooks are missing."""
    gaps = unmet.get(row.kind)
    return Coverage(row.kind, Strength.NONE, row.by, gaps, DO) if gaps else row


def said_of(lacking: Mapping[Need, Sequence[str]], tier: int) -> list[str]:
    """For `doctor`: which policies do not start in a tier."""
    return [
        f"{_lacks(hooks)}, so no policy of which this is true starts in tier {tier}: {NEEDS[need].words}"
        for need, hooks in lacking.items()
    ]


def _lacks(hooks: Sequence[str]) -> str:
    return f"this kernel has no hook {' and no '.join(hooks)}"
