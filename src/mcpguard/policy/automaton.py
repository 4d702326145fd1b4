"""The path automaton: what the path rules of a policy say about any path, in one pass over its bytes.

Pure, and the only place that knows how rules combine. It knows neither users nor mounts: paths come in canonical.

The rules are spread over a few deterministic automata that run side by side (factors): anchored rules share one; rules
with `**` stay open everywhere, multiply with everything, and get their own. A state is one integer per factor and what
holds already: three ranks and two sets of guards (deny rules with exceptions). See `tables` for the arrays and the walk.

Bounds: MAX_BYTES serialised, MAX_STATES states over all factors. Above them: `policy.too-large`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mcpguard.errors import PolicyError
from mcpguard.model.access import ACCESSES, Access, Effect
from mcpguard.model.policy import PathRule
from mcpguard.model.values import dataclass
from mcpguard.policy.tables import (
    ALLOWS,
    EXCEPTS_BELOW,
    MAX_FACTORS,
    MAX_GUARDS,
    NOTHING,
    PINNED,
    PROTECTED_BELOW,
    PROTECTS,
    Factor,
    Tables,
    pack,
    unpack,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mcpguard.policy.boundary import RankedRule

MAX_BYTES = 4 << 20
MAX_STATES = 120_000
MAX_LISTED_NAMES = 4096
# A group of rules such as `**/*a*` is halved when it needs more states than this: they can double with every rule.
MULTIPLYING_STATES = 1_000
# Decisions, and states of paths, kept by one automaton; above it they are forgotten, as a guarded tree may ask for paths
# without end.
MAX_REMEMBERED = 8_192
# To combine flags is slow, and a tree walk asks for hundreds of decisions.
_BY_BITS = [Access(bits) for bits in range(8)]
State = tuple[int, ...]
Listed = tuple[int, set[bytes]]
_CARRIED = 5
# So many bytes of a name lead nearly all names to where the rest of it changes nothing.
_BEGINNING = 2
# A name that no sensible pattern names.
NOBODYS_NAME = "\x01"
_LAST_ASCII = 0x7F


@dataclass(frozen=True, slots=True)
class Ordinary:
    """The one state of most entries of a directory.

    Attributes:
        state: of every entry but those below; one that judges alike, at the entry and below it.
        but: beginnings of names that may lead elsewhere; so may names whose first character is outside ASCII.
        floating: so may names that a component behind a `**` matches. NOBODYS_NAME must not be one of them.
    """

    state: State
    but: tuple[str, ...]
    floating: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rules say about one path.

    Attributes:
        allowed: the accesses that are allowed; write implies read.
        read_rule, write_rule, execute_rule: id of the rule that decides that access, for allow and for deny; 0: no rule
            allows it.
        protected_below: a readonly or deny rule can match strictly below.
        pinned: such a rule would lose hold of something below if this directory moved to a place that no rule names.
            False when only floating patterns that are met at any place (`**/.env`) protect something below. A move to
            below an exception must be judged by the state there.
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
        self._rows = [factor.rows() for factor in tables.factors]
        self._stepping = [(factor.step, factor.sinks()) for factor in tables.factors]
        self._carried: dict[State, State] = {}
        # A directory's state and the beginning of a name -> where all such names lead; empty: it depends on the rest.
        self._begun: dict[tuple[State, bytes], State] = {}
        self._decisions: dict[State, Decision] = {}
        self._allowed: dict[State, Access] = {}
        self._walked: dict[bytes, State] = {}
        self._uniform: dict[State, bool] = {}
        self._listed: dict[tuple[int, int], Listed | None] = {}

    @classmethod
    def build(cls, paths: Sequence[PathRule]) -> Automaton:
        """Compile rules; their order does not matter.

        Raises:
            PolicyError: `policy.pattern`, or `policy.too-large` with the patterns that cost most.
        """
        from mcpguard.policy.boundary import rank_rules  # a launch finds its automaton compiled

        rules = rank_rules(paths)
        protect_from = 1 + sum(rule.source.effect is Effect.ALLOW for rule in rules)
        guards = [rule for rule in rules if rule.guard]
        if len(guards) > MAX_GUARDS:
            raise _too_large(guards[MAX_GUARDS:])
        factors = _factors(rules, protect_from)
        if sum(len(factor.base) for factor in factors) > MAX_STATES:
            raise _too_large([rule for rule in rules if rule.roaming] or rules)
        ids = [0, *(rule.source.rule for rule in rules)]
        pairs = tuple((rule.rank, int(rule.access)) for rule in guards)
        automaton = cls(Tables(ids, protect_from, pairs, tuple(factors)))
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
    def tables(self) -> Tables:
        """The arrays themselves, for other layouts of them."""
        return self._tables

    @property
    def states(self) -> int:
        """How many states all factors have together."""
        return sum(len(factor.base) for factor in self._tables.factors)

    @property
    def start(self) -> State:
        """The state of the path `/`."""
        return self._carry([factor.start for factor in self._tables.factors], (0,) * _CARRIED)

    def child(self, state: State, name: str | bytes) -> State:
        """The state of an entry of the directory at `state`.

        Raises:
            ValueError: the name is empty, `.`, `..`, or holds a slash or NUL.
        """
        raw = _raw(name)
        if raw in (b"", b".", b"..") or b"/" in raw or b"\0" in raw:
            raise ValueError(f"not a file name: {name!r}")
        beginning = state, raw[:_BEGINNING]
        known = self._begun.get(beginning)
        if known:
            return known
        reached = self._reach(state, raw)
        if known is None and len(raw) >= _BEGINNING:
            if len(self._begun) >= MAX_REMEMBERED:
                self._begun.clear()
            self._begun[beginning] = reached if self._is_enough(*beginning) else ()
        return reached

    def _is_enough(self, state: State, beginning: bytes) -> bool:
        """Whether all names that begin so lead to one state: no factor goes on with what comes behind."""
        return all(
            step(at, beginning, sinks) in sinks for (step, sinks), at in zip(self._stepping, state, strict=False)
        )

    def _reach(self, state: State, raw: bytes) -> State:
        states = [step(at, raw, sinks) for (step, sinks), at in zip(self._stepping, state, strict=False)]
        reached = (*states, *state[-_CARRIED:])
        known = self._carried.get(reached)
        if known is None:
            if len(self._carried) >= MAX_REMEMBERED:
                self._carried.clear()
            known = self._carried[reached] = self._carry(states, state[-_CARRIED:])
        return known

    def ordinary(self, state: State) -> Ordinary | None:
        """What most names in the directory at `state` lead to; None where every name must be asked for."""
        but: list[str] = []
        states, floating = [], False
        for (factor, at), (step, sinks) in zip(self._each(state), self._stepping, strict=True):
            entry = factor.slash[at]
            reached = factor.other[entry]
            if reached in sinks:  # from there on such a name is not read
                but += _beginnings(factor, entry)
            else:
                # What is told apart here is so in every directory below, so only what floats can do it.
                floating = True
                reached = step(at, NOBODYS_NAME.encode())
                if factor.slash[reached] != entry:
                    return None
            states.append(reached)
        return Ordinary(self._carry(states, state[-_CARRIED:]), tuple(but), floating)

    def walk(self, path: str | bytes) -> State:
        """The state of an absolute, canonical path; a trailing slash does not count.

        Raises:
            ValueError: the path is relative or has an empty, `.` or `..` component.
        """
        raw = _raw(path)
        if not raw.startswith(b"/"):
            raise ValueError(f"not an absolute path: {path!r}")
        # Paths begin alike: go on from the nearest place above that was asked for before.
        walked = self._walked
        way: list[tuple[bytes, bytes]] = []
        above = raw.removesuffix(b"/")
        while (state := walked.get(above) if above else self.start) is None:
            way.append((above, above.rpartition(b"/")[2]))
            above = above.rpartition(b"/")[0]
        if len(walked) + len(way) > MAX_REMEMBERED:
            self._walked = walked = {}  # not emptied: another thread may be reading
        for place, name in reversed(way):
            state = walked[place] = self.child(state, name)
        return state

    def decision(self, state: State) -> Decision:
        """What the rules say about the path at `state`."""
        known = self._decisions.get(state)
        if known is None:
            if len(self._decisions) >= MAX_REMEMBERED:
                self._decisions.clear()
            known = self._decisions[state] = self._decide(state)
        return known

    def allowed(self, state: State) -> Access:
        """`decision(state).allowed`, for those who ask for nothing else: a launch does so for hundreds of places."""
        known = self._allowed.get(state)
        if known is None:
            if len(self._allowed) >= MAX_REMEMBERED:
                self._allowed.clear()
            known = self._allowed[state] = self._allowed_by(self._ranks(state))
        return known

    def same_below(self, one: State, other: State) -> bool:
        """Whether every path below the one place is judged as the same path below the other.

        A directory that moves between two such places takes nothing out of a rule's reach. True is sure; False may be careful.
        """
        factors = self._tables.factors
        return one[-_CARRIED:] == other[-_CARRIED:] and all(
            factor.slash[a] == factor.slash[b]
            for factor, a, b in zip(factors, one[:-_CARRIED], other[:-_CARRIED], strict=True)
        )

    def uniform(self, state: State) -> bool:
        """True when every path at or below has the same allowed accesses as this one. False may be too careful."""
        known = self._uniform.get(state)
        if known is None:
            if len(self._uniform) >= MAX_REMEMBERED:
                self._uniform.clear()
            known = self._uniform[state] = _one_answer(self._flags(state))
        return known

    def named_children(self, state: State) -> frozenset[str] | None:
        """Names of children at or below which something else may be allowed than here; None when a glob names them."""
        here = self.allowed(state)
        names: set[bytes] = set()
        unnamed: list[int] = []
        for number, (factor, at) in enumerate(self._each(state)):
            entry = factor.slash[at]
            listed = self._list_names(number, entry)
            unnamed.append(entry if listed is None else listed[0])
            names |= listed[1] if listed else set()
        flags = self._flags(self._carry(unnamed, state[-_CARRIED:]))
        if not _one_answer(flags) or _possible(flags) != here:
            return None
        return frozenset(
            name.decode("utf-8", "surrogateescape") for name in names if self._differs(self.child(state, name), here)
        )

    def _list_names(self, number: int, entry: int) -> Listed | None:
        """The names that a factor tells apart; a tree walk asks for the same few entries again and again."""
        key = (number, entry)
        if key not in self._listed:
            factor = self._tables.factors[number]
            self._listed[key] = _listed_names(factor, entry)
        return self._listed[key]

    def _flags(self, state: State) -> list[int]:
        """What can be met at a state and below: by each factor, and by what is carried."""
        return [*(factor.flags(at) for factor, at in self._each(state)), self._carried_flags(state)]

    def _each(self, state: State) -> Iterator[tuple[Factor, int]]:
        return zip(self._tables.factors, state[:-_CARRIED], strict=True)

    def _carry(self, states: Sequence[int], carried: State) -> State:
        """New states, with what holds from them on added to what already held."""
        read, write, execute, matched, excepted = carried
        for rows, at in zip(self._rows, states, strict=True):
            row = rows[at]
            if row[0] > read:
                read = row[0]
            if row[1] > write:
                write = row[1]
            if row[2] > execute:
                execute = row[2]
            matched |= row[3] | row[4] << 32
            excepted |= row[5] | row[6] << 32
        return (*states, read, write, execute, matched, excepted)

    def _guarding(self, state: State, access: int) -> int:
        """Rank of the highest deny rule with exceptions that matches here and is not excepted; 0: none."""
        guards = state[-2] & ~state[-1]
        while guards:
            rank, guarded = self._tables.guards[guards.bit_length() - 1]
            if access & guarded:
                return rank
            guards ^= 1 << guards.bit_length() - 1
        return 0

    def _carried_flags(self, state: State) -> int:
        """What already holds, as the flags of a factor that can only lose its exceptions."""
        may_lose = any(factor.flags(at) & EXCEPTS_BELOW for factor, at in self._each(state))
        flags = 0
        for index, access in enumerate(ACCESSES):
            rank = state[index - _CARRIED]
            meaning = PROTECTS if self._protects(rank) else ALLOWS if rank else NOTHING
            if self._guarding(state, access):
                meaning = meaning | PROTECTS if may_lose else PROTECTS
            flags |= meaning << (3 * index)
        return flags

    def _protects(self, rank: int) -> bool:
        return rank >= self._tables.protect_from

    def _differs(self, state: State, allowed: Access) -> bool:
        return not self.uniform(state) or self.allowed(state) != allowed

    def _ranks(self, state: State) -> list[int]:
        """The rank that decides each access."""
        held = state[-_CARRIED:-2]
        if not state[-2] & ~state[-1]:
            return list(held)
        return [max(rank, self._guarding(state, access)) for rank, access in zip(held, ACCESSES, strict=True)]

    def _allowed_by(self, ranks: Sequence[int]) -> Access:
        read, write, execute = (0 < rank < self._tables.protect_from for rank in ranks)
        return _BY_BITS[read + 2 * write + 4 * execute]

    def _decide(self, state: State) -> Decision:
        ranks = self._ranks(state)
        flags = 0
        for factor, at in self._each(state):
            flags |= factor.flags(at)
        read, write, execute = (self._tables.rules[rank] for rank in ranks)
        protected = any(self._protects(rank) for rank in ranks)
        return Decision(
            self._allowed_by(ranks),
            read,
            write,
            execute,
            protected_below=protected or bool(flags & PROTECTED_BELOW),
            pinned=protected or bool(flags & PINNED),
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


def _beginnings(factor: Factor, entry: int) -> Iterator[str]:
    """One or two characters that names begin with for which a factor leaves the way of all others; ASCII alone."""
    sink = factor.other[entry]
    ordinary = (factor.slash[sink], factor.out[sink])
    for byte, state in factor.edges(entry):
        if byte > _LAST_ASCII:
            continue
        further = factor.edges(state)
        # A name may end there, go on as those that are told apart by nothing, or with a byte that is no character.
        whole = (factor.slash[state], factor.out[state]) != ordinary or factor.other[state] != sink
        if whole or any(second > _LAST_ASCII for second, _ in further):
            yield chr(byte)
        else:
            yield from (chr(byte) + chr(second) for second, _ in further)


def _listed_names(factor: Factor, entry: int) -> Listed | None:
    """(state of every other name, the names that lead elsewhere); None when a glob makes them uncountable."""
    sink = factor.other[entry]
    if factor.other[sink] != sink or factor.edges(sink):
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


def _factors(rules: Sequence[RankedRule], protect_from: int) -> list[Factor]:
    """Anchored rules in one factor, those with `**` in others by shape, as unlike shapes multiply. Rules that multiply
    with their like are apart, and halved while too large."""
    from mcpguard.policy.bytewise import TooManyStates, build_factor

    multiplying = [rule for rule in rules if rule.shape == 2]
    anchored = [rule for rule in rules if rule.shape < 2 and not rule.roaming]
    roaming = [[rule for rule in rules if rule.roaming and rule.shape == shape] for shape in range(2)]
    factors: list[Factor] = []
    waiting = [anchored, *(group for group in (*roaming, multiplying) if group)]
    while waiting:
        group = waiting.pop(0)
        divisible = len(group) > 1 and group[0].shape == 2
        try:
            factors.append(build_factor(group, protect_from, MULTIPLYING_STATES if divisible else MAX_STATES))
        except TooManyStates as many:
            if not divisible or len(factors) + len(waiting) + 2 > MAX_FACTORS:
                raise _too_large(many.costly) from None
            waiting += [group[: len(group) // 2], group[len(group) // 2 :]]
    return factors


def _too_large(costly: Sequence[RankedRule]) -> PolicyError:
    patterns = ", ".join(f'"{rule.source.pattern}"' for rule in costly[:3])
    return PolicyError(
        f"the path rules are too many or too entangled; most costly: {patterns}",
        why=(
            f"the compiled rules must fit in {MAX_BYTES >> 20} MiB, {MAX_STATES} states and {MAX_FACTORS} tables,"
            f" with exceptions in at most {MAX_GUARDS} deny rules"
        ),
        do="give these patterns a fixed beginning, or fewer * and **",
        code="policy.too-large",
    )
