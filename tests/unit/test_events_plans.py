"""Questions about all sessions go by an index: a record of millions of events is never read one by one for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, make_policy

from mcpguard.events import query
from mcpguard.events.missing import incomplete
from mcpguard.events.store import Store
from mcpguard.events.totals import denied_by_session
from mcpguard.model.access import Verdict


@pytest.mark.parametrize(
    "ask",
    [
        denied_by_session,
        lambda store: incomplete(store, store.sessions()),
        lambda store: list(query.events(store, "s", query.Filter(verdict=Verdict.DENY))),
        lambda store: store.count(),
        lambda store: store.first_ns(),
    ],
)
def test_no_question_reads_every_event(tmp_path: Path, ask: Callable[[Store], object]) -> None:
    with Store.open(tmp_path / "events.db") as store:
        store.start_session(make_policy(*OPEN_POLICY), command=("a",), tier="3", coverage=(), now_ns=1, session="s")
        asked: list[str] = []
        store._connection.set_trace_callback(asked.append)
        ask(store)
        store._connection.set_trace_callback(None)
        plans = [str(step[3]) for one in asked for step in store.read(f"EXPLAIN QUERY PLAN {one}")]
    assert asked
    assert not [step for step in plans if step.startswith("SCAN e") or step == "SCAN events"], plans
