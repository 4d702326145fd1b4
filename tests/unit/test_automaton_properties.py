"""The path automaton against an oracle that shares nothing with it: plain recursion over components and characters."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcpguard.model.access import Access, Effect
from mcpguard.model.policy import PathRule
from mcpguard.policy.automaton import Automaton

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
PROPERTY = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))


@PROPERTY
@given(RULES)
def test_it_agrees_with_an_independent_matcher_on_every_path_of_a_tree(rules: list[PathRule]) -> None:
    automaton = Automaton.build(rules)
    for path in TREE:
        assert automaton.decision(automaton.walk(path)).allowed == expected(rules, path), path


@PROPERTY
@given(RULES)
def test_the_named_rule_matches_the_path_and_has_the_effect_that_decides(rules: list[PathRule]) -> None:
    automaton = Automaton.build(rules)
    by_id = {rule.rule: rule for rule in rules}
    for path in TREE[::5]:
        decision = automaton.decision(automaton.walk(path))
        for access in (READ, WRITE, EXECUTE):
            named = by_id.get(decision.rule(access))
            if named is None:
                assert not any(matches(rule, path) for rule in rules if rule.effect is Effect.DENY)
                assert access not in decision.allowed
                continue
            assert matches(named, path)
            assert (named.effect is Effect.ALLOW) == (access in decision.allowed)


@PROPERTY
@given(RULES, st.one_of(DENIES, READONLYS))
def test_adding_a_deny_or_readonly_rule_never_allows_more(rules: list[PathRule], row: tuple[object, ...]) -> None:
    before, after = Automaton.build(rules), Automaton.build([*rules, PathRule(*row, 99)])  # type: ignore[arg-type]
    for path in TREE[::3]:
        assert not after.decision(after.walk(path)).allowed & ~before.decision(before.walk(path)).allowed


@PROPERTY
@given(RULES, ALLOWS)
def test_adding_an_allow_rule_never_denies_more(rules: list[PathRule], row: tuple[object, ...]) -> None:
    before, after = Automaton.build(rules), Automaton.build([*rules, PathRule(*row, 99)])  # type: ignore[arg-type]
    for path in TREE[::3]:
        assert not before.decision(before.walk(path)).allowed & ~after.decision(after.walk(path)).allowed


@PROPERTY
@given(RULES, st.randoms(use_true_random=False))
def test_the_order_of_rules_never_changes_the_tables(rules: list[PathRule], chance: random.Random) -> None:
    shuffled = list(rules)
    chance.shuffle(shuffled)
    assert Automaton.build(shuffled).to_bytes() == Automaton.build(rules).to_bytes()


@PROPERTY
@given(RULES)
def test_tables_read_back_decide_the_same(rules: list[PathRule]) -> None:
    automaton = Automaton.build(rules)
    again = Automaton.from_bytes(automaton.to_bytes())
    for path in TREE[::7]:
        assert again.decision(again.walk(path)) == automaton.decision(automaton.walk(path))


@PROPERTY
@given(RULES)
def test_where_it_says_uniform_nothing_below_differs(rules: list[PathRule]) -> None:
    automaton = Automaton.build(rules)
    for above in TREE[:43]:
        state = automaton.walk(above)
        if automaton.uniform(state):
            answers = {expected(rules, path) for path in _below(above)}
            assert answers <= {automaton.decision(state).allowed}, above


@PROPERTY
@given(RULES)
def test_below_children_that_it_does_not_name_nothing_differs(rules: list[PathRule]) -> None:
    automaton = Automaton.build(rules)
    for above in TREE[:43]:
        state = automaton.walk(above)
        named = automaton.named_children(state)
        if named is None:
            continue
        depth = len(split(above))
        for path in _below(above):
            if split(path)[depth] not in named:
                assert expected(rules, path) == automaton.decision(state).allowed, (above, path)


@PROPERTY
@given(RULES)
def test_it_knows_every_place_with_something_protected_below(rules: list[PathRule]) -> None:
    automaton = Automaton.build(rules)
    for above in TREE[:43]:
        if any(protects(rules, path) for path in _below(above)):
            assert automaton.decision(automaton.walk(above)).protected_below, above


@PROPERTY
@given(st.lists(st.one_of(ALLOWS, READONLYS, PATTERNS.map(lambda p: (Effect.DENY, ALL, p, ()))), max_size=4))
def test_what_is_not_pinned_stays_protected_at_any_other_place(rows: list[tuple[object, ...]]) -> None:
    rules = [PathRule(*row, number) for number, row in enumerate(rows, 1)]  # type: ignore[arg-type]
    automaton = Automaton.build(rules)
    for above in TREE[1:43]:
        if automaton.decision(automaton.walk(above)).pinned:
            continue
        for path in _below(above):
            if protects(rules, path):
                assert protects(rules, "/zz" + path.removeprefix(above)), (above, path)


def _below(above: str) -> list[str]:
    prefix = above.rstrip("/") + "/"
    return [path for path in TREE if path.startswith(prefix) and path != "/"]


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_the_matcher_for_many_rules_over_random_bytes(seed: int) -> None:
    chance = random.Random(seed)
    alphabet = "ab.[é\udcff -"  # a name starts with a letter: "." and ".." are no names
    quoted = {"[": "[[]"}

    def name(glob: bool) -> str:
        text = "a" + "".join(quoted.get(c, c) for c in chance.choices(alphabet, k=chance.randint(0, 3)))
        return {0: "*" + text, 1: text + "*", 2: "**"}.get(chance.randint(0, 9), text) if glob else text

    def pattern() -> str:
        return "/" + "/".join(name(glob=True) for _ in range(chance.randint(1, 3)))

    rules = [
        PathRule(effect, ALL if effect is Effect.DENY else chance.choice([READ, WRITE]), pattern(), (), number)
        for number, effect in enumerate(chance.choices(list(Effect), k=80), 1)
    ]
    automaton = Automaton.build(rules)
    for _ in range(400):
        names = ["a" + "".join(chance.choices(alphabet, k=chance.randint(0, 3))) for _ in range(chance.randint(0, 3))]
        path = "/" + "/".join(names)
        assert automaton.decision(automaton.walk(path)).allowed == expected(rules, path), path
