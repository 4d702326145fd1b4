"""Access, effect and verdict: the words every layer shares."""

from __future__ import annotations

import enum


class Access(enum.IntFlag):
    """What a subject asks of a file. `WRITE` is every change: create, truncate, rename, link, chmod, xattr, utimes."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXECUTE = 4

    # As IntFlag has them, at a fifth of the price: a launch combines thousands.
    def __or__(self, other: int) -> Access:
        return _BY_BITS[int.__or__(self, other)]

    def __and__(self, other: int) -> Access:
        return _BY_BITS[int.__and__(self, other)]

    @property
    def word(self) -> str:
        """The access as a person reads it: `read`, `write`, `execute`, or a `+` joined list."""
        return "+".join(a.name.lower() for a in ACCESSES if a in self and a.name)


ACCESSES = (Access.READ, Access.WRITE, Access.EXECUTE)
_BY_BITS = [Access(bits) for bits in range(8)]


class Effect(enum.StrEnum):
    """What a rule does when it matches. `ASK`, of MCP alone: it needs a person's word each time."""

    ALLOW = "allow"
    ASK = "ask"
    READONLY = "readonly"
    DENY = "deny"


# What rules about paths may do.
PATH_EFFECTS = (Effect.ALLOW, Effect.READONLY, Effect.DENY)


class Verdict(enum.StrEnum):
    """The answer to a request. `AUDIT`: it was let through and would have been denied."""

    ALLOW = "allow"
    DENY = "deny"
    AUDIT = "audit"
