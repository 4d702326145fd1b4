"""The path automaton against an oracle that shares nothing with it: plain recursion over components and characters."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from path_rules import (
    ALL,
    ALLOWS,
    DENIES,
    EXECUTE,
    PATTERNS,
    READ,
    READONLYS,
    RULES,
    TREE,
    WRITE,
    expected,
    matches,
    protects,
    split,
)

from mcpguard.model.access import PATH_EFFECTS, Effect
from mcpguard.model.policy import PathRule
from mcpguard.policy.automaton import Automaton
from mcpguard.session.files_plan import beginnings
from mcpguard.session.files_state import Walk

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
def test_a_walk_of_a_tree_that_asks_for_few_names_judges_them_all_alike(rules: list[PathRule]) -> None:
    """With the names of the tree, of the patterns and some more, in each directory that they lead to."""
    walk = walk_of(rules)
    names = {name for path in TREE for name in split(path)} | {"\x01", "zz", "é", "\udcff", "-"}
    names |= {part for rule in rules for part in split(rule.pattern) if part != "**"}
    for above in TREE[:43]:
        state = walk.automaton.walk(above)
        assert walk.automaton.allowed(state) == walk.automaton.decision(state).allowed
        for name in names:
            quick, thorough = walk.children(state, [name])[0], walk.automaton.child(state, name)
            assert walk.automaton.decision(quick).allowed == walk.automaton.decision(thorough).allowed, (above, name)
            assert walk.automaton.same_below(quick, thorough), (above, name)


@pytest.mark.parametrize(
    "pattern, name",
    [
        ("/**/[^b]ecret", "secret"),
        ("/**/[!b]ecret", "secret"),
        ("/**/[^b]*.pem", "key.pem"),
        ("/**/???.key", "aé.key"),
        ("/**/id_[!a]?", "id_é"),
        ("/**/id_?", "id_\udcff"),
    ],
)
def test_bytes_and_negations_in_a_pattern_are_no_names_that_a_walk_leaves_out(pattern: str, name: str) -> None:
    """A shell's pattern would be about characters, and of `^`."""
    walk = walk_of([PathRule(Effect.ALLOW, ALL, "/", (), 1), PathRule(Effect.DENY, ALL, pattern, (), 2)])
    state = walk.children(walk.automaton.start, ["code"])[0]
    assert walk.automaton.decision(walk.children(state, ["ordinary"])[0]).allowed
    assert not walk.automaton.decision(walk.children(state, [name])[0]).allowed


def walk_of(rules: list[PathRule]) -> Walk:
    return Walk(Automaton.build(rules), (), {}, set(), {}, (), lambda visited, path: None, beginnings(rules))


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
        for number, effect in enumerate(chance.choices(PATH_EFFECTS, k=80), 1)
    ]
    automaton = Automaton.build(rules)
    for _ in range(400):
        names = ["a" + "".join(chance.choices(alphabet, k=chance.randint(0, 3))) for _ in range(chance.randint(0, 3))]
        path = "/" + "/".join(names)
        assert automaton.decision(automaton.walk(path)).allowed == expected(rules, path), path
