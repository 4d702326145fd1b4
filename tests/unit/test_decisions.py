"""The shared case file of decisions, in Python; `tests/kernel/test_parity.py` runs it in the kernel."""

from __future__ import annotations

import pytest
from decisions import Case, cases

from mcpguard.model.access import Access, Verdict
from mcpguard.policy.decide import decide_file

CASES = cases()
ACCESSES = (Access.READ, Access.WRITE, Access.EXECUTE)


def test_the_file_has_cases() -> None:
    assert sum(len(case.paths) for case in CASES[:-1]) > 200


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.about)
def test_the_automaton_says_what_is_written(case: Case) -> None:
    automaton = case.automaton
    for path in case.paths:
        decision = automaton.decision(automaton.walk(path.path))
        said = (decision.allowed, decision.read_rule, decision.write_rule, decision.execute_rule, decision.pinned)
        assert said == (path.allowed, *path.rules, path.pinned), path.path[:100]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.about)
def test_one_access_alone_is_judged_as_written(case: Case) -> None:
    automaton = case.automaton
    for path in case.paths:
        for access, rule in zip(ACCESSES, path.rules, strict=True):
            verdict = Verdict.ALLOW if access & path.allowed else Verdict.DENY
            assert decide_file(automaton, path.path, access) == (verdict, (rule,)), (path.path[:100], access)
            assert bool(access & path.taken) == (verdict is Verdict.DENY and rule != 0), (path.path[:100], access)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.about)
def test_places_are_alike_as_written(case: Case) -> None:
    automaton = case.automaton
    for one, other in case.same:
        assert automaton.same_below(automaton.walk(one), automaton.walk(other)), (one, other)
    for one, other in case.differ:
        assert not automaton.same_below(automaton.walk(one), automaton.walk(other)), (one, other)
