"""Whose rules answer a question: the session's, and for a server that is kept to less those that are left to it, too."""

from __future__ import annotations

from collections.abc import Sequence

from mcpguard.model.access import Verdict
from mcpguard.model.values import dataclass, replace
from mcpguard.resolver.rules import Decision, Rules
from mcpguard.resolver.table import Learned


@dataclass(slots=True)
class View:
    """One set of rules, and where the addresses stand that they have opened.

    Attributes:
        rule: decides where none of them does; 0: the default.
    """

    rules: Rules
    learned: Learned
    rule: int = 0


def decide(views: Sequence[View], name: str, server: bytes) -> list[Decision]:
    """What each says of a name; arguments as for `Rules.of_name`."""
    return [_blamed(view, view.rules.of_name(name, server)) for view in views]


def strictest(decisions: Sequence[Decision]) -> Decision:
    """What counts: a refusal, or else what is let through without a rule; of several the first."""
    order = (Verdict.DENY, Verdict.AUDIT, Verdict.ALLOW)
    return min(decisions, key=lambda decision: order.index(decision.verdict))


def follow_alias(views: Sequence[View], decisions: Sequence[Decision], alias: str) -> list[Decision]:
    """The same, when the name turns out to be an alias of another one."""
    return [
        _blamed(view, view.rules.of_alias(decision, alias)) for view, decision in zip(views, decisions, strict=True)
    ]


def _blamed(view: View, decision: Decision) -> Decision:
    return replace(decision, rule=view.rule) if view.rule and not decision.rule else decision
