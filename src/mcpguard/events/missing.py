"""What is missing from the record of a session.

What the recorder knew of is in the store, as `loss` events. Two things cannot be: what came after mcpguard was killed, and
what a store that took nothing any more should have held. Whoever reads the record next says them here.
"""

from __future__ import annotations

from collections.abc import Iterable

from mcpguard.events.finding import REPEATS_OF_OPENS
from mcpguard.events.sessions import Session, State
from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind

STORE = "events that the store did not take"
CUT_OFF = "records at least, of what came after mcpguard was killed: nobody read them"


def loss(time_ns: int, session: str, what: str, count: int, seq: int = 0) -> Event:
    """At least `count` of something are not on record."""
    return Event(time_ns, session, Kind.LOSS, "lost", Verdict.ALLOW, seq, count=count, detail=what)


def unwritten(store: Store, session: Session) -> list[Event]:
    """Losses that nobody could write down, numbered behind the stored events.

    Raises:
        StoreError: it cannot be read.
    """
    number = store.number(session.id)
    query = "SELECT COALESCE(SUM(count), 0) FROM events WHERE session = ? AND kind = 'loss' AND detail = ?"
    unsaved = session.unsaved - int(store.read(query, (number, STORE))[0][0])
    found = {STORE: unsaved, CUT_OFF: int(session.state is State.INTERRUPTED)}
    last = store.read("SELECT seq, time_ns FROM events WHERE session = ? ORDER BY seq DESC LIMIT 1", (number,))
    seq, time_ns = last[0] if last else (0, session.started_ns)
    losses = [(what, count) for what, count in found.items() if count > 0]
    return [
        loss(session.ended_ns or int(time_ns), session.id, what, count, int(seq) + place)
        for place, (what, count) in enumerate(losses, 1)
    ]


def incomplete(store: Store, sessions: Iterable[Session]) -> set[str]:
    """The ids of those that did more than their record tells; counts of repeated opens aside.

    Raises:
        StoreError: it cannot be read.
    """
    # Session by session, as the index has it; all events at once would be read one by one.
    query = (
        "SELECT s.id FROM sessions s WHERE EXISTS "
        "(SELECT 1 FROM events e WHERE e.session = s.n AND e.kind = 'loss' AND e.detail IS NOT ?)"
    )
    lossy = {row[0] for row in store.read(query, (REPEATS_OF_OPENS,))}
    return {s.id for s in sessions if s.id in lossy or s.unsaved or s.state is State.INTERRUPTED}
