"""Which servers may start, as what they may start, and with what."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from mcpguard.errors import HostError
from mcpguard.model.plan import KEPT_CANARY
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
        kept: number of the rule that keeps it to less than its agent has; 0: none does.
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
    kept: int = 0

    def order(self) -> dict[str, Any]:
        """What the shim is told."""
        return {
            "program": self.program,
            "argv": self.argv,
            "environment": self.environment,
            "cwd": self.cwd,
            "grants": self.grants,
            "filter": self.filter.hex(),
            "canary": KEPT_CANARY if self.kept else None,
        }

    def gave(self, seen: Sequence[bytes]) -> bool:
        """Whether this environment is what it was given."""
        return {os.fsencode(f"{name}={value}") for name, value in self.environment.items()} == set(seen)

    def starts_in(self, folder: str, identity: tuple[int, int] | None) -> bool:
        """Whether it was executed where it should be."""
        return os.path.normpath(self.cwd) == folder or (identity is not None and _is_there(self.cwd, identity))


def _is_there(place: str, identity: tuple[int, int]) -> bool:
    try:
        state = os.stat(place)
    except OSError:
        return False
    return (state.st_dev, state.st_ino) == identity


def forms_of(program: str, argv: Sequence[str], known: Collection[str] | None = None) -> tuple[Form, ...]:
    """What a process may be that has executed a program: the program, or what the `#!` lines in it have executed instead.

    Args:
        known: resolved paths of what was looked at before; what is neither among them nor root's alone has been put there
            since, and ends the chain. None: there is nothing to compare with.
    """
    inodes = (
        None if known is None else {(state.st_dev, state.st_ino) for state in map(_state, known) if state is not None}
    )
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
        if (
            inodes is not None
            and (state.st_dev, state.st_ino) not in inodes
            and (state.st_uid or state.st_mode & 0o022)
        ):
            break
        found.append(Form((state.st_dev, state.st_ino), tuple(map(os.fsencode, words))))
        now = _interpreted(line, place, words) if line.startswith(b"#!") else None
    return tuple(found)


def _state(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _interpreted(line: bytes, place: str, words: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
    """As the kernel makes it: the interpreter, all that stands behind it as one argument, the script, its arguments."""
    interpreter, *rest = os.fsdecode(line[2:].partition(b"\n")[0]).strip(" \t").split(None, 1) or [""]
    return (interpreter, (interpreter, *rest, place, *words[1:])) if interpreter else None
