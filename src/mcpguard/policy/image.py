"""The path automaton as the kernel reads it: the tables of `policy.tables` laid out in lines of four 32-bit words.

Pure. One array of lines holds everything, and states are known by their line. So a step in the kernel is one look-up, of a
cell; where another state owns the cell, a second one, of the state `other`. `bpf/include/mg_path.h` evaluates it; a shared case
file and a property test hold both alike.

    lines 0 to 255       zero: the cells of a state without edges, whose `base` is 0; nobody owns them
    state lines          base, other, slash, out
    cell lines           owner, next, and next's base and other; `base + byte` is the line of a cell
    output rows          two lines each: rank for read, write, execute, flags; guards matched (low, high), excepted (low, high)
    rule ids             four ranks a line
    ranks of guards      four a line

`other`, `slash`, `owner`, `next` are lines of states. `out` is the first line of an output row; its highest bit (CARRIES) says
that the row raises a rank or adds a guard, the next one (PINNED) repeats that flag.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from mcpguard.model.access import ACCESSES
from mcpguard.model.values import dataclass
from mcpguard.policy.automaton import State
from mcpguard.policy.tables import PINNED as PINNED_FLAG
from mcpguard.policy.tables import Factor, Tables

CARRIES = 1 << 31
PINNED = 1 << 30
DULL = 1 << 29
DULL_PINNED = 1 << 28
LINE_BYTES = 16
_WORDS = 4
_LONELY_LINES = 256
_ROW = 8
_CARRIED = 5
_LINE = struct.Struct("<4I")


class Place(NamedTuple):
    """What the automaton knows at a place.

    Attributes:
        at: the lines where the factors begin the next name.
        pinned: a factor has the flag PINNED.
    """

    at: tuple[int, ...] = ()
    ranks: tuple[int, int, int] = (0, 0, 0)
    matched: int = 0
    excepted: int = 0
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """Lines, and what a walk must know before it reads one.

    Attributes:
        lines: the array, LINE_BYTES each.
        guard_masks: the guards that concern read, write and execute.
        protect_from: the first rank whose rule is readonly or deny.
        rules, guards: first line of the rule ids and of the guards' ranks.
        factors: first state line of each factor.
        telling: the bytes, as bits, with which a name can say something to a state that is dull.
    """

    lines: bytes
    guard_masks: tuple[int, int, int]
    protect_from: int
    rules: int
    guards: int
    factors: tuple[int, ...]
    telling: int

    def place(self, state: State) -> Place:
        """A state of the automaton as the kernel holds it."""
        read, write, execute, matched, excepted = state[-_CARRIED:]
        lines = [self._line(first + one) for first, one in zip(self.factors, state[:-_CARRIED], strict=True)]
        pinned = any(out & PINNED for _, _, _, out in lines)
        return Place(tuple(slash for _, _, slash, _ in lines), (read, write, execute), matched, excepted, pinned)

    def _line(self, number: int) -> tuple[int, int, int, int]:
        base, other, slash, out = _LINE.unpack_from(self.lines, number * LINE_BYTES)
        return base, other, slash, out


def image_of(tables: Tables) -> Image:
    """Lay tables out."""
    words = array("I", bytes(_LONELY_LINES * LINE_BYTES))
    firsts, telling = [], 0
    for factor in tables.factors:
        firsts.append(len(words) // _WORDS)
        telling |= _append_factor(words, factor)
    rules = _append(words, tables.rules)
    guards = _append(words, [rank for rank, _access in tables.guards])
    masks = [
        sum(1 << bit for bit, (_rank, access) in enumerate(tables.guards) if access & wanted) for wanted in ACCESSES
    ]
    if sys.byteorder == "big":
        words.byteswap()
    return Image(
        words.tobytes(), (masks[0], masks[1], masks[2]), tables.protect_from, rules, guards, tuple(firsts), telling
    )


def _append(words: array[int], values: Sequence[int]) -> int:
    """Values on lines of their own; returns the first line."""
    first = len(words) // _WORDS
    words.extend(values)
    words.extend([0] * (-len(words) % _WORDS))
    return first


def _append_factor(words: array[int], factor: Factor) -> int:
    """Its lines; returns the bytes that say something to a dull state of it."""
    states = len(words) // _WORDS
    cells = states + len(factor.base)
    rows = cells + len(factor.owner)
    lonely = _without_edges(factor)
    dull = _dull(factor, lonely)
    bases: list[int] = []
    for state, (base, other, slash, out) in enumerate(
        zip(factor.base, factor.other, factor.slash, factor.out, strict=True)
    ):
        row = factor.outputs[out * _ROW : out * _ROW + _ROW]
        carries = (CARRIES if any(row[: _ROW - 1]) else 0) | (PINNED if row[-1] & PINNED_FLAG else 0)
        carries |= dull.get(state, 0)
        bases.append(0 if lonely[state] else cells + base)
        words.extend((bases[-1], states + other, states + slash, carries | rows + 2 * out))
    telling = 0
    for cell, (owner, following) in enumerate(zip(factor.owner, factor.next, strict=True)):
        if owner in dull:
            telling |= 1 << cell - factor.base[owner]
        if owner < len(factor.base):
            words.extend((states + owner, states + following, bases[following], states + factor.other[following]))
        else:
            words.extend((0, 0, 0, 0))  # what nobody owns is owned by line 0, which is no state
    for at in range(0, len(factor.outputs), _ROW):
        read, write, execute, low, high, except_low, except_high, flags = factor.outputs[at : at + _ROW]
        words.extend((read, write, execute, flags, low, high, except_low, except_high))
    return telling


def _without_edges(factor: Factor) -> list[bool]:
    owners = set(factor.owner)
    return [state not in owners for state in range(len(factor.base))]


def _dull(factor: Factor, lonely: Sequence[bool]) -> dict[int, int]:
    """States that begin a name, where a name whose first byte has no edge leaves everything as it is."""
    before: dict[int, set[int]] = {}
    for slash, out in zip(factor.slash, factor.out, strict=True):
        before.setdefault(slash, set()).add(out)
    rows = factor.rows_of_outputs()
    found = {}
    for state, outs in before.items():
        sink = factor.other[state]
        if lonely[sink] and factor.other[sink] == sink and factor.slash[sink] == state:
            said = rows[factor.out[sink]]
            if all(_covers(rows[out], said) for out in outs):
                found[state] = DULL | (DULL_PINNED if said[-1] & PINNED_FLAG else 0)
    return found


def _covers(held: Sequence[int], said: Sequence[int]) -> bool:
    """Whether what a row says is nothing new where another holds already."""
    ranks = all(old >= new for old, new in zip(held[:3], said[:3], strict=True))
    return ranks and not any(new & ~old for old, new in zip(held[3:-1], said[3:-1], strict=True))
