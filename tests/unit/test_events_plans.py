"""Questions about all sessions go by an index: a record of millions of events is never read one by one for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, make_policy

from mcpguard.events import query
from mcpguard.events.missing import incomplete, unwritten
from mcpguard.events.store import Store
from mcpguard.events.totals import DENIED, denied_by_session, groups
from mcpguard.model.access import Verdict


@pytest.mark.parametrize(
    "ask",
    [
        denied_by_session,
        lambda store: incomplete(store, store.sessions()),
        lambda store: list(query.events(store, "s", query.Filter(verdict=Verdict.DENY))),
        lambda store: unwritten(store, store.session("s")),
        lambda store: groups(store, "s", DENIED, 5),
    ],
)
def test_no_question_reads_every_event(tmp_path: Path, ask: Callable[[Store], object]) -> None:
    with Store.open(tmp_path / "events.db") as store:
        store.start_session(make_policy(*OPEN_POLICY), command=("a",), tier="3", coverage=(), now_ns=1, session="s")
        asked: list[str] = []
        store._connection.set_trace_callback(asked.append)
        ask(store)
        store._connection.set_trace_callback(None)
        # The highest number of a session is the end of its primary key: one row.
        asked = [one for one in asked if "MAX(seq)" not in one and "ORDER BY seq DESC LIMIT 1" not in one]
        plans = [str(step[3]) for one in asked for step in store.read(f"EXPLAIN QUERY PLAN {one}")]
    assert asked
    events = [step for step in plans if re.match(r"(SCAN|SEARCH) (e|events)\b", step)]
    assert events
    # By a kind or verdict, or from a number on; not all that a session has.
    assert all(re.search(r"\((session=\? AND (kind|verdict)=\?|session=\? AND seq)", step) for step in events), plans
