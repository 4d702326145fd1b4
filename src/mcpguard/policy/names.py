"""The names that can follow a place in the rules, as one bit-parallel machine.

A bit stands for every byte position of every pattern component that is open there. One step is two ANDs, a shift and an OR,
whatever the number of patterns. Pure.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator

from mcpguard.policy.boundary import Items
from mcpguard.policy.patterns import Component


class Names:
    """The names that can begin at an opening, as one bit-parallel machine.

    `always` holds the items that any name leads to. Bit positions of one component lie next to each other, the last one
    says that the component has matched. A set of bits may be ten thousand components wide, so what is known of one position
    is kept by its number, and sets are made in one go.
    """

    def __init__(self, items: Items, opening: frozenset[int]) -> None:
        self.always: set[int] = set()
        self.chars: list[frozenset[int]] = []
        self._following: dict[int, list[int]] = {}
        self._tails: dict[int, bytes] = {}
        self._first: list[int] = []
        self._looping: list[int] = []
        self._taking: dict[int, list[int]] = {}
        negated: list[int] = []
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
        size = len(self.chars)
        self.first, self.loops = _bits(self._first, size), _bits(self._looping, size)
        self.takes = {char: _bits(positions, size) for char, positions in self._taking.items()}
        self.default = _bits(negated, size)
        self._apply(negated)
        self.accept = _bits(self._following, size)
        self.certain = self.accept & self.loops
        self._shadows = self._find_shadows(items) if self.certain else {}

    def _lay_out(self, component: Component, following: list[int], negated: list[int]) -> None:
        offset = len(self.chars)
        self._first.append(offset)
        self._looping.extend(offset + index for index in _positions(component.loops))
        for position, token in enumerate(component.tokens, offset):
            if token.negated:
                negated.append(position)
            else:
                for char in token.chars:
                    self._taking.setdefault(char, []).append(position)
            self.chars.append(token.chars)
            if component.literal is not None:
                self._tails[position] = component.literal[position - offset :]
        self.chars.append(frozenset())
        self._following[len(self.chars) - 1] = following

    def _apply(self, negated: list[int]) -> None:
        """A negated set takes every byte but its own, so also the bytes that other sets name."""
        for position in negated:
            for char in self.chars[position]:
                self.takes.setdefault(char, 0)
        for position in negated:
            for char in self.takes:
                if char not in self.chars[position]:
                    self.takes[char] |= 1 << position

    def _find_shadows(self, items: Items) -> dict[int, int]:
        """For every component that has matched whatever follows (`*x*`): the positions of components whose match can no
        longer change the answer. Without them n such components would make 2**n states."""
        settled = [(1 << position, items.settled(following)) for position, following in self._following.items()]
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

    def tail(self, bits: int) -> bytes | None:
        """What must follow when one position of one literal name is all that is open."""
        return None if bits & (bits - 1) else self._tails.get(bits.bit_length() - 1)

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
        return set().union(*(self.chars[position] for position in _positions(bits)))

    def after(self, bits: int) -> frozenset[int]:
        """The items open when the name ends here."""
        return frozenset(self.always).union(*(self._following[position] for position in _positions(bits & self.accept)))


def _bits(positions: Iterable[int], size: int) -> int:
    """The set of these positions, all below `size`."""
    raw = bytearray(size // 8 + 1)
    for position in positions:
        raw[position >> 3] |= 1 << (position & 7)
    return int.from_bytes(raw, "little")


def _positions(bits: int) -> Iterator[int]:
    """The positions in a set, rising."""
    first = max(0, (bits & -bits).bit_length() - 1) // 8
    raw = (bits >> 8 * first).to_bytes(bits.bit_length() // 8 + 1 - first, "little")
    for place, byte in enumerate(raw, first):
        if byte:
            for position in range(8):
                if byte >> position & 1:
                    yield 8 * place + position
