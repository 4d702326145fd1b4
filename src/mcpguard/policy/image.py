"""The path automaton as the kernel reads it: the tables of `policy.tables` laid out in lines of four 32-bit words.

Pure. One array of lines holds everything, and states are known by their line, so a step in the kernel is one look-up for a
cell and one for a state. `bpf/include/mg_path.h` evaluates it; a shared case file and a property test hold both alike.

    line 0               zero: a state whose `base` is 0 has no edges of its own
    state lines          base, other, slash, out
    cell lines           two cells each, (owner, next); `base + byte` counts cells from the beginning of the array
    output rows          two lines each: rank for read, write, execute, flags; guards matched (low, high), excepted (low, high)
    rule ids             four ranks a line
    ranks of guards      four a line

`other`, `slash`, `owner`, `next` are lines of states. `out` is the first line of an output row; its highest bit says that
the row raises a rank or adds a guard.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from mcpguard.policy.automaton import State
from mcpguard.policy.boundary import ACCESSES
from mcpguard.policy.tables import Factor, Tables

CARRIES = 1 << 31
LINE_BYTES = 16
_WORDS = 4
_ROW = 8
_CARRIED = 5


@dataclass(frozen=True, slots=True)
class Image:
    """Lines, and what a walk must know before it reads one.

    Attributes:
        lines: the array, LINE_BYTES each.
        guard_masks: the guards that concern read, write and execute.
        protect_from: the first rank whose rule is readonly or deny.
        rules, guards: first line of the rule ids and of the guards' ranks.
        factors: first state line of each factor.
    """

    lines: bytes
    guard_masks: tuple[int, int, int]
    protect_from: int
    rules: int
    guards: int
    factors: tuple[int, ...]

    def place(self, state: State) -> tuple[tuple[int, ...], tuple[int, int, int], int, int]:
        """A state of the automaton as the kernel holds it: lines of the factors' states, three ranks, guards matched and
        excepted."""
        read, write, execute, matched, excepted = state[-_CARRIED:]
        at = tuple(first + one for first, one in zip(self.factors, state[:-_CARRIED], strict=True))
        return at, (read, write, execute), matched, excepted


def image_of(tables: Tables) -> Image:
    """Lay tables out."""
    words = array("I", bytes(LINE_BYTES))
    firsts = []
    for factor in tables.factors:
        firsts.append(len(words) // _WORDS)
        _append_factor(words, factor)
    rules = _append(words, tables.rules)
    guards = _append(words, [rank for rank, _access in tables.guards])
    masks = [
        sum(1 << bit for bit, (_rank, access) in enumerate(tables.guards) if access & wanted) for wanted in ACCESSES
    ]
    if sys.byteorder == "big":
        words.byteswap()
    return Image(words.tobytes(), (masks[0], masks[1], masks[2]), tables.protect_from, rules, guards, tuple(firsts))


def _append(words: array[int], values: Sequence[int]) -> int:
    """Values on lines of their own; returns the first line."""
    first = len(words) // _WORDS
    words.extend(values)
    words.extend([0] * (-len(words) % _WORDS))
    return first


def _append_factor(words: array[int], factor: Factor) -> None:
    states = len(words) // _WORDS
    cells = states + len(factor.base)
    rows = cells + (len(factor.owner) + 1) // 2
    lonely = _without_edges(factor)
    for state, (base, other, slash, out) in enumerate(
        zip(factor.base, factor.other, factor.slash, factor.out, strict=True)
    ):
        row = factor.outputs[out * _ROW : out * _ROW + _ROW]
        carries = CARRIES if any(row[: _ROW - 1]) else 0
        words.extend(
            (0 if lonely[state] else 2 * cells + base, states + other, states + slash, carries | rows + 2 * out)
        )
    for owner, following in zip(factor.owner, factor.next, strict=True):
        # What nobody owns is owned by line 0, which is no state.
        words.extend((states + owner, states + following) if owner < len(factor.base) else (0, 0))
    words.extend([0] * (-len(words) % _WORDS))
    for at in range(0, len(factor.outputs), _ROW):
        read, write, execute, low, high, except_low, except_high, flags = factor.outputs[at : at + _ROW]
        words.extend((read, write, execute, flags, low, high, except_low, except_high))


def _without_edges(factor: Factor) -> list[bool]:
    owners = set(factor.owner)
    return [state not in owners for state in range(len(factor.base))]
