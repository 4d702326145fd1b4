"""Rules as items: which rules a path has matched, and which can still match below it.

The first of two steps to an automaton. A boundary is what the rules know at the end of a path component: what begins to
hold there for the whole subtree, and the items (places inside patterns) that are still open. `bytewise` turns the
boundaries that can be reached into states over bytes. What holds from an earlier component is no part of a boundary: the
walk carries it, else every matched rule would double the states below it.

Ranks put every rule in one order, so that the highest rank that matches decides: allow < readonly < deny, and inside an
effect the more specific pattern, then the smaller rule id. Rank 0 stands for the default. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mcpguard.model.access import ACCESSES, Access, Effect
from mcpguard.model.policy import PathRule
from mcpguard.model.values import dataclass
from mcpguard.policy.patterns import Component, parse, shape, weight

Ranks = tuple[int, int, int]
_LEVEL = {Effect.ALLOW: 0, Effect.READONLY: 1, Effect.DENY: 2}


class Boundary(NamedTuple):
    """What is known at the end of a component.

    Attributes:
        held: per access, the highest rank of the rules without exceptions that match from here on.
        matched, excepted: guards (see RankedRule) whose pattern, or one of whose exceptions, matches from here on.
        items: what can match further below.
    """

    held: Ranks
    matched: int
    excepted: int
    items: frozenset[int]


@dataclass(frozen=True, slots=True)
class RankedRule:
    """A path rule in its place of the common order.

    Attributes:
        exceptions: where they match they take this rule away, never another one.
        guard: one bit of a rule with exceptions, bits in the order of ranks; 0 for a rule without.
    """

    rank: int
    access: Access
    pattern: tuple[Component, ...]
    exceptions: tuple[tuple[Component, ...], ...]
    guard: int
    source: PathRule

    @property
    def roaming(self) -> bool:
        """Holds a `**`: it can match at many depths, so it stays open in most states."""
        return any(part.any_depth for pattern in (self.pattern, *self.exceptions) for part in pattern)

    @property
    def shape(self) -> int:
        """The most troublesome `patterns.shape` of its pattern and exceptions."""
        return max(shape(pattern) for pattern in (self.pattern, *self.exceptions))


def rank_rules(rules: Iterable[PathRule]) -> list[RankedRule]:
    """Order the rules; equal input gives equal ranks whatever its order, ranks begin at 1.

    Raises:
        PolicyError: a pattern cannot be read.
    """

    def key(rule: PathRule) -> tuple[object, ...]:
        parts = parse(rule.pattern)
        return (_LEVEL[rule.effect], weight(parts), len(parts), -rule.rule, rule.pattern, rule.exceptions, rule.access)

    ordered = sorted(set(rules), key=key)
    guards = [rule for rule in ordered if rule.effect is Effect.DENY and rule.exceptions]
    bits = {rule: 1 << bit for bit, rule in enumerate(guards)}
    return [_ranked(rank, rule, bits.get(rule, 0)) for rank, rule in enumerate(ordered, 1)]


def _ranked(rank: int, rule: PathRule, guard: int) -> RankedRule:
    access = rule.access
    if rule.effect is Effect.READONLY:
        access = Access.WRITE
    elif rule.effect is Effect.ALLOW and access & Access.WRITE:
        access |= Access.READ
    exceptions = tuple(parse(text) for text in rule.exceptions) if guard else ()
    return RankedRule(rank, access, parse(rule.pattern), exceptions, guard, rule)


class Items:
    """Every place inside every pattern of one factor, numbered.

    An item is a small integer: the place before a component, or the end of a pattern, where `component[item]` is None.

    Attributes:
        everywhere: the items that are open at any path whatever, because their pattern begins with `**`.
    """

    def __init__(self, rules: Sequence[RankedRule]) -> None:
        self.rules = rules
        self.component: list[Component | None] = []
        self.owner: list[int] = []
        self.excepts: list[bool] = []
        self.everywhere: frozenset[int] = frozenset()
        first: list[int] = []
        for number, rule in enumerate(rules):
            begin = len(self.component)
            for pattern in (rule.pattern, *rule.exceptions):
                first.append(len(self.component))
                self._add(number, pattern, excepts=first[-1] != begin)
        self._ends = frozenset(item for item, component in enumerate(self.component) if component is None)
        self._open_from = [self._open(item) for item in range(len(self.component))]
        self.first = frozenset(item for begin in first for item in self._open_from[begin])
        self.everywhere = frozenset(
            item for begin in first if len(self._open_from[begin]) > 1 for item in self._open_from[begin]
        )

    def _add(self, number: int, pattern: tuple[Component, ...], *, excepts: bool) -> None:
        self.component.extend(pattern)
        self.component.append(None)
        self.owner.extend([number] * (len(pattern) + 1))
        self.excepts.extend([excepts] * (len(pattern) + 1))

    def _open(self, item: int) -> tuple[int, ...]:
        """An item, with the one behind it when it stands before `**` (which may stand for nothing)."""
        component = self.component[item]
        return (item, item + 1) if component is not None and component.any_depth else (item,)

    def after(self, item: int) -> tuple[int, ...]:
        """Items open after the component at `item` was matched."""
        component = self.component[item]
        return self._open_from[item if component is not None and component.any_depth else item + 1]

    def start(self) -> Boundary:
        """The boundary of the path `/`."""
        return self.settle(self.first)

    def settle(self, items: frozenset[int]) -> Boundary:
        """The boundary where these items are open: ends are patterns that match from here on."""
        ends = items & self._ends
        if not ends:
            return Boundary((0, 0, 0), 0, 0, items)
        ranks = [0, 0, 0]
        matched = excepted = 0
        for item in ends:
            guard = self.rules[self.owner[item]].guard
            if not guard:
                self._raise(ranks, item)
            elif self.excepts[item]:
                excepted |= guard
            else:
                matched |= guard
        return Boundary((ranks[0], ranks[1], ranks[2]), matched, excepted, items - ends)

    def _raise(self, ranks: list[int], item: int) -> None:
        rule = self.rules[self.owner[item]]
        for index, access in enumerate(ACCESSES):
            if access & rule.access and rule.rank > ranks[index]:
                ranks[index] = rule.rank

    def settled(self, items: Iterable[int]) -> Ranks | None:
        """The ranks that hold once these items are open, when that is all they do; None when more can follow."""
        ranks = [0, 0, 0]
        for item in items:
            if item not in self._ends or self.rules[self.owner[item]].guard:
                return None
            self._raise(ranks, item)
        return (ranks[0], ranks[1], ranks[2])
