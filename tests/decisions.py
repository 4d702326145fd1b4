"""The shared case file `tests/data/decisions.yaml`, as rules and expectations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mcpguard.model.access import Access, Effect
from mcpguard.model.policy import PathRule
from mcpguard.policy.automaton import Automaton

FILE = Path(__file__).parent / "data" / "decisions.yaml"
ALL = Access.READ | Access.WRITE | Access.EXECUTE
_LETTERS = {"r": Access.READ, "w": Access.WRITE, "x": Access.EXECUTE}
_REPEATED = re.compile(r"<([^<>]+)\*(\d+)>")


@dataclass(frozen=True)
class Expected:
    """What the rules say about one path.

    Attributes:
        allowed, taken: accesses that are allowed, and those that a rule takes away, in audit, too.
        rules: those that decide read, write, execute.
    """

    path: str
    allowed: Access
    taken: Access
    rules: tuple[int, ...]
    pinned: bool


@dataclass(frozen=True)
class Case:
    """One set of rules with what it says."""

    about: str
    rules: tuple[PathRule, ...]
    paths: tuple[Expected, ...]
    same: tuple[tuple[str, str], ...]
    differ: tuple[tuple[str, str], ...]

    @property
    def automaton(self) -> Automaton:
        return Automaton.build(self.rules)


def cases() -> list[Case]:
    """All of them, with those that are written by a loop."""
    with FILE.open(encoding="utf-8") as text:
        return [*map(_case, yaml.safe_load(text)), many_guards()]


def many_guards() -> Case:
    """As many deny rules with exceptions as there can be: their bits fill two words."""
    rules = [PathRule(Effect.ALLOW, Access.READ, "/", (), 1)]
    paths = [Expected("/", Access.READ, Access.NONE, (1, 0, 0), True)]
    for number in range(2, 66):
        name = f"/g{number}"
        rules.append(PathRule(Effect.DENY, ALL, name, (f"{name}/open", f"/g{number - 1}/both"), number))
        paths.append(Expected(f"{name}/shut", Access.NONE, ALL, (number,) * 3, True))
        paths.append(Expected(f"{name}/open", Access.READ, Access.NONE, (1, 0, 0), False))
        paths.append(Expected(f"{name}/both", Access.NONE, ALL, (number,) * 3, True))
    differ = tuple((f"/g{number}", f"/g{number + 1}") for number in range(2, 65))
    return Case("64 deny rules with exceptions", tuple(rules), tuple(paths), (("/a", "/b"),), differ)


def _case(written: dict[str, Any]) -> Case:
    rules = tuple(_rule(row, number) for number, row in enumerate(written["rules"], 1))
    return Case(
        written["about"],
        rules,
        tuple(_expected(path, says) for path, says in written["paths"].items()),
        _pairs(written.get("same", ())),
        _pairs(written.get("differ", ())),
    )


def _rule(row: dict[str, Any], number: int) -> PathRule:
    exceptions = tuple(map(_text, row.get("except", ())))
    if "allow" in row:
        return PathRule(Effect.ALLOW, _accesses(row["access"]), _text(row["allow"]), (), number)
    if "readonly" in row:
        return PathRule(Effect.READONLY, Access.WRITE, _text(row["readonly"]), (), number)
    return PathRule(Effect.DENY, ALL, _text(row["deny"]), exceptions, number)


def _expected(path: str, says: str) -> Expected:
    letters, rules, *more = says.split()
    assert more in ([], ["pinned"]) and len(letters) == 3, says
    taken = sum((access for letter, access in zip(letters, _LETTERS.values(), strict=True) if letter == "!"), 0)
    decide = tuple(map(int, rules.split("/")))
    return Expected(_text(path), _accesses(letters), Access(taken), decide, more == ["pinned"])


def _accesses(letters: str) -> Access:
    return Access(sum(_LETTERS.get(letter, 0) for letter in letters))


def _text(written: str) -> str:
    """Innermost repetitions first."""
    while found := _REPEATED.search(written):
        written = written[: found.start()] + found[1] * int(found[2]) + written[found.end() :]
    return written


def _pairs(rows: Any) -> tuple[tuple[str, str], ...]:
    return tuple((_text(one), _text(other)) for one, other in rows)
