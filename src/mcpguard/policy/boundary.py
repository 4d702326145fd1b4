"""Rules as items: which rules a path has matched, and which can still match below it.

The first of two steps to an automaton. A boundary is what the rules know at the end of a path component: the ranks that
already hold for the whole subtree, and the items (places inside patterns) that are still open. `bytewise` turns the
boundaries that can be reached into states over bytes.

Ranks put every rule in one order, so that the highest rank that matches decides: allow < readonly < deny, and inside an
effect the more specific pattern, then the smaller rule id. Rank 0 stands for the default. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mcpguard.model.access import Access, Effect
from mcpguard.model.policy import PathRule
from mcpguard.policy.patterns import Component, parse, weight

ACCESSES = (Access.READ, Access.WRITE, Access.EXECUTE)
Ranks = tuple[int, int, int]
_LEVEL = {Effect.ALLOW: 0, Effect.READONLY: 1, Effect.DENY: 2}


@dataclass(frozen=True, slots=True)
class Boundary:
    """What is known at the end of a component.

    Attributes:
        held: per access, the highest rank that holds here and everywhere below, whatever follows.
        items: what can still change the answer.
    """

    held: Ranks
    items: frozenset[int]


@dataclass(frozen=True, slots=True)
class RankedRule:
    """A path rule in its place of the common order. `exceptions` take this rule away, never another."""

    rank: int
    access: Access
    pattern: tuple[Component, ...]
    exceptions: tuple[tuple[Component, ...], ...]
    source: PathRule

    @property
    def roaming(self) -> bool:
        """Holds a `**`: it can match at many depths, so it stays open in most states."""
        return any(part.any_depth for pattern in (self.pattern, *self.exceptions) for part in pattern)


def rank_rules(rules: Iterable[PathRule]) -> list[RankedRule]:
    """Order the rules; equal input gives equal ranks whatever its order, ranks begin at 1.

    Raises:
        PolicyError: a pattern cannot be read.
    """

    def key(rule: PathRule) -> tuple[object, ...]:
        parts = parse(rule.pattern)
        return (_LEVEL[rule.effect], weight(parts), len(parts), -rule.rule, rule.pattern, rule.exceptions, rule.access)

    return [_ranked(rank, rule) for rank, rule in enumerate(sorted(set(rules), key=key), 1)]


def _ranked(rank: int, rule: PathRule) -> RankedRule:
    access = rule.access
    if rule.effect is Effect.READONLY:
        access = Access.WRITE
    elif rule.effect is Effect.ALLOW and access & Access.WRITE:
        access |= Access.READ
    exceptions = tuple(parse(text) for text in rule.exceptions) if rule.effect is Effect.DENY else ()
    return RankedRule(rank, access, parse(rule.pattern), exceptions, rule)


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
        self._guarded: frozenset[int] = frozenset()
        first: list[int] = []
        for number, rule in enumerate(rules):
            begin = len(self.component)
            for pattern in (rule.pattern, *rule.exceptions):
                first.append(len(self.component))
                self._add(number, pattern, excepts=first[-1] != begin)
            if rule.exceptions:
                self._guarded |= frozenset(range(begin, len(self.component)))
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
        return self.settle((0, 0, 0), self.first)

    def settle(self, held: Ranks, items: frozenset[int]) -> Boundary:
        """Canonical boundary: what is decided for good goes to `held`, what can no longer matter is dropped."""
        ranks = list(held)
        guarded = items & self._guarded
        live = set(items - guarded)
        for item in items - guarded:
            if self.component[item] is None:
                live.discard(item)
                self._raise(ranks, item)
        if guarded:
            live |= self._settle_guarded(ranks, guarded)
        return Boundary((ranks[0], ranks[1], ranks[2]), frozenset(i for i in live if self._matters(ranks, i)))

    def _settle_guarded(self, ranks: list[int], guarded: frozenset[int]) -> set[int]:
        """The same for rules with exceptions: an exception that matches ends its rule for the whole subtree."""
        by_rule: dict[int, list[int]] = {}
        for item in guarded:
            by_rule.setdefault(self.owner[item], []).append(item)
        live: set[int] = set()
        for items in by_rule.values():
            exceptions = [item for item in items if self.excepts[item]]
            own = [item for item in items if not self.excepts[item]]
            if not own or any(self.component[item] is None for item in exceptions):
                continue
            matched = [item for item in own if self.component[item] is None]
            if matched and not exceptions:
                self._raise(ranks, matched[0])
            else:
                live.update(matched or own, exceptions)
        return live

    def _raise(self, ranks: list[int], item: int) -> None:
        rule = self.rules[self.owner[item]]
        for index, access in enumerate(ACCESSES):
            if access & rule.access and rule.rank > ranks[index]:
                ranks[index] = rule.rank

    def _matters(self, ranks: list[int], item: int) -> bool:
        rule = self.rules[self.owner[item]]
        return any(access & rule.access and rule.rank > ranks[i] for i, access in enumerate(ACCESSES))

    def verdict(self, boundary: Boundary) -> Ranks:
        """The deciding rank per access when the path ends here; a matched rule with exceptions still open counts."""
        ranks = list(boundary.held)
        for item in boundary.items:
            if self.component[item] is None:
                self._raise(ranks, item)
        return (ranks[0], ranks[1], ranks[2])
