"""What a person allowed while a session ran, from its record."""

from __future__ import annotations

from mcpguard.events.finding import NOT_NOW
from mcpguard.events.schema import SELECT_EVENT, event_of
from mcpguard.events.store import Store
from mcpguard.events.totals import APPROVED, CALL_APPROVED
from mcpguard.model.event import Event
from mcpguard.model.rule import Origin
from mcpguard.model.values import dataclass

# How far an approval reaches, as `live` writes it and scripts read it.
HOW_FAR = {"once": "once", "session": "for the session", "profile": "in the profile"}


@dataclass(frozen=True, slots=True)
class Approval:
    """A rule that was added, or a call that was let go on.

    Attributes:
        time_ns: nanoseconds since the Unix epoch.
        rule: as a profile would have it; of a call its server and tool.
        scope: `once`, `session` or `profile`.
        who: the process that asked, `comm[pid]`.
        origin: where the rule stands now; None when the session could not have it: the next run has it if `scope` is `profile`.
        why_later: why the session could not have it; empty when it had.
        call: what finds the call in the log; empty: it is a rule.
    """

    time_ns: int
    rule: str
    scope: str
    who: str
    origin: Origin | None
    why_later: str
    call: str = ""

    @property
    def how(self) -> str:
        """In words."""
        if self.origin or self.call:
            return HOW_FAR.get(self.scope, self.scope)
        return "the next run has it" if self.scope == "profile" else "not in this session, nor written for the next run"


def approvals(store: Store, session: str, most: int) -> list[Approval]:
    """The first `most` of a session, in their order.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    rows = store.read(
        f"{SELECT_EVENT} WHERE e.session = ? AND (({APPROVED}) OR ({CALL_APPROVED})) ORDER BY e.seq LIMIT ?",
        (store.number(session), most),
    )
    return [_approval(event_of(row, session)) for row in rows]


def _approval(event: Event) -> Approval:
    told = event.detail or ""
    if (message := event.mcp) is not None:
        far, _, who = told.removeprefix("allowed ").partition(" in watch, by ")
        scope = next((scope for scope, words in HOW_FAR.items() if words == far), far)
        text = f"mcp call {message.server}/{message.tool or message.method or ''}"
        return Approval(event.time_ns, text, scope, who, event.rule, "", message.call or "")
    text, later, rest = told.partition(NOT_NOW)
    why, _, how = rest.rpartition("; ") if later else ("", "", told)
    # The name of the process comes last, for whoever chose it could write anything.
    far, _, who = how.partition(", by ")
    scope = next((scope for scope, words in HOW_FAR.items() if words == far), far)
    return Approval(event.time_ns, event.rule.text if event.rule else text, scope, who, event.rule, why)
