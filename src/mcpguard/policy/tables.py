"""The tables of a path automaton: arrays of 32-bit integers, evaluated alike in Python and in the kernel.

Pure: arrays in, bytes out and back. Reading refuses anything that could lead a walk outside the arrays.

Serialised form, version 1: little-endian 32-bit words.

    word 0     MAGIC              word 4    rank count R (rank 0 is the default)
    word 1     VERSION            word 5    first rank that protects (readonly and deny; below it: allow)
    word 2     words in total     word 6    factor count F, at most MAX_FACTORS
    word 3     zero               word 7    guard count G, at most MAX_GUARDS
    R words    rule id of each rank
    G times:
      2 words  rank and accesses (1 read, 2 write, 4 execute) of a deny rule with exceptions, by rising rank
    F times:
      5 words  states S, cells C, outputs O, start state, zero
      S words  base      S words  other      S words  slash      S words  out
      C words  owner     C words  next
      O * 8 words        ranks for read, write, execute; guards matched (low, high); guards excepted (low, high); flags

A walk keeps one state per factor and, for all of them together, three ranks and two sets of guards (bit g for guard g).
A path is a sequence of names; before each name every factor takes `s = slash[s]`, then for each byte b of the name:

    i = base[s] + b;  s = next[i] if owner[i] == s else other[s]

At the start and after each name the ranks rise to those of all states' outputs, and the sets take in theirs; neither
ever shrinks. At the end of the path, for each access, the higher of the rank and the rank of the highest guard that is
matched, not excepted and has this access decides: rank 0, or a rank from the first protecting one upwards, denies; any
other allows. `base[s] + 255` is always inside the cells.

Flags: bits 0-2 read, 3-5 write, 6-8 execute: what the factor can add at this path or below, as NOTHING, ALLOWS,
PROTECTS bits; bit 9 PROTECTED_BELOW; bit 10 PINNED; bit 11 EXCEPTS_BELOW: an exception can match strictly below.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Container, Sequence

from mcpguard.errors import PolicyError
from mcpguard.model.values import dataclass

MAGIC = 0x4150474D
VERSION = 1
MAX_FACTORS = 8
MAX_GUARDS = 64
NOBODY = 0xFFFFFFFF
NOTHING, ALLOWS, PROTECTS = 1, 2, 4
PROTECTED_BELOW = 1 << 9
PINNED = 1 << 10
EXCEPTS_BELOW = 1 << 11
_HEAD = 8
_FACTOR_HEAD = 5
_ROW = 8
Words = Sequence[int]


@dataclass(frozen=True, slots=True)
class Factor:
    """One automaton. All members are arrays of 32-bit integers, laid out as in the module's description."""

    start: int
    base: Words
    other: Words
    slash: Words
    out: Words
    owner: Words
    next: Words
    outputs: Words

    def step(self, state: int, name: bytes, sinks: Container[int] = ()) -> int:
        """The state after `/` and a name.

        Args:
            sinks: what `sinks` gives, to spare the rest of a name that no pattern goes on with.
        """
        base, other, owner, following = self.base, self.other, self.owner, self.next
        state = self.slash[state]
        for byte in name:
            cell = base[state] + byte
            if owner[cell] == state:
                state = following[cell]
            else:
                state = other[state]
                if state in sinks:
                    break
        return state

    def sinks(self) -> frozenset[int]:
        """States that no byte of a name leads out of."""
        with_edges = set(self.owner)
        return frozenset(
            state for state, target in enumerate(self.other) if target == state and state not in with_edges
        )

    def rows(self) -> list[tuple[int, ...]]:
        """The output row of every state: three ranks, matched low and high, excepted low and high, flags."""
        rows = self.rows_of_outputs()
        return [rows[output] for output in self.out]

    def rows_of_outputs(self) -> list[tuple[int, ...]]:
        """The output rows by their own number, as `out` names them."""
        return list(zip(*[iter(self.outputs)] * _ROW, strict=True))

    def flags(self, state: int) -> int:
        """The flags of a state."""
        return self.outputs[self.out[state] * _ROW + _ROW - 1]

    def edges(self, state: int) -> list[tuple[int, int]]:
        """(byte, target) of every byte that does not lead to `other`."""
        base = self.base[state]
        row = array("I", self.owner[base : base + 256]).tobytes()
        wanted = state.to_bytes(4, sys.byteorder)
        found: list[tuple[int, int]] = []
        at = row.find(wanted)
        while at >= 0:
            if at % 4 == 0:
                found.append((at // 4, self.next[base + at // 4]))
            at = row.find(wanted, at + 1)
        return found


@dataclass(frozen=True, slots=True)
class Tables:
    """All factors with the order of the rules.

    Attributes:
        rules: rule id of each rank; index 0 is the default's, 0.
        protect_from: the first rank whose rule is readonly or deny.
        guards: (rank, access bits) of the deny rules with exceptions, by rising rank.
    """

    rules: Words
    protect_from: int
    guards: tuple[tuple[int, int], ...]
    factors: tuple[Factor, ...]


def pack(tables: Tables) -> bytes:
    """Serialise."""
    words = array("I", [MAGIC, VERSION, 0, 0, len(tables.rules), tables.protect_from, len(tables.factors)])
    words.append(len(tables.guards))
    words.extend(tables.rules)
    for guard in tables.guards:
        words.extend(guard)
    for factor in tables.factors:
        words.extend((len(factor.base), len(factor.owner), len(factor.outputs) // _ROW, factor.start, 0))
        for part in (factor.base, factor.other, factor.slash, factor.out, factor.owner, factor.next, factor.outputs):
            words.extend(part)
    words[2] = len(words)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()


def unpack(data: bytes) -> Tables:
    """Read and check every bound.

    Raises:
        PolicyError: `policy.tables`; another version, a wrong size, or an index outside its array.
    """
    words = _words(data)
    _require(len(words) >= _HEAD and words[0] == MAGIC, "they do not begin as tables do")
    _require(words[1] == VERSION, f"they have version {words[1]}, this program reads {VERSION}")
    _require(words[2] == len(words), f"they promise {words[2]} words and have {len(words)}")
    ranks, protect_from, count, guard_count = words[4:_HEAD]
    _require(1 <= protect_from <= ranks <= len(words), "the rule order has no valid bounds")
    _require(1 <= count <= MAX_FACTORS, f"{count} factors")
    rules = words[_HEAD : _HEAD + ranks]
    _require(len(rules) == ranks and rules[0] == 0, "the rule order is cut")
    at = _HEAD + ranks + 2 * guard_count
    _require(guard_count <= MAX_GUARDS and at <= len(words), "the guards are cut")
    pairs = words[_HEAD + ranks : at]
    guards = tuple(zip(pairs[::2], pairs[1::2], strict=True))
    _require(all(protect_from <= rank < ranks and access <= 7 for rank, access in guards), "a guard has no rule")
    factors: list[Factor] = []
    for _ in range(count):
        factor, at = _read_factor(words, at, ranks)
        _require(not _guards_named(factor) >> guard_count, "an output names a guard that is not there")
        factors.append(factor)
    _require(at == len(words), "something follows them")
    return Tables(rules, protect_from, guards, tuple(factors))


def halves(bits: int) -> tuple[int, int]:
    """A set of guards as two words, low and high."""
    return bits & NOBODY, bits >> 32


def _words(data: bytes) -> array[int]:
    _require(len(data) % 4 == 0, f"{len(data)} bytes are not whole words")
    words = array("I")
    words.frombytes(data)
    if sys.byteorder == "big":
        words.byteswap()
    return words


def _read_factor(words: array[int], at: int, ranks: int) -> tuple[Factor, int]:
    _require(at + _FACTOR_HEAD <= len(words), "a factor is cut")
    states, cells, outputs, start, _ = words[at : at + _FACTOR_HEAD]
    at += _FACTOR_HEAD
    parts: list[array[int]] = []
    for size in (states, states, states, states, cells, cells, outputs * _ROW):
        _require(0 < size <= len(words) - at, "a factor is cut")
        parts.append(words[at : at + size])
        at += size
    base, other, slash, out, owner, following, values = parts
    _require(start < states and max(other) < states and max(slash) < states, "a state is outside its factor")
    _require(max(following) < states, "a transition leaves its factor")
    _require(max(base) + 255 < cells, "a row leaves its factor")
    _require(max(out) < outputs, "an output is outside its factor")
    _require(all(max(values[column::_ROW]) < ranks for column in range(3)), "a rank has no rule")
    return Factor(start, base, other, slash, out, owner, following, values), at


def _guards_named(factor: Factor) -> int:
    named = 0
    for column in (3, 5):
        for low, high in zip(factor.outputs[column::_ROW], factor.outputs[column + 1 :: _ROW], strict=True):
            named |= low | high << 32
    return named


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise PolicyError(
            "the compiled path tables cannot be used",
            why=why,
            do="start the session again; if it stays, report a bug",
            code="policy.tables",
        )
