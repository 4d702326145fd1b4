"""The policy's own word on paths: which end of a call it refuses, and by which rule.

Pure: tables and paths in, refusals out. It never looks at a file system; `attribute` resolves names first.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from functools import lru_cache

from mcpguard.model.access import Access, Effect
from mcpguard.model.policy import PathRule
from mcpguard.model.values import dataclass
from mcpguard.policy.automaton import Automaton, Decision
from mcpguard.policy.patterns import quote

# Every path of a busy build is asked for several times within seconds; one entry is about 300 bytes.
CACHED_PATHS = 8_192
CACHED_FOLDERS = 2_048
CACHED_ANSWERS = 4_096
_BITS = (Access.READ, Access.WRITE, Access.EXECUTE)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The policy refuses `access` on `path`.

    Attributes:
        rule: index into `Policy.rules`; None: a protected path lies below and no single rule can be named.
        below: the object itself is free; a rule would lose hold of something below it.
        widens: a hard link would open the file wider than its own name does.
    """

    path: str
    access: Access
    rule: int | None
    below: bool = False
    widens: bool = False


class Judge:
    """Asks the automaton, remembers the answers."""

    def __init__(self, automaton: Automaton, paths: Sequence[PathRule]) -> None:
        self._decide = lru_cache(maxsize=CACHED_PATHS)(self._look_up)
        # A program that reads a tree asks for one folder after the other: of most paths only the last name is new.
        self._folder = lru_cache(maxsize=CACHED_FOLDERS)(automaton.walk)
        self._answers: dict[tuple[int, Access], tuple[Decision, tuple[Access, int | None]]] = {}
        self._automaton = automaton
        self._protecting = [rule for rule in paths if rule.effect is not Effect.ALLOW]

    def decide(self, path: str) -> Decision:
        """The policy's decision on an absolute path."""
        return self._decide(path)

    def answer(self, path: str, access: Access) -> tuple[Access, int | None]:
        """(the part of `access` that is refused, the rule that decides, whatever it decides; None when no access is asked)."""
        decision = self._decide(path)
        # Few decisions are behind many paths, and the automaton hands out the same objects. One that is kept stays the only one
        # with its number.
        known = self._answers.get((id(decision), access))
        if known is None:
            if len(self._answers) >= CACHED_ANSWERS:
                self._answers.clear()
            refused = access & ~decision.allowed
            known = self._answers[id(decision), access] = decision, (refused, _rule(decision, refused or access))
        return known[1]

    def rule_for(self, path: str, access: Access) -> int | None:
        """The rule that decides `access` on `path`, whatever it decides; None when no access is asked."""
        return self.answer(path, access)[1]

    def takes_away(self, rule: int | None) -> bool:
        """Whether it is a deny or readonly rule, and not the default."""
        return any(protecting.rule == rule for protecting in self._protecting)

    def refusal(self, op: str, access: Access, path: str, target: str | None = None) -> Refusal | None:
        """Why the policy refuses the call, or None: it allows it.

        Args:
            target: the new name of rename, exchange and link.
        """
        if op == "link" and target is not None:
            return self._object(Access.WRITE, target) or self._link(path, target)
        found = self._object(access, path)
        if target is not None:
            found = found or self._object(Access.WRITE, target)
        if op in ("rename", "exchange") and found is None and target is not None and not self._alike(path, target):
            found = self._below(path) or self._below(target)
        return found

    def _look_up(self, path: str) -> Decision:
        if "/." in path or "//" in path or path.endswith("/"):
            path = posixpath.normpath(path)
        folder, _, name = path.rpartition("/")
        state = self._automaton.child(self._folder(folder), name) if folder and name else self._automaton.walk(path)
        return self._automaton.decision(state)

    def _object(self, access: Access, path: str) -> Refusal | None:
        decision = self.decide(path)
        refused = access & ~decision.allowed
        return Refusal(path, refused, _rule(decision, refused)) if refused else None

    def _link(self, source: str, name: str) -> Refusal | None:
        here, there = self.decide(source), self.decide(name)
        wider = there.allowed & ~here.allowed
        return Refusal(source, wider, _rule(here, wider), widens=True) if wider else None

    def _alike(self, path: str, target: str) -> bool:
        """What lies below is judged the same at both ends: the move takes nothing out of a rule's reach."""
        return self._automaton.same_below(*(self._automaton.walk(posixpath.normpath(end)) for end in (path, target)))

    def _below(self, path: str) -> Refusal | None:
        if not self.decide(path).pinned:
            return None
        inside = quote(path.rstrip("/")) + "/"
        rule = next((r.rule for r in self._protecting if r.pattern.startswith(inside)), None)
        return Refusal(path, Access.WRITE, rule, below=True)


def _rule(decision: Decision, access: Access) -> int | None:
    """The rule of the first of the bits, read before write before execute."""
    return next((decision.rule(bit) for bit in _BITS if bit in access), None)
