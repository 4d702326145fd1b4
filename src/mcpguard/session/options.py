"""What `run` was asked for, as plain values."""

from __future__ import annotations

from mcpguard.model.values import dataclass


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The command line of `run`.

    Attributes:
        tier: `1`, `2` or `3` when the person insists on one.
        read, write, net: rules for this run only, as written.
        command: AGENT and its arguments, or a command and its arguments.
        after_separator: the command came after `--`: its first word is a program, not an AGENT.
        ask: what no rule covers is put to the person as a question in `watch`.
    """

    profile: str | None
    workspace: str | None
    audit: bool
    best_effort: bool
    tier: str | None
    read: tuple[str, ...]
    write: tuple[str, ...]
    net: tuple[str, ...]
    quiet: bool
    command: tuple[str, ...]
    after_separator: bool
    ask: bool = False

    @property
    def modes(self) -> tuple[str, ...]:
        """Words for the record: of `ask` and `audit`, those that are on."""
        return tuple(word for word, on in (("ask", self.ask), ("audit", self.audit)) if on)
