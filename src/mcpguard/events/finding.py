"""What a judged record amounts to, before it is put into an event with its process and time."""

from __future__ import annotations

from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind
from mcpguard.model.rule import Origin
from mcpguard.model.values import dataclass

# Details that begin so are ordinary habits of honest programs: on record, left out of summaries.
QUIET = "quiet"
# A quiet one that the summary turns into advice; the path follows.
NOT_THERE = f"{QUIET}: a rule allows it, but it was not there at launch and cannot be made inside; make it first"
# Details that begin so name an act that this tier let through although the policy forbids it.
NOT_STOPPED = "not stopped"
# Recorded as let through, and most often only the stand-in of a hidden folder.
LISTED = "a folder was listed, or the stand-in for it"
# A loss that touches nothing but how often allowed opens were repeated.
REPEATS_OF_OPENS = "repeats of allowed opens that could not be told apart any more"
# Stands in the detail of an approval between a rule and the reason why this session could not have it any more.
NOT_NOW = ": not now, for "
# The move would take something out of the reach of its rule; no rule can allow that.
BELOW = "a protected path lies below it"
UNEXPLAINED = "the sandbox refused it"


@dataclass(frozen=True, slots=True)
class Finding:
    """Verdict, object and deciding rule of one record; the fields mean what they mean in `Event`.

    Attributes:
        unsure: the way to `path`, when this is a refusal of ours only if that was a folder, which is to be seen.
    """

    kind: Kind
    op: str
    verdict: Verdict
    access: str | None = None
    path: str | None = None
    target: str | None = None
    rule: Origin | None = None
    detail: str | None = None
    unsure: tuple[str, ...] = ()


def system_rule(text: str) -> Origin:
    """The rule shown for what mcpguard refuses in every profile."""
    return Origin("mcpguard", "builtin", 0, f"system: {text}")


def is_quiet(event: Event) -> bool:
    return event.detail is not None and event.detail.startswith(QUIET)


def is_not_stopped(event: Event) -> bool:
    return event.detail is not None and event.detail.startswith(NOT_STOPPED)


def is_unnamed(event: Event) -> bool:
    """A question for the address of a name that no rule speaks of."""
    asked = (event.detail or "").partition(";")[0]
    return event.kind is Kind.DNS and event.host is not None and asked in ("A", "AAAA")
