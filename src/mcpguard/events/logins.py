"""Remote MCP servers that wanted a login, as they are on record: what to do then is for a person, and too long for a table."""

from __future__ import annotations

from mcpguard.errors import HostError, McpguardError, one_line
from mcpguard.events.store import Store

WANTS = "wants a login"
_BETWEEN = ("; why: ", "; do: ", "; code: ")
_CODE = "mcp.login"
# Only of messages: what refuses the start of a server holds words of whoever asked for it.
_TOLD = f"e.kind = 'mcp' AND e.op IN ('response', 'notification') AND e.detail LIKE 'the MCP server % {WANTS}; why: %'"


def detail_of(error: McpguardError) -> str:
    """The four lines of the error in one, for an event."""
    return one_line(
        "".join(map("".join, zip(("", *_BETWEEN), (error.what, error.why, error.do, error.code), strict=True)))
    )


def login_of(detail: str) -> HostError | None:
    """What `detail_of` was given, if it was this."""
    parts = []
    for between in _BETWEEN:
        part, _, detail = detail.partition(between)
        parts.append(part)
    what, why, do = parts
    return HostError(what, why=why, do=do, code=detail) if what.endswith(WANTS) and detail == _CODE else None


def logins(store: Store, session: str, most: int) -> list[HostError]:
    """What was told in a session, the newest words on each server.

    Raises:
        StoreError: it cannot be read, or there is no such session.
    """
    rows = store.read(
        f"SELECT e.detail, MAX(e.seq) AS last FROM events e WHERE e.session = ? AND {_TOLD} GROUP BY e.detail ORDER BY last",
        (store.number(session),),
    )
    found = {error.what: error for detail, _last in rows if (error := login_of(detail)) is not None}
    return list(found.values())[:most]
