"""Which servers may start, as what they may start, and with what."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from mcpguard.errors import HostError
from mcpguard.model.values import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# As far as the kernel follows interpreters of interpreters.
_DEEPEST = 5
_LONGEST_LINE = 256


class Unvetted(HostError):
    """A server may not start. Its four lines are for the agent's log."""


Grants = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Form:
    """What a process may be.

    Attributes:
        image: device and inode of what it executes.
        argv: with what it was executed.
    """

    image: tuple[int, int]
    argv: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Admission:
    """A server that may start.

    Attributes:
        program: absolute path of what is executed.
        argv: with the program's own name first.
        environment: all that it gets.
        forms: what it may be once it was executed.
        cwd: where it is started.
        tools: what its tools do, for `Judge`.
        pins: its definitions when it was approved, for `Judge`.
        grants: lists of `[path, Landlock rights]`; it may reach what every one of them holds. Empty: what the agent may.
        filter: a system-call filter to put on besides; empty: none.
    """

    program: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    forms: tuple[Form, ...]
    cwd: str
    tools: dict[str, Any] = field(default_factory=dict)
    pins: dict[str, str] = field(default_factory=dict)
    grants: tuple[Grants, ...] = ()
    filter: bytes = b""

    def order(self) -> dict[str, Any]:
        """What the shim is told."""
        return {
            "program": self.program,
            "argv": self.argv,
            "environment": self.environment,
            "cwd": self.cwd,
            "grants": self.grants,
            "filter": self.filter.hex(),
        }


def forms_of(program: str, argv: Sequence[str], path: str) -> tuple[Form, ...]:
    """What a process may be that has executed a program: the program, or what the `#!` lines in it have executed instead.

    Args:
        path: where `env` looks.
    """
    found: list[Form] = []
    now: tuple[str, tuple[str, ...]] | None = (program, tuple(argv))
    while now is not None and len(found) < _DEEPEST:
        place, words = now
        try:
            state = os.stat(place)
            with open(place, "rb") as file:
                line = file.read(_LONGEST_LINE)
        except OSError:
            break
        found.append(Form((state.st_dev, state.st_ino), tuple(map(os.fsencode, words))))
        now = _interpreted(line, place, words) if line.startswith(b"#!") else _found_by_env(place, words, path)
    return tuple(found)


def _interpreted(line: bytes, place: str, words: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """As the kernel makes it: the interpreter, all that stands behind it as one argument, the script, its arguments."""
    interpreter, *rest = os.fsdecode(line[2:].partition(b"\n")[0]).strip(" \t").split(None, 1) or [""]
    return (interpreter, (interpreter, *rest, place, *words[1:])) if interpreter else None


def _found_by_env(place: str, words: tuple[str, ...], path: str) -> tuple[str, tuple[str, ...]] | None:
    if os.path.basename(place) != "env":
        return None
    given = list(words[1:])
    if given and given[0].startswith("-S"):
        given[:1] = given[0][2:].split()
    while given and (given[0].startswith("-") or "=" in given[0]):
        given.pop(0)
    inner = shutil.which(given[0], path=path) if given else None
    return None if inner is None else (inner, tuple(given))
