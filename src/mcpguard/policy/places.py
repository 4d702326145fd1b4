"""Written patterns to the places that the kernel will see: variables put in, symlinks followed where they may be.

Pure: sees the file system only through `links.Links`. The rules about symlinks are those of `compile`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from mcpguard.errors import PolicyError
from mcpguard.model.access import Access, Effect
from mcpguard.model.policy import PathRule, SocketEntry
from mcpguard.model.rule import FileRule, SocketRule
from mcpguard.policy.automaton import Automaton
from mcpguard.policy.links import Links
from mcpguard.policy.patterns import expand, quote, split_literal


class Places:
    """Patterns of one policy, in absolute form."""

    def __init__(
        self,
        links: Links,
        variables: Mapping[str, str],
        files: Sequence[FileRule],
        before: Sequence[PathRule] = (),
        trusted: Callable[[str], bool] = lambda _place: True,
    ) -> None:
        """
        Args:
            before: rules that hold besides, in absolute form already.
            trusted: whether the symlink at a place may lead a rule that opens something elsewhere, by what the caller knows.
        """
        self._trusted = trusted
        self._links = links
        self._variables = variables
        self._writable = Automaton.build([])
        self._find_writable(list(filter(_may_write, files)), {rule.pattern for rule in before if _may_write(rule)})

    def paths(self, rule: FileRule, number: int) -> list[PathRule]:
        """A file rule at every place where it holds."""
        opening = rule.effect is Effect.ALLOW
        exceptions = sorted({form for text in rule.exceptions for form in self._forms(text, rule, opening=True)})
        itself = rule.existing == rule.pattern
        forms = {rule.pattern} if itself else self._forms(rule.pattern, rule, opening=opening)
        return [PathRule(rule.effect, rule.access, form, tuple(exceptions), number) for form in forms]

    def sockets(self, rule: SocketRule, number: int) -> list[SocketEntry]:
        """A socket rule at every place where it holds."""
        if rule.pattern.startswith("@"):
            return [SocketEntry(_abstract(rule), rule.effect, number)]
        forms = self._forms(rule.pattern, rule, opening=rule.effect is Effect.ALLOW)
        return [SocketEntry(form, rule.effect, number, rule.own) for form in forms]

    def _find_writable(self, rules: Sequence[FileRule], absolute: set[str]) -> None:
        """Where the agent may write, symlinked rules included: a rule whose symlink lies in another one's tree adds
        nothing, so this grows until it stays."""
        patterns = absolute | {expand(rule.pattern, rule.origin.place, self._variables) for rule in rules}
        while True:
            self._writable = Automaton.build([_write(pattern) for pattern in sorted(patterns)])
            found = {form for rule in rules for form in self._forms(rule.pattern, rule, opening=True)}
            if found <= patterns:
                return
            patterns |= found

    def _forms(self, text: str, rule: FileRule | SocketRule, *, opening: bool) -> Iterable[str]:
        written = expand(text, rule.origin.place, self._variables)
        path, rest = split_literal(written)
        real = self._links.follow(path, self._is_safe if opening else _always)
        if real is None or real == path:
            return {written}
        return {written, (quote(real).rstrip("/") + rest) or "/"}

    def _is_safe(self, place: str) -> bool:
        """The agent cannot have planted a symlink at this place."""
        automaton = self._writable
        return Access.WRITE not in automaton.decision(automaton.walk(place)).allowed and self._trusted(place)


def _may_write(rule: FileRule | PathRule) -> bool:
    return rule.effect is Effect.ALLOW and Access.WRITE in rule.access


def _always(_place: str) -> bool:
    return True


def _write(pattern: str) -> PathRule:
    return PathRule(Effect.ALLOW, Access.WRITE, pattern, (), 1)


def _abstract(rule: SocketRule) -> str:
    """Check an abstract socket's name."""
    name = rule.pattern[1:]
    star = name.endswith("*")
    if not name.removesuffix("*") and not (star and rule.effect is Effect.DENY):
        why, do = "it names no socket, or every one of the host", "write @NAME or @BEGINNING*"
    elif "*" in name[:-1] or "\0" in name:
        why, do = "an abstract name holds a * only at its end, and no NUL byte", "write @NAME or @BEGINNING*"
    elif rule.own:
        why, do = "the session's own abstract names need no rule", "remove it"
    else:
        return rule.pattern
    raise PolicyError(f'{rule.origin.place}: socket "{rule.pattern}"', why=why, do=do, code="policy.socket")
