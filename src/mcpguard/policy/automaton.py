"""The path automaton: what the path rules of a policy say about any path, in one pass over its bytes.

Pure, and the only place that knows how rules combine. It knows neither users nor mounts: paths come in canonical.

The rules are spread over a few deterministic automata that run side by side (factors): anchored rules share one; rules
with `**` stay open everywhere, multiply with everything, and get their own. A state is one small integer per factor. See
`tables` for the arrays and the walk.

Bounds: MAX_BYTES serialised, MAX_STATES states over all factors. Above them: `policy.too-large`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mcpguard.errors import PolicyError
from mcpguard.model.access import Access, Effect
from mcpguard.model.policy import PathRule
from mcpguard.policy.boundary import ACCESSES, RankedRule, rank_rules
from mcpguard.policy.bytewise import TooManyStates, build_factor
from mcpguard.policy.tables import (
    ALLOWS,
    MAX_FACTORS,
    NOTHING,
    PINNED,
    PROTECTED_BELOW,
    PROTECTS,
    Factor,
    Tables,
    pack,
    unpack,
)

MAX_BYTES = 4 << 20
MAX_STATES = 120_000
MAX_LISTED_NAMES = 4096
# A group of `**` rules is halved when it needs more states than this: they grow with the square of the group's size.
ROAMING_STATES = 4_000
State = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rules say about one path.

    Attributes:
        allowed: the accesses that are allowed; write implies read.
        read_rule, write_rule, execute_rule: id of the rule that decides that access, for allow and for deny; 0: no rule
            allows it.
        protected_below: a readonly or deny rule can match strictly below.
        pinned: such a rule would lose hold of something below if this directory got another name or parent. False when
            only floating patterns that are met at any place (`**/.env`) protect something below.
    """

    allowed: Access
    read_rule: int
    write_rule: int
    execute_rule: int
    protected_below: bool
    pinned: bool

    def rule(self, access: Access) -> int:
        """The rule that decides one access."""
        return {Access.READ: self.read_rule, Access.WRITE: self.write_rule, Access.EXECUTE: self.execute_rule}[access]


class Automaton:
    """Compiled path rules. Immutable; `build` compiles, `from_bytes` reads what `to_bytes` wrote."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._decisions: dict[State, Decision] = {}

    @classmethod
    def build(cls, paths: Sequence[PathRule]) -> Automaton:
        """Compile rules; their order does not matter.

        Raises:
            PolicyError: `policy.pattern`, or `policy.too-large` with the patterns that cost most.
        """
        rules = rank_rules(paths)
        protect_from = 1 + sum(rule.source.effect is Effect.ALLOW for rule in rules)
        factors = [*_anchored(rules, protect_from), *_roaming(rules, protect_from)]
        if len(factors) > MAX_FACTORS or sum(len(factor.base) for factor in factors) > MAX_STATES:
            raise _too_large([rule for rule in rules if rule.roaming] or rules)
        automaton = cls(Tables([0, *(rule.source.rule for rule in rules)], protect_from, tuple(factors)))
        if len(automaton.to_bytes()) > MAX_BYTES:
            raise _too_large([rule for rule in rules if rule.roaming] or rules)
        return automaton

    @classmethod
    def from_bytes(cls, data: bytes) -> Automaton:
        """Read serialised tables.

        Raises:
            PolicyError: `policy.tables`; another version or a broken size or index.
        """
        return cls(unpack(data))

    def to_bytes(self) -> bytes:
        """The serialised tables (format in `mcpguard.policy.tables`); equal rules give equal bytes."""
        return pack(self._tables)

    @property
    def states(self) -> int:
        """How many states all factors have together."""
        return sum(len(factor.base) for factor in self._tables.factors)

    @property
    def start(self) -> State:
        """The state of the path `/`."""
        return tuple(factor.start for factor in self._tables.factors)

    def child(self, state: State, name: str | bytes) -> State:
        """The state of an entry of the directory at `state`.

        Raises:
            ValueError: the name is empty, `.`, `..`, or holds a slash or NUL.
        """
        raw = _raw(name)
        if raw in (b"", b".", b"..") or b"/" in raw or b"\0" in raw:
            raise ValueError(f"not a file name: {name!r}")
        return tuple(factor.step(at, raw) for factor, at in zip(self._tables.factors, state, strict=True))

    def walk(self, path: str | bytes) -> State:
        """The state of an absolute, canonical path; a trailing slash does not count.

        Raises:
            ValueError: the path is relative or has an empty, `.` or `..` component.
        """
        raw = _raw(path)
        if not raw.startswith(b"/"):
            raise ValueError(f"not an absolute path: {path!r}")
        state = self.start
        inner = raw[1:].removesuffix(b"/")
        for name in inner.split(b"/") if inner else ():
            state = self.child(state, name)
        return state

    def decision(self, state: State) -> Decision:
        """What the rules say about the path at `state`."""
        known = self._decisions.get(state)
        if known is None:
            known = self._decisions[state] = self._decide(state)
        return known

    def uniform(self, state: State) -> bool:
        """True when every path at or below has the same allowed accesses as this one. False may be too careful."""
        return _one_answer(self._flags(state))

    def named_children(self, state: State) -> frozenset[str] | None:
        """Names of children at or below which something else may be allowed than here; None when a glob names them."""
        here = self.decision(state).allowed
        names: set[bytes] = set()
        elsewhere: list[int] = []
        for factor, at in zip(self._tables.factors, state, strict=True):
            listed = _listed_names(factor, factor.slash[at])
            if listed is None:
                elsewhere.append(factor.output(factor.slash[at])[3])
            else:
                sink, found = listed
                names |= found
                elsewhere.append(factor.output(sink)[3])
        if not _one_answer(elsewhere) or _possible(elsewhere) != here:
            return None
        return frozenset(
            name.decode("utf-8", "surrogateescape") for name in names if self._differs(self.child(state, name), here)
        )

    def _differs(self, state: State, allowed: Access) -> bool:
        return not self.uniform(state) or self.decision(state).allowed != allowed

    def _flags(self, state: State) -> list[int]:
        return [factor.output(at)[3] for factor, at in zip(self._tables.factors, state, strict=True)]

    def _decide(self, state: State) -> Decision:
        outputs = [factor.output(at) for factor, at in zip(self._tables.factors, state, strict=True)]
        ranks = [max(output[index] for output in outputs) for index in range(3)]
        allowed = Access.NONE
        for rank, access in zip(ranks, ACCESSES, strict=True):
            if 0 < rank < self._tables.protect_from:
                allowed |= access
        read, write, execute = (self._tables.rules[rank] for rank in ranks)
        flags = [output[3] for output in outputs]
        return Decision(
            allowed,
            read,
            write,
            execute,
            protected_below=any(flag & PROTECTED_BELOW for flag in flags),
            pinned=any(flag & PINNED for flag in flags),
        )


def _raw(path: str | bytes) -> bytes:
    return path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")


def _may_allow(flags: Sequence[int], index: int) -> bool:
    """Some path may get the access: a factor can allow it and none protects from it throughout."""
    meanings = [flag >> (3 * index) & 7 for flag in flags]
    return any(meaning & ALLOWS for meaning in meanings) and PROTECTS not in meanings


def _may_deny(flags: Sequence[int], index: int) -> bool:
    """Some path may be refused the access: a factor can protect from it, or none allows it throughout."""
    meanings = [flag >> (3 * index) & 7 for flag in flags]
    return any(meaning & PROTECTS for meaning in meanings) or all(meaning & NOTHING for meaning in meanings)


def _one_answer(flags: Sequence[int]) -> bool:
    return not any(_may_allow(flags, index) and _may_deny(flags, index) for index in range(3))


def _possible(flags: Sequence[int]) -> Access:
    allowed = Access.NONE
    for index, access in enumerate(ACCESSES):
        if _may_allow(flags, index):
            allowed |= access
    return allowed


def _listed_names(factor: Factor, entry: int) -> tuple[int, set[bytes]] | None:
    """(state of every other name, the names that lead elsewhere); None when a glob makes them uncountable."""
    sink = factor.other[entry]
    if factor.other[sink] != sink or any(True for _ in factor.edges(sink)):
        return None
    ordinary = (factor.slash[sink], factor.out[sink])
    names: set[bytes] = set()
    waiting = [(b"", entry)]
    while waiting:
        name, state = waiting.pop()
        if len(name) > 255 or len(names) > MAX_LISTED_NAMES or factor.other[state] != sink:
            return None
        if name and (factor.slash[state], factor.out[state]) != ordinary:
            names.add(name)
        if state != sink:
            waiting.extend((name + bytes((byte,)), target) for byte, target in factor.edges(state))
    return sink, names


def _anchored(rules: Sequence[RankedRule], protect_from: int) -> Iterable[Factor]:
    anchored = [rule for rule in rules if not rule.roaming]
    try:
        return [build_factor(anchored, protect_from, MAX_STATES)]
    except TooManyStates as many:
        raise _too_large(many.costly) from None


def _roaming(rules: Sequence[RankedRule], protect_from: int) -> Iterable[Factor]:
    """Factors for the rules with `**`, in groups that stay small."""
    groups = [[rule for rule in rules if rule.roaming]]
    factors: list[Factor] = []
    while groups:
        group = groups.pop(0)
        if not group:
            continue
        try:
            factors.append(build_factor(group, protect_from, ROAMING_STATES if len(group) > 1 else MAX_STATES))
        except TooManyStates as many:
            if len(group) == 1 or len(factors) + len(groups) + 2 > MAX_FACTORS - 1:
                raise _too_large(many.costly) from None
            groups += [group[: len(group) // 2], group[len(group) // 2 :]]
    return factors


def _too_large(costly: Sequence[RankedRule]) -> PolicyError:
    patterns = ", ".join(f'"{rule.source.pattern}"' for rule in costly[:3])
    return PolicyError(
        f"the path rules are too many or too entangled; most costly: {patterns}",
        why=f"the compiled rules must fit in {MAX_BYTES >> 20} MiB, {MAX_STATES} states and {MAX_FACTORS} tables",
        do="give these patterns a fixed beginning, or fewer * and **",
        code="policy.too-large",
    )
