"""Boundaries to states over bytes: the second step to an automaton.

One state is made for every place inside a name that the rules can tell apart; `names` says which these are. Once a single
literal name is left, its states are laid out as a chain: most states of a real policy are such chains. Pure.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence

from mcpguard.model.access import ACCESSES
from mcpguard.policy.boundary import Boundary, Items, RankedRule
from mcpguard.policy.names import Names
from mcpguard.policy.packing import pack_rows
from mcpguard.policy.tables import (
    ALLOWS,
    EXCEPTS_BELOW,
    NOTHING,
    PINNED,
    PROTECTED_BELOW,
    PROTECTS,
    Factor,
    halves,
)


class TooManyStates(Exception):
    """The factor grew over its bound.

    Attributes:
        costly: the rules that were open in most boundaries, the costliest first.
    """

    def __init__(self, costly: list[RankedRule]) -> None:
        super().__init__("too many states")
        self.costly = costly


def build_factor(rules: Sequence[RankedRule], protect_from: int, max_states: int) -> Factor:
    """Compile some rules into one deterministic automaton.

    Raises:
        TooManyStates: more than `max_states` states would be needed.
    """
    machine = _Machine(Items(rules), max_states)
    start = machine.run()
    flags = _Flags(machine, protect_from)
    return machine.factor(start, flags)


class _Machine:
    """States and edges as they are found.

    Boundaries with the same open items share what follows, an opening. `ends[s]` is the boundary when the path ends at
    state s, or `~n` when s stands just after the slash that begins opening n.
    """

    def __init__(self, items: Items, max_states: int) -> None:
        self.items = items
        self.max_states = max_states
        self.boundaries: list[Boundary] = []
        self.opening: list[int] = []
        self.openings: list[frozenset[int]] = []
        self.entries: list[int] = []
        self.children: list[set[int]] = []
        self.ends: list[int] = []
        self.other: list[int] = []
        self.slash: list[int] = []
        self.single: list[tuple[int, int, int]] = []
        self.fans: list[tuple[int, list[tuple[int, int]]]] = []
        self._boundary_numbers: dict[Boundary, int] = {}
        self._opening_numbers: dict[frozenset[int], int] = {}

    def run(self) -> int:
        """Find every state; returns the one of the path `/`."""
        start = self.place(self.boundary(self.items.start()))
        done = 0
        while done < len(self.openings):
            self._expand(done)
            done += 1
        return start

    def boundary(self, boundary: Boundary) -> int:
        """The number of a boundary."""
        number = self._boundary_numbers.get(boundary)
        if number is None:
            number = len(self.boundaries)
            self._boundary_numbers[boundary] = number
            self.boundaries.append(boundary)
            self.opening.append(self._opening(boundary.items))
        return number

    def _opening(self, items: frozenset[int]) -> int:
        number = self._opening_numbers.get(items)
        if number is None:
            number = len(self.openings)
            self._opening_numbers[items] = number
            self.openings.append(items)
            self.children.append(set())
            self.entries.append(self._state(~number, len(self.ends)))
        return number

    def _state(self, end: int, slash: int) -> int:
        """A new state; bytes that nobody names stay in it until `other` is set."""
        if len(self.ends) >= self.max_states:
            raise TooManyStates(self._costly())
        self.ends.append(end)
        self.slash.append(slash)
        self.other.append(len(self.other))
        return len(self.other) - 1

    def place(self, boundary: int) -> int:
        """A new state at which the path may end."""
        return self._state(boundary, self.entries[self.opening[boundary]])

    def _expand(self, number: int) -> None:
        """All states between the slash that begins an opening and the end of the next name."""
        _Expansion(self, number, Names(self.items, self.openings[number])).run()

    def target(self, opening: int, items: frozenset[int]) -> int:
        """The boundary reached from an opening with these items open."""
        number = self.boundary(self.items.settle(items))
        self.children[opening].add(number)
        return number

    def chain(self, tail: bytes, target: int, sink: int) -> int:
        """States for a name of which one continuation counts; returns the first."""
        begin = len(self.ends)
        if begin + len(tail) >= self.max_states:
            raise TooManyStates(self._costly())
        length = len(tail)
        self.ends.extend([self.ends[sink]] * length)
        self.slash.extend([self.slash[sink]] * length)
        self.other.extend([sink] * (length + 1))
        self.single.extend((begin + index, byte, begin + index + 1) for index, byte in enumerate(tail))
        self.ends.append(target)
        self.slash.append(self.entries[self.opening[target]])
        return begin

    def _costly(self) -> list[RankedRule]:
        owner = self.items.owner
        counts: Counter[int] = Counter()
        for items in self.openings:
            counts.update({owner[item] for item in items})
        return [self.items.rules[number] for number, _ in counts.most_common(5)]

    def factor(self, start: int, flags: _Flags) -> Factor:
        """Pack the states."""
        outputs: dict[tuple[int, ...], int] = {}
        of_end = {end: outputs.setdefault(flags.output(end), len(outputs)) for end in dict.fromkeys(self.ends)}
        base, owner, following = pack_rows(len(self.ends), self.single, self.fans)
        out = array("I", [of_end[end] for end in self.ends])
        values = array("I", [value for output in outputs for value in output])
        return Factor(start, base, array("I", self.other), array("I", self.slash), out, owner, following, values)


class _Expansion:
    """The names that can begin at one opening."""

    def __init__(self, machine: _Machine, number: int, names: Names) -> None:
        self.machine = machine
        self.number = number
        self.names = names
        self.targets: dict[int, int] = {}
        self.sink = machine.place(self._target(0))
        self.states: dict[int, int] = {0: self.sink}
        self.waiting: list[tuple[int, int]] = []

    def run(self) -> None:
        self.waiting.append((self.names.first, self.machine.entries[self.number]))
        while self.waiting:
            bits, state = self.waiting.pop()
            self._connect(bits, state)

    def _connect(self, bits: int, state: int) -> None:
        names = self.names
        other = self._place(names.step_other(bits))
        self.machine.other[state] = other
        edges = [(char, self._place(names.step(bits, char))) for char in sorted(names.named(bits))]
        edges = [edge for edge in edges if edge[1] != other]
        if len(edges) == 1:
            self.machine.single.append((state, *edges[0]))
        elif edges:
            self.machine.fans.append((state, edges))

    def _place(self, bits: int) -> int:
        """The state of a set of open positions."""
        bits = self.names.reduce(bits)
        state = self.states.get(bits)
        if state is None:
            tail = self.names.tail(bits)
            if tail is not None:
                state = self.machine.chain(tail, self._target(bits << len(tail)), self.sink)
            else:
                state = self.machine.place(self._target(bits))
                self.waiting.append((bits, state))
            self.states[bits] = state
        return state

    def _target(self, bits: int) -> int:
        accepted = bits & self.names.accept
        number = self.targets.get(accepted)
        if number is None:
            number = self.machine.target(self.number, self.names.after(accepted))
            self.targets[accepted] = number
        return number


class _Flags:
    """What lies at every boundary and below every opening."""

    def __init__(self, machine: _Machine, protect_from: int) -> None:
        self._items = machine.items
        self._boundaries = machine.boundaries
        self._opening = machine.opening
        self._protect_from = protect_from
        self._here = [self._meanings(boundary) for boundary in machine.boundaries]
        self._below = self._close(machine.children)

    def _meanings(self, boundary: Boundary) -> int:
        flags = EXCEPTS_BELOW if boundary.excepted else 0
        for index, rank in enumerate(boundary.held):
            meaning = PROTECTS if rank >= self._protect_from else ALLOWS if rank else NOTHING
            flags |= meaning << (3 * index)
        for rule in self._items.rules if boundary.matched else ():
            if rule.guard & boundary.matched:
                flags |= sum(PROTECTS << (3 * index) for index, access in enumerate(ACCESSES) if access & rule.access)
        return flags

    def output(self, end: int) -> tuple[int, ...]:
        """One row of `tables`; after a slash nothing matches, as no path ends there."""
        if end < 0:
            return (0, 0, 0, 0, 0, 0, 0, self._below[~end])
        boundary, below = self._boundaries[end], self._below[self._opening[end]]
        flags = below | self._here[end] & ~EXCEPTS_BELOW
        if below & (PROTECTS | PROTECTS << 3 | PROTECTS << 6):
            flags |= PROTECTED_BELOW
            if self._is_pinned(boundary):
                flags |= PINNED
        return (*boundary.held, *halves(boundary.matched), *halves(boundary.excepted), flags)

    def _is_pinned(self, boundary: Boundary) -> bool:
        """A protecting pattern is under way here that would not be at another place."""
        items = self._items
        return any(
            items.rules[items.owner[item]].rank >= self._protect_from and not items.excepts[item]
            for item in boundary.items - items.everywhere
        )

    def _close(self, children: list[set[int]]) -> list[int]:
        """What can be met below each opening: grows until nothing changes."""
        below = [0] * len(children)
        parents: list[list[int]] = [[] for _ in children]
        for parent, found in enumerate(children):
            for boundary in found:
                below[parent] |= self._here[boundary]
                parents[self._opening[boundary]].append(parent)
        waiting = list(range(len(children)))
        while waiting:
            opening = waiting.pop()
            for parent in parents[opening]:
                if below[parent] | below[opening] != below[parent]:
                    below[parent] |= below[opening]
                    waiting.append(parent)
        return below
