"""Coverage: per rule kind on this host, what is really enforced."""

from __future__ import annotations

import enum

from mcpguard.model.values import dataclass

# Preemption models of the kernel under which a modify-return program is never skipped.
SAFE_PREEMPTION = ("none", "voluntary")


class Strength(enum.StrEnum):
    FULL = "full"
    PARTIAL = "partial"
    NONE = "none"


class Need(enum.StrEnum):
    """Who cannot do without a hook of the kernel's: every policy, those that ask for something, or none, because something else
    keeps the same.
    """

    EVERY = "every"
    READ = "read"
    EXECUTE = "execute"
    RINGS = "rings"
    DEBUGGERS = "debuggers"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Coverage:
    """How well one kind of rule is enforced.

    Attributes:
        kind: `files`, `execute`, `network`, `unix sockets`, `processes`, `events`.
        strength: full, partial (with the gap named) or none.
        by: the mechanism in the field's words, such as `Landlock ABI 7 + mount masks`.
        gaps: what is not covered; empty when full.
        fix: the exact thing to do to close the gap; empty when full or when nothing helps.
    """

    kind: str
    strength: Strength
    by: str
    gaps: tuple[str, ...] = ()
    fix: str = ""
