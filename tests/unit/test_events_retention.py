"""What is forgotten of the record, and what never is."""

from __future__ import annotations

from pathlib import Path

import pytest
from events_help import OPEN_POLICY, make_policy
from typer.testing import CliRunner

from mcpguard.cli.commands import build
from mcpguard.errors import UsageError
from mcpguard.events.retention import Limits, excess, limits, parse, tidy
from mcpguard.events.sessions import Supervisor
from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind

DAY = 86_400 * 10**9
NOW = 1_790_000_000 * 10**9
DEAD = Supervisor(1, 1, "another boot")
POLICY = make_policy(*OPEN_POLICY)


def record(store: Store, id: str, days_ago: int, events: int = 10, *, ended: bool = True, alive: bool = False) -> None:
    began = NOW - days_ago * DAY
    who = Supervisor.current() if alive else DEAD
    store.start_session(POLICY, command=("a",), tier="3", coverage=(), now_ns=began, session=id, supervisor=who)
    path = "/" + "x" * 200
    store.add(id, [Event(began, id, Kind.FILE, "open", Verdict.ALLOW, access="read", path=path)] * events)
    if ended:
        store.end_session(id, exit_code=0, now_ns=began + 1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "events.db")


def ids(store: Store) -> list[str]:
    return [session.id for session in store.sessions()]


def test_what_is_too_old_goes_but_never_what_runs_or_came_last(store: Store) -> None:
    record(store, "old", 100)
    record(store, "killed", 99, ended=False)
    record(store, "running", 98, ended=False, alive=True)
    record(store, "last", 95)
    gone = tidy(store, Limits(None, 90 * 86_400), NOW)
    assert [one.id for one in gone.sessions] == ["old", "killed"]
    assert gone.whole
    assert ids(store) == ["last", "running"]
    assert store.read("SELECT COUNT(*) FROM events")[0][0] == 20
    assert store.read("SELECT COUNT(DISTINCT session) FROM rules")[0][0] == 2


def test_what_is_too_much_goes_from_its_oldest_end_and_the_file_shrinks(store: Store) -> None:
    for number in range(10):
        record(store, f"s{number}", 10 - number, 3000)
    before = store.size()
    gone = tidy(store, Limits(before // 2, None), NOW, budget_s=None)
    assert [one.id for one in gone.sessions] == [f"s{n}" for n in range(len(gone.sessions))]
    assert 5 <= len(gone.sessions) <= 7
    assert store.size() <= before // 2
    assert int(store.read("PRAGMA page_count")[0][0]) * 4096 < before * 0.75, "given back to the disk"
    assert tidy(store, Limits(before // 2, None), NOW).sessions == (), "there is room now"


def test_within_the_limits_nothing_goes(store: Store) -> None:
    record(store, "a", 50)
    record(store, "b", 1)
    assert tidy(store, Limits(), NOW).sessions == ()
    assert tidy(store, Limits(None, None), NOW).sessions == ()
    assert ids(store) == ["b", "a"]


def test_the_end_of_a_run_does_a_part_and_the_next_one_goes_on(store: Store) -> None:
    record(store, "old", 100, 12_000)
    record(store, "new", 1)
    first = tidy(store, Limits(None, 86_400), NOW, budget_s=0)
    assert (first.whole, first.events, first.sessions) == (False, 5_000, ())
    assert ids(store) == ["new", "old"]
    rest = tidy(store, Limits(None, 86_400), NOW, budget_s=None)
    assert rest.whole
    assert [one.id for one in rest.sessions] == ["old"]


def test_a_store_of_an_older_version_shrinks_when_it_is_asked_to(tmp_path: Path) -> None:
    with Store.open(tmp_path / "events.db") as store:
        store._connection.execute("PRAGMA auto_vacuum = NONE")
        store._connection.execute("VACUUM")
        record(store, "old", 100, 5000)
        record(store, "new", 1)
        tidy(store, Limits(None, 86_400), NOW, budget_s=None)
        store.give_back(whole=True)
        assert int(store.read("PRAGMA freelist_count")[0][0]) == 0
        assert int(store.read("PRAGMA auto_vacuum")[0][0]) == 2


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, Limits(1 << 30, 90 * 86_400)),
        ({"MCPGUARD_KEEP_SIZE": "all", "MCPGUARD_KEEP_AGE": "all"}, Limits(None, None)),
        ({"MCPGUARD_KEEP_SIZE": "500M"}, Limits(500 << 20, 90 * 86_400)),
        ({"MCPGUARD_KEEP_AGE": "2w"}, Limits(1 << 30, 14 * 86_400)),
    ],
)
def test_limits_are_the_users(environment: dict[str, str], found: Limits) -> None:
    assert limits(environment) == found


@pytest.mark.parametrize("text", ["", "5", "d", "0d", "-1d", "5x", "1.5G", "5d "])
def test_a_limit_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="neither an age nor a size"):
        parse(text)
    with pytest.raises(UsageError, match="MCPGUARD_KEEP_AGE"):
        limits({"MCPGUARD_KEEP_AGE": text})


def test_the_command_asks_tells_and_keeps_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    (tmp_path / "state").mkdir()
    with Store.open(tmp_path / "state" / "events.db") as store:
        record(store, "old", 2000)
        record(store, "last", 1999)
    run, app = CliRunner().invoke, build()
    assert run(app, ["sessions", "--keep", "30d"], input="n\n").exit_code == 1
    with Store.open(tmp_path / "state" / "events.db") as store:
        assert ids(store) == ["last", "old"]
    done = run(app, ["sessions", "--keep", "30d", "--yes"])
    assert done.exit_code == 0
    assert "forgotten: 1 session" in done.output
    assert "nothing to forget" in run(app, ["sessions", "--keep", "30d", "--yes"]).output
    with Store.open(tmp_path / "state" / "events.db") as store:
        assert ids(store) == ["last"]
        assert excess(store, Limits(1, 1), NOW) == []
