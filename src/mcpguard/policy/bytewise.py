"""Boundaries to states over bytes: the second step to an automaton.

One state is made for every place inside a name that the rules can tell apart. The names that may follow a boundary are
matched by one bit-parallel machine: a bit for every byte position of every pattern component that is open there. One step
is two ANDs, a shift and an OR, whatever the number of patterns. Once a single literal name is left, its states are laid
out as a chain without running the machine: most states of a real policy are such chains. Pure.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence

from mcpguard.policy.boundary import Boundary, Items, RankedRule
from mcpguard.policy.patterns import Component
from mcpguard.policy.tables import ALLOWS, NOBODY, NOTHING, PINNED, PROTECTED_BELOW, PROTECTS, Factor


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


class _Names:
    """The names that can follow a boundary, as one bit-parallel machine.

    `always` holds the items that any name leads to. Bit positions of one component lie next to each other, the last one
    says that the component has matched.
    """

    def __init__(self, items: Items, boundary: Boundary) -> None:
        self.always: set[int] = set()
        self.accepting: list[tuple[int, list[int]]] = []
        self.first = 0
        self.loops = 0
        self.default = 0
        self.chars: list[frozenset[int]] = []
        self.takes: dict[int, int] = {}
        self.tails: dict[int, bytes] = {}
        negated: list[tuple[int, frozenset[int]]] = []
        by_text: dict[str, tuple[Component, list[int]]] = {}
        for item in boundary.items:
            component = items.component[item]
            if component is None:
                self.always.add(item)
            elif component.any_depth or component.any_name:
                self.always.update(items.after(item))
            else:
                by_text.setdefault(component.text, (component, []))[1].extend(items.after(item))
        for text in sorted(by_text):
            component, following = by_text[text]
            self._lay_out(component, following, negated)
        self._apply(negated)
        self.accept = sum(bit for bit, _ in self.accepting)

    def _lay_out(self, component: Component, following: list[int], negated: list[tuple[int, frozenset[int]]]) -> None:
        offset = len(self.chars)
        self.first |= 1 << offset
        self.loops |= component.loops << offset
        for index, token in enumerate(component.tokens):
            bit = 1 << (offset + index)
            if token.negated:
                negated.append((bit, token.chars))
            else:
                for char in token.chars:
                    self.takes[char] = self.takes.get(char, 0) | bit
            self.chars.append(token.chars)
            if component.literal is not None:
                self.tails[bit] = component.literal[index:]
        self.chars.append(frozenset())
        self.accepting.append((1 << (offset + len(component.tokens)), following))

    def _apply(self, negated: list[tuple[int, frozenset[int]]]) -> None:
        """A negated set takes every byte but its own, so also the bytes that other sets name."""
        for bit, chars in negated:
            self.default |= bit
            for char in chars:
                self.takes.setdefault(char, 0)
        for bit, chars in negated:
            for char in self.takes:
                if char not in chars:
                    self.takes[char] |= bit

    def step(self, bits: int, char: int) -> int:
        return ((bits & self.takes[char]) << 1) | (bits & self.loops)

    def step_other(self, bits: int) -> int:
        """For every byte that `named(bits)` does not list."""
        return ((bits & self.default) << 1) | (bits & self.loops)

    def named(self, bits: int) -> set[int]:
        """The bytes that the open positions name."""
        named: set[int] = set()
        while bits:
            low = bits & -bits
            named |= self.chars[low.bit_length() - 1]
            bits ^= low
        return named

    def after(self, bits: int) -> frozenset[int]:
        """The items open when the name ends here."""
        following = set(self.always)
        for bit, items in self.accepting:
            if bits & bit:
                following.update(items)
        return frozenset(following)


class _Machine:
    """States and edges as they are found.

    `ends[s]` is the boundary when the path ends at state s, or `~b` when s stands just after the slash behind boundary b.
    """

    def __init__(self, items: Items, max_states: int) -> None:
        self.items = items
        self.max_states = max_states
        self.boundaries: list[Boundary] = []
        self.entries: list[int] = []
        self.children: list[set[int]] = []
        self.ends: list[int] = []
        self.other: list[int] = []
        self.slash: list[int] = []
        self.single: list[tuple[int, int, int]] = []
        self.fans: list[tuple[int, list[tuple[int, int]]]] = []
        self._number: dict[Boundary, int] = {}

    def run(self) -> int:
        """Find every state; returns the one of the path `/`."""
        first = self._boundary(self.items.start())
        start = self.entries[first]
        if self.boundaries[first].items:
            start = self._state(first)
            self.other[start] = start
        done = 0
        while done < len(self.boundaries):
            if self.boundaries[done].items:
                self._expand(done)
            done += 1
        return start

    def _boundary(self, boundary: Boundary) -> int:
        """The number of a boundary; a new one gets its entry state. One that cannot change is one looping state."""
        number = self._number.get(boundary)
        if number is None:
            number = len(self.boundaries)
            self._number[boundary] = number
            self.boundaries.append(boundary)
            self.children.append(set())
            self.entries.append(len(self.ends))
            state = self._state(number)
            self.other[state] = state
            if boundary.items:
                self.ends[state] = ~number
        return number

    def _state(self, boundary: int) -> int:
        if len(self.ends) >= self.max_states:
            raise TooManyStates(self._costly())
        self.ends.append(boundary)
        self.slash.append(self.entries[boundary])
        self.other.append(0)
        return len(self.ends) - 1

    def _expand(self, number: int) -> None:
        """All states between the slash after a boundary and the end of the next name."""
        names = _Names(self.items, self.boundaries[number])
        _Expansion(self, number, names).run()

    def target(self, parent: int, items: frozenset[int]) -> int:
        """The boundary reached from a parent with these items open."""
        number = self._boundary(self.items.settle(self.boundaries[parent].held, items))
        self.children[parent].add(number)
        return number

    def sink(self, boundary: int) -> int:
        """The state of names that no open component can match any more."""
        if not self.boundaries[boundary].items:
            return self.entries[boundary]
        state = self._state(boundary)
        self.other[state] = state
        return state

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
        self.slash.append(self.entries[target])
        return begin

    def _costly(self) -> list[RankedRule]:
        owner = self.items.owner
        counts: Counter[int] = Counter()
        for boundary in self.boundaries:
            counts.update({owner[item] for item in boundary.items})
        return [self.items.rules[number] for number, _ in counts.most_common(5)]

    def factor(self, start: int, flags: _Flags) -> Factor:
        """Pack the states."""
        outputs: dict[tuple[int, int, int, int], int] = {}
        of_end = {end: outputs.setdefault(flags.output(end), len(outputs)) for end in dict.fromkeys(self.ends)}
        base, owner, following = pack_rows(len(self.ends), self.single, self.fans)
        out = array("I", [of_end[end] for end in self.ends])
        values = array("I", [value for output in outputs for value in output])
        return Factor(start, base, array("I", self.other), array("I", self.slash), out, owner, following, values)


class _Expansion:
    """The names below one boundary."""

    def __init__(self, machine: _Machine, number: int, names: _Names) -> None:
        self.machine = machine
        self.number = number
        self.names = names
        self.targets: dict[int, int] = {}
        self.sink = machine.sink(self._target(0))
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
        state = self.states.get(bits)
        if state is None:
            tail = self.names.tails.get(bits)
            if tail is not None:
                state = self.machine.chain(tail, self._target(bits << len(tail)), self.sink)
            else:
                state = self.machine._state(self._target(bits))
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
    """What lies at and below every boundary."""

    def __init__(self, machine: _Machine, protect_from: int) -> None:
        items = machine.items
        self._ranks = [items.verdict(boundary) for boundary in machine.boundaries]
        self._below = self._close(machine.children, [self._own(ranks, protect_from) for ranks in self._ranks])
        self._here = [self._own(ranks, protect_from) for ranks in self._ranks]
        self._pinned = [_is_pinned(items, boundary, protect_from) for boundary in machine.boundaries]

    @staticmethod
    def _own(ranks: tuple[int, int, int], protect_from: int) -> int:
        flags = 0
        for index, rank in enumerate(ranks):
            meaning = PROTECTS if rank >= protect_from else ALLOWS if rank else NOTHING
            flags |= meaning << (3 * index)
        return flags

    @staticmethod
    def _close(children: list[set[int]], here: list[int]) -> list[int]:
        """What can be met strictly below each boundary: grows until nothing changes."""
        below = [0] * len(here)
        parents: list[list[int]] = [[] for _ in here]
        for parent, below_it in enumerate(children):
            for child in below_it:
                parents[child].append(parent)
        waiting = list(range(len(here)))
        while waiting:
            child = waiting.pop()
            met = below[child] | here[child]
            for parent in parents[child]:
                if below[parent] | met != below[parent]:
                    below[parent] |= met
                    waiting.append(parent)
        for number, below_it in enumerate(children):
            if not below_it:
                below[number] = here[number]
        return below

    def output(self, end: int) -> tuple[int, int, int, int]:
        """Ranks and flags of a state; after a slash there are no ranks, as no path ends there."""
        number = end if end >= 0 else ~end
        below = self._below[number]
        if end < 0:
            return 0, 0, 0, below
        flags = below | self._here[number]
        if below & (PROTECTS | PROTECTS << 3 | PROTECTS << 6):
            flags |= PROTECTED_BELOW
            if self._pinned[number]:
                flags |= PINNED
        return (*self._ranks[number], flags)


def _is_pinned(items: Items, boundary: Boundary, protect_from: int) -> bool:
    """A protecting rule is under way or holds here that would not be at another place."""
    if max(boundary.held) >= protect_from:
        return True
    return any(
        items.rules[items.owner[item]].rank >= protect_from and not items.excepts[item]
        for item in boundary.items - items.everywhere
    )


Packed = tuple["array[int]", "array[int]", "array[int]"]


def pack_rows(states: int, single: list[tuple[int, int, int]], fans: list[tuple[int, list[tuple[int, int]]]]) -> Packed:
    """Lay the edges of all states over one another in one array of cells.

    Args:
        states: how many.
        single: (state, byte, target) of states with one edge.
        fans: (state, [(byte, target), ...]) of states with more.

    Returns:
        base per state; owner and target per cell. 256 cells follow the last base.
    """
    base = array("I", bytes(4 * states))
    owner: dict[int, int] = {}
    target: dict[int, int] = {}
    used = 0
    for state, edges in sorted(fans, key=lambda fan: -len(fan[1])):
        blocked = 0
        for byte, _ in edges:
            blocked |= used >> byte
        row = (~blocked & (blocked + 1)).bit_length() - 1
        base[state] = row
        for byte, following in edges:
            used |= 1 << (row + byte)
            owner[row + byte] = state
            target[row + byte] = following
    cell = 255
    for state, byte, following in single:
        while cell in owner:
            cell += 1
        base[state] = cell - byte
        owner[cell] = state
        target[cell] = following
        cell += 1
    size = max(base) + 256
    owners = array("I", [NOBODY]) * size
    targets = array("I", bytes(4 * size))
    for index, state in owner.items():
        owners[index] = state
        targets[index] = target[index]
    return base, owners, targets
