"""The names that can follow a place in the rules, as one bit-parallel machine.

A bit stands for every byte position of every pattern component that is open there. One step is two ANDs, a shift and an OR,
whatever the number of patterns. Pure.
"""

from __future__ import annotations

import operator

from mcpguard.policy.boundary import Items
from mcpguard.policy.patterns import Component


class Names:
    """The names that can begin at an opening, as one bit-parallel machine.

    `always` holds the items that any name leads to. Bit positions of one component lie next to each other, the last one
    says that the component has matched.
    """

    def __init__(self, items: Items, opening: frozenset[int]) -> None:
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
        for item in opening:
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
        self.certain = self.accept & self.loops
        self._shadows = self._find_shadows(items) if self.certain else {}

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

    def _find_shadows(self, items: Items) -> dict[int, int]:
        """For every component that has matched whatever follows (`*x*`): the positions of components whose match can no
        longer change the answer. Without them n such components would make 2**n states."""
        settled = [(bit, items.settled(following)) for bit, following in self.accepting]
        spans, begin = [], 0
        for bit, _ in settled:
            spans.append((2 * bit - 1) & ~((1 << begin) - 1))
            begin = bit.bit_length()
        shadows: dict[int, int] = {}
        for bit, ranks in settled:
            if ranks is not None and bit & self.certain:
                shadows[bit] = sum(
                    span
                    for span, (_, lower) in zip(spans, settled, strict=True)
                    if lower is not None and lower != ranks and all(map(operator.le, lower, ranks))
                )
        return shadows

    def reduce(self, bits: int) -> int:
        """Drop the positions that can no longer change the answer."""
        certain = bits & self.certain
        while certain:
            bit = certain & -certain
            bits &= ~self._shadows.get(bit, 0)
            certain = (certain ^ bit) & bits
        return bits

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
