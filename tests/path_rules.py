"""Random path rules, and an oracle that shares nothing with the automaton: plain recursion over components and characters."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import strategies as st

from mcpguard.model.access import Access, Effect
from mcpguard.model.policy import PathRule

READ, WRITE, EXECUTE = Access.READ, Access.WRITE, Access.EXECUTE
ALL = READ | WRITE | EXECUTE
NAMES = ("a", "b", "ab", ".a", "ba.b", "aab")
TREE = ["/", *("/" + "/".join(names) for depth in (1, 2, 3) for names in itertools.product(NAMES, repeat=depth))]


def name_fits(pattern: str, name: str) -> bool:
    """One component against one name."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return name_fits(pattern[1:], name) or (name != "" and name_fits(pattern, name[1:]))
    if not name:
        return False
    if pattern[0] == "[":
        inside, rest = pattern[1:].split("]", 1)
        wanted = name[0] not in inside[1:] if inside[0] == "!" else name[0] in inside
        return wanted and name_fits(rest, name[1:])
    return pattern[0] in ("?", name[0]) and name_fits(pattern[1:], name[1:])


def names_fit(patterns: Sequence[str], names: Sequence[str]) -> bool:
    """Whether the patterns fit the names or a beginning of them."""
    if not patterns:
        return True
    if patterns[0] == "**":
        if len(patterns) == 1:
            return len(names) > 0
        return any(names_fit(patterns[1:], names[skip:]) for skip in range(len(names) + 1))
    return bool(names) and name_fits(patterns[0], names[0]) and names_fit(patterns[1:], names[1:])


def split(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def matches(rule: PathRule, path: str) -> bool:
    names = split(path)
    if not names_fit(split(rule.pattern), names):
        return False
    return not any(names_fit(split(exception), names) for exception in rule.exceptions)


def protects(rules: Sequence[PathRule], path: str) -> bool:
    return any(rule.effect is not Effect.ALLOW and matches(rule, path) for rule in rules)


def expected(rules: Sequence[PathRule], path: str) -> Access:
    """The four sentences of the profile's semantics, word for word."""
    matching = [rule for rule in rules if matches(rule, path)]
    allowed = Access.NONE
    for access in (READ, WRITE, EXECUTE):
        if any(rule.effect is Effect.DENY for rule in matching):
            continue
        if access is WRITE and any(rule.effect is Effect.READONLY for rule in matching):
            continue
        wanted = access | WRITE if access is READ else access
        if any(rule.effect is Effect.ALLOW and rule.access & wanted for rule in matching):
            allowed |= access
    return allowed


COMPONENTS = st.sampled_from(
    [*NAMES, "*", "**", "a*", "*b", "*a*", "?", "[ab]", "[!a]b", ".*", "a?b", "*.*", "?b", "*b*"]
)
PATTERNS = st.lists(COMPONENTS, max_size=3).map(lambda parts: "/" + "/".join(parts))
ALLOWS = st.builds(lambda p, a: (Effect.ALLOW, a, p, ()), PATTERNS, st.sampled_from([READ, WRITE, EXECUTE, ALL]))
READONLYS = PATTERNS.map(lambda pattern: (Effect.READONLY, WRITE, pattern, ()))
DENIES = st.builds(lambda p, e: (Effect.DENY, ALL, p, tuple(e)), PATTERNS, st.lists(PATTERNS, max_size=2))
RULES = st.lists(st.one_of(ALLOWS, ALLOWS, READONLYS, DENIES), max_size=7).map(
    lambda rows: [PathRule(*row, number) for number, row in enumerate(rows, 1)]
)
