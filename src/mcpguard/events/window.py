"""The newest events of a session, for a screen: a bounded look at a record of any length.

Reads only, in portions, so that no reader holds back the writer.
"""

from __future__ import annotations

from mcpguard.events import schema
from mcpguard.events.query import PORTION, Filter, conditions
from mcpguard.events.store import Store
from mcpguard.model.event import Event

# A filter that matches almost nothing must not read a record of millions to its beginning before anything is shown.
MAX_LOOKED_AT = 200_000


def newest(
    store: Store, number: int, session: str, wanted: Filter, most: int, *, before: int | None = None
) -> list[Event]:
    """The last `most` events that match, oldest first.

    Args:
        number: the session's row number, `Store.number`.
        before: only events with a lower number.

    Raises:
        StoreError: it cannot be read.
    """
    where, values = conditions(wanted)
    found: list[Event] = []
    limit = 2**62 if before is None else before
    portion = PORTION if wanted.has_globs else most
    for _ in range(max(1, MAX_LOOKED_AT // portion)):
        statement = (
            f"{schema.SELECT_EVENT} WHERE e.session = ? AND e.seq < ?{where} ORDER BY e.seq DESC LIMIT {portion}"
        )
        rows = store.read(statement, (number, limit, *values))
        for row in rows:
            event = schema.event_of(row, session)
            limit = event.seq
            if wanted.keeps(event):
                found.append(event)
                if len(found) == most:
                    return found[::-1]
        if len(rows) < portion:
            break
    return found[::-1]


def between(store: Store, number: int, session: str, wanted: Filter, after: int, last: int) -> list[Event]:
    """The events that match with numbers above `after` up to `last`, in order.

    Raises:
        StoreError: it cannot be read.
    """
    where, values = conditions(wanted)
    statement = f"{schema.SELECT_EVENT} WHERE e.session = ? AND e.seq > ? AND e.seq <= ?{where} ORDER BY e.seq"
    found = (schema.event_of(row, session) for row in store.read(statement, (number, after, last, *values)))
    return [event for event in found if wanted.keeps(event)]
