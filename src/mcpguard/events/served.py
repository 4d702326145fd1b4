"""What one MCP server of a session did, with all that it started: from the program on that its shim became."""

from __future__ import annotations

from collections.abc import Iterator

from mcpguard.events import query
from mcpguard.events.ancestors import Ancestors
from mcpguard.events.store import Store
from mcpguard.model.event import Event, Kind

_ACTS = (Kind.EXEC, Kind.FILE, Kind.NET)


def servers(store: Store, session: str) -> dict[str, dict[int, int]]:
    """The local servers that the gate started in a session, by name: PID -> when it became its program, in ns since the epoch.

    Raises:
        StoreError: the record cannot be read, or there is no such session.
    """
    executed: dict[int, list[int]] = {}
    for event in query.events(store, session, query.Filter(kind=Kind.EXEC)):
        if event.pid is not None:
            executed.setdefault(event.pid, []).append(event.time_ns)
    found: dict[str, dict[int, int]] = {}
    for event in query.events(store, session, query.Filter(kind=Kind.MCP)):
        if event.op != "start" or event.mcp is None or event.pid is None:
            continue
        # What came before its last program is the shim's own.
        before = [time for time in executed.get(event.pid, ()) if time <= event.time_ns]
        found.setdefault(event.mcp.server, {})[event.pid] = max(before, default=event.time_ns)
    return found


def acts(store: Store, session: str, server: str) -> Iterator[Event]:
    """The files, programs and destinations of a server's processes, kind by kind.

    Raises:
        StoreError: the record cannot be read, or there is no such session.
    """
    began = servers(store, session).get(server)
    if not began:
        return
    ancestors = Ancestors.of_session(store, session)
    lives = [(pid, since, ancestors.until(pid, since)) for pid, since in began.items()]
    for kind in _ACTS:
        for event in query.events(store, session, query.Filter(kind=kind, since_ns=min(began.values()))):
            if event.pid is None:
                continue
            who, when = event.pid, event.time_ns
            # What the shim's process had started before is not the server's: whoever became the shim has started it.
            if any(
                since <= when < until and ancestors.comes_from(pid, since, who, when) for pid, since, until in lives
            ):
                yield event
