"""The event store's file: modes, schema, concurrent use, and everything that can be wrong with it."""

from __future__ import annotations

import dataclasses
import os
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from events_help import OPEN_POLICY, START_EPOCH_NS, begin, make_policy

from mcpguard.errors import StoreError
from mcpguard.events import database
from mcpguard.events.ids import new_id
from mcpguard.events.query import Filter, events
from mcpguard.events.sessions import State, Supervisor
from mcpguard.events.store import Store
from mcpguard.model.access import Verdict
from mcpguard.model.coverage import Coverage, Strength
from mcpguard.model.event import Event, Kind, McpMessage, Peer
from mcpguard.model.rule import Origin

POLICY = make_policy(*OPEN_POLICY)
DEAD = Supervisor(pid=4_194_305, start=77, boot=Supervisor.current().boot)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "events.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as opened:
        yield opened


def make(number: int = 0, **changes: object) -> Event:
    event = Event(START_EPOCH_NS + number, "", Kind.FILE, "open", Verdict.ALLOW, path=f"/ws/{number}")
    return dataclasses.replace(event, **changes)  # type: ignore[arg-type]


def stored(store: Store, session: str) -> list[Event]:
    return list(events(store, session, Filter()))


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A full disk for this process: Python ignores SIGXFSZ, so a write beyond the limit fails with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_every_field_of_an_event_comes_back_as_it_was_stored(store: Store) -> None:
    session = begin(store, POLICY)
    event = Event(
        time_ns=START_EPOCH_NS,
        session=session,
        kind=Kind.EXEC,
        op="exec",
        verdict=Verdict.DENY,
        seq=1,
        access="execute",
        path="/a",
        target="/b",
        host="h.example",
        address="::1",
        port=443,
        protocol="tcp",
        pid=1,
        ppid=2,
        exe="/c",
        comm="c",
        argv=("c", "", "ü"),
        rule=POLICY.rules[2],
        count=9,
        errno="EACCES",
        detail="d",
        mcp=McpMessage(
            *("files", "stdio", "client", "c1", "tools/call", "1", "read", '{"path":"/ü"}', True, "read"),
            *(5, "no", -32000, 7),
            client=Peer(1, "/c"),
            peer=Peer(2),
        ),
        bytes_sent=10,
        bytes_received=0,
    )
    assert event.mcp is not None
    assert all(getattr(event.mcp, field.name) is not None for field in dataclasses.fields(event.mcp))
    assert all(getattr(event, field.name) is not None for field in dataclasses.fields(event))
    store.add(session, [event])
    assert stored(store, session) == [event]


def test_events_are_numbered_from_one_within_their_session(store: Store) -> None:
    first, second = begin(store, POLICY), begin(store, POLICY)
    store.add(first, [make(1), make(2)])
    store.add(second, [make(3)])
    store.add(first, [make(4)])
    assert [event.seq for event in stored(store, first)] == [1, 2, 3]
    assert [event.seq for event in stored(store, second)] == [1]


def test_a_rule_that_is_not_in_the_policy_is_kept_with_its_event(store: Store, path: Path) -> None:
    session = begin(store, POLICY)
    rule = Origin("mcpguard", "builtin", 0, "system: no BPF")
    store.add(session, [make(1, rule=rule)])
    with Store.open(path) as other:
        other.add(session, [make(2, rule=rule)])
    assert [event.rule for event in stored(store, session)] == [rule, rule]
    assert store.read("SELECT COUNT(*) FROM rules WHERE text = ?", (rule.text,))[0][0] == 1


def test_several_processes_of_a_session_add_rules_of_their_own(store: Store, path: Path) -> None:
    session = begin(store, POLICY)
    rules = [Origin("x", "x", line, f"rule {line}") for line in range(6)]
    with Store.open(path) as second, Store.open(path) as third:
        for writer in (store, second, third):
            writer.add(session, [make(0, rule=POLICY.rules[0])])  # each knows the rules that there are now
        for number, rule in enumerate([*rules, rules[5], rules[0]], 1):
            (store, second, third)[number % 3].add(session, [make(number, rule=rule)])
    assert [event.rule for event in stored(store, session)][3:] == [*rules, rules[5], rules[0]]
    assert store.read("SELECT COUNT(*) FROM rules WHERE text LIKE 'rule %'") == [(6,)]


def test_a_first_batch_that_came_at_a_busy_time_spoils_none_after_it(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, rule = begin(store, POLICY), Origin("x", "x", 1, "x")
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.01)
    blocker = sqlite3.connect(path, isolation_level=None)
    with Store.open(path) as other:
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError):
            other.add(session, [make(1, rule=rule)])
        blocker.execute("ROLLBACK")
        other.add(session, [make(1, rule=rule), make(2, rule=POLICY.rules[0])])
    blocker.close()
    assert [event.rule for event in stored(store, session)] == [rule, POLICY.rules[0]]


@pytest.mark.parametrize("first", [True, False])
def test_a_rule_of_a_batch_that_cannot_be_made_is_written_again(first: bool, store: Store, path: Path) -> None:
    session, rule = begin(store, POLICY), Origin("x", "x", 1, "x")
    with Store.open(path) as other:  # who has not written the rules of the session knows none of them
        if not first:
            other.add(session, [make(1, rule=POLICY.rules[0])])
        before = len(stored(store, session))
        with pytest.raises(AttributeError):
            other.add(session, [make(1, rule=rule), None])  # type: ignore[list-item]
        other.add(session, [make(1, rule=rule)])
    assert [event.rule for event in stored(store, session)][before:] == [rule]


def test_names_that_are_no_text_are_stored_readably(store: Store) -> None:
    session = begin(store, POLICY)
    store.add(session, [make(1, path="/ws/\udcff\udc80", argv=("\udcfe",))])
    (found,) = stored(store, session)
    assert (found.path, found.argv) == ("/ws/\\xff\\x80", ("\\xfe",))


def test_a_batch_is_stored_as_a_whole_or_not_at_all(store: Store) -> None:
    session = begin(store, POLICY)
    new_rule = Origin("x", "x", 1, "x")
    with pytest.raises(StoreError):
        store.add(session, [make(1, rule=new_rule, seq=5), make(2, seq=5)])
    assert stored(store, session) == []
    store.add(session, [make(1, rule=new_rule)])
    assert [event.rule for event in stored(store, session)] == [new_rule], "the forgotten rule is written again"


def test_file_and_folder_are_the_users_alone(store: Store, path: Path) -> None:
    begin(store, POLICY)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_modes_that_were_loosened_are_tightened(path: Path) -> None:
    Store.open(path).close()
    path.chmod(0o644)
    path.parent.chmod(0o755)
    Store.open(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_symlink_in_place_of_the_file_is_refused(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    (tmp_path / "elsewhere").write_text("precious")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        Store.open(path)
    assert (tmp_path / "elsewhere").read_text() == "precious"


def test_a_folder_in_place_of_the_file_is_a_clear_error(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(StoreError) as caught:
        Store.open(path)
    assert caught.value.code.startswith("store.")


def test_a_reader_does_not_make_a_store(path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        Store.open(path, create=False)
    assert caught.value.code == "store.empty"
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"this is no database, but a letter to a friend" * 100, b"SQLite format 3\0" + b"x" * 5000]
)
def test_a_broken_file_is_moved_aside_and_said_so(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with Store.open(path) as store:
        begin(store, POLICY)
        assert store.note is not None
        (aside,) = [file for file in path.parent.iterdir() if ".broken-" in file.name]
        assert str(aside) in store.note
    assert aside.read_bytes() == content
    with Store.open(path) as again:
        assert again.note is None
        assert len(again.sessions()) == 1


def test_a_database_of_another_program_is_moved_aside_and_kept(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()
    with Store.open(path) as store:
        assert store.note is not None
        begin(store, POLICY)


def test_a_torn_database_is_moved_aside(path: Path) -> None:
    with Store.open(path) as store:
        session = begin(store, POLICY)
        store.add(session, [make(n) for n in range(2000)])
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with Store.open(path) as store:
        assert store.note is not None


def test_a_store_of_a_newer_mcpguard_is_refused_and_left_alone(path: Path) -> None:
    Store.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(StoreError) as caught:
        Store.open(path)
    assert caught.value.code == "store.newer"
    assert [file.name for file in path.parent.iterdir()] == ["events.db"]


def test_a_full_disk_is_a_store_error_and_the_store_works_again_afterwards(store: Store) -> None:
    session = begin(store, POLICY)
    with files_no_larger_than(16_384), pytest.raises(StoreError):
        for batch in range(100):
            store.add(session, [make(batch * 1000 + n, detail="x" * 200) for n in range(1000)])
    store.add(session, [make(1, op="unlink")])
    assert stored(store, session)[-1].op == "unlink"


def test_a_full_file_system_is_named_as_such(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        # Mounting needs root; the limit above holds the same promise for everybody.
        return
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", mount], check=True)
    try:
        with Store.open(mount / "events.db") as store:
            session = begin(store, POLICY)
            with pytest.raises(StoreError) as caught:
                for batch in range(100):
                    store.add(session, [make(batch * 1000 + n, detail="x" * 200) for n in range(1000)])
            assert caught.value.code == "store.full"
    finally:
        subprocess.run(["umount", mount], check=True)


def test_another_writer_that_does_not_end_is_a_busy_store_and_no_hang(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(store, POLICY)
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.01)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with Store.open(path) as other, pytest.raises(StoreError) as caught:
        other.add(session, [make(1)])
    assert caught.value.code == "store.busy"
    blocker.execute("ROLLBACK")
    blocker.close()
    store.add(session, [make(1)])


def test_a_reader_sees_whole_batches_while_a_writer_goes_on(store: Store, path: Path) -> None:
    session = begin(store, POLICY)
    problems: list[int] = []

    def read() -> None:
        with Store.open(path) as reader:
            seen = 0
            while seen < 500:
                seen = len(stored(reader, session))
                if seen % 10:
                    problems.append(seen)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(50):
        store.add(session, [make(n) for n in range(10)])
    thread.join(60)
    assert not thread.is_alive()
    assert problems == []


def test_two_runs_that_begin_at_once_make_one_store(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from mcpguard.events.store import Store; Store.open(Path(sys.argv[1]))"
    )
    runs = [subprocess.Popen([sys.executable, "-c", program, str(path)]) for _ in range(4)]
    assert [run.wait(60) for run in runs] == [0, 0, 0, 0]
    with Store.open(path) as store:
        assert store.note is None


def test_events_survive_a_writer_that_is_killed(path: Path) -> None:
    program = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path;"
        "from events_help import *; from mcpguard.events.store import Store; from mcpguard.model.event import Kind;"
        "store = Store.open(Path(sys.argv[1])); session = begin(store, make_policy(*OPEN_POLICY));"
        "store.add(session, [Event(1, session, Kind.FILE, 'open', Verdict.DENY)]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path), str(Path(__file__).parent)], check=False)
    assert done.returncode == -9
    with Store.open(path) as store:
        session = store.session()
        assert session.state is State.INTERRUPTED
        assert [event.kind for event in stored(store, session.id)] == [Kind.FILE, Kind.LOSS], (
            "and it says that it was cut off"
        )


# Sessions.


def test_a_session_comes_back_as_it_was_begun_and_ended(store: Store) -> None:
    holds = (Coverage("files", Strength.PARTIAL, "Landlock", ("a gap",), "a fix"),)
    session = begin(store, POLICY, coverage=holds, command=["agent", "\udcff"])
    assert store.session().state is State.RUNNING
    store.end_session(session, exit_code=3, now_ns=START_EPOCH_NS + 5, unsaved=2)
    found = store.session()
    assert (found.id, found.profile, found.tier, found.command) == (session, "test", "landlock", ("agent", "\\xff"))
    assert (found.coverage, found.state, found.exit_code, found.unsaved) == (holds, State.ENDED, 3, 2)
    assert (found.started_ns, found.ended_ns) == (START_EPOCH_NS, START_EPOCH_NS + 5)


def test_a_session_whose_supervisor_is_gone_is_interrupted(store: Store) -> None:
    begin(store, POLICY, supervisor=DEAD)
    assert store.session().state is State.INTERRUPTED


def test_a_recycled_pid_does_not_bring_a_session_back_to_life(store: Store) -> None:
    mine = Supervisor.current()
    begin(store, POLICY, supervisor=dataclasses.replace(mine, start=mine.start - 1))
    assert store.session().state is State.INTERRUPTED
    begin(store, POLICY, supervisor=dataclasses.replace(mine, boot="another boot"), now_ns=START_EPOCH_NS + 10**9)
    assert store.session().state is State.INTERRUPTED


def test_the_latest_session_is_the_default_and_the_beginning_of_an_id_is_enough(store: Store) -> None:
    old = begin(store, POLICY)
    new = begin(store, POLICY, now_ns=START_EPOCH_NS + 3600 * 10**9)
    assert [session.id for session in store.sessions()] == [new, old]
    assert store.session().id == new
    assert store.session(old[:13]).id == old


def test_a_beginning_that_fits_two_sessions_is_refused(store: Store) -> None:
    for _ in range(2):
        begin(store, POLICY)
    with pytest.raises(StoreError) as caught:
        store.session("2026")
    assert caught.value.code == "store.ambiguous-session"


def test_an_unknown_session_is_a_clear_error(store: Store) -> None:
    for text in (None, "nope"):
        with pytest.raises(StoreError) as caught:
            store.session(text)
        assert caught.value.code == "store.no-session"


def test_session_ids_sort_by_time_and_hold_no_confusing_letters() -> None:
    early, late = (
        new_id(START_EPOCH_NS, lambda letters: letters[-1]),
        new_id(START_EPOCH_NS + 10**9, lambda letters: letters[0]),
    )
    assert early == "20261118-110640-zzzz"
    assert early < late
    assert not set("01ilo") & set(late[-4:])


def test_the_store_lies_under_the_state_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MCPGUARD_HOME", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/some/state")
    assert database.default_path() == "/some/state/mcpguard/events.db"
    monkeypatch.setenv("HOME", "/home/somebody")
    for not_a_place in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", not_a_place)
        assert database.default_path() == "/home/somebody/.local/state/mcpguard/events.db"
    monkeypatch.setenv("MCPGUARD_HOME", "/elsewhere")
    assert database.default_path() == "/elsewhere/state/events.db"
