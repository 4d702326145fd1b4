"""What came of MCP servers that needs a person, as it is on record: a login, a refusal, an end.

What to do then is too long for a table, and an agent may show nobody what it was told.
"""

from __future__ import annotations

import re

from mcpguard.errors import HostError, McpguardError, one_line
from mcpguard.events.store import Store

WANTS = "wants a login"
_BETWEEN = ("; why: ", "; do: ", "; code: ")
_CODE = re.compile(r"mcp\.[a-z-]+\Z")
# A message holds words of a server: there it is one of our own texts.
_TOLD = (
    "e.detail LIKE '%; why: %; do: %; code: mcp.%' AND e.verdict = 'deny' AND (e.op = 'refuse' AND e.kind = 'mcp' "
    "OR e.op = 'end' AND e.kind = 'process') "
    f"OR e.kind = 'mcp' AND e.op IN ('response', 'notification') AND e.detail LIKE 'the MCP server % {WANTS}; why: %'"
)


def detail_of(error: McpguardError) -> str:
    """The four lines of the error in one, for an event. Names in it were chosen by anybody, and begin no part of it."""
    parts = [error.what, error.why, error.do, error.code]
    for between in _BETWEEN:
        parts = [part.replace(between, between[1:]) for part in parts]
    return one_line("".join(map("".join, zip(("", *_BETWEEN), parts, strict=True))))


def error_of(detail: str) -> HostError | None:
    """What `detail_of` was given, if it was this."""
    parts = []
    for between in _BETWEEN:
        part, _, detail = detail.partition(between)
        parts.append(part)
    what, why, do = parts
    return HostError(what, why=why, do=do, code=detail) if what and _CODE.match(detail) else None


def told_errors(store: Store, session: str, most: int) -> list[HostError]:
    """What was told in a session, the newest words on each thing.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    rows = store.read(
        "SELECT e.detail, MAX(e.seq) AS last FROM events e "
        f"WHERE e.session = ? AND ({_TOLD}) GROUP BY e.detail ORDER BY last",
        (store.number(session),),
    )
    found = {error.what: error for detail, _last in rows if (error := error_of(detail)) is not None}
    return list(found.values())[:most]
