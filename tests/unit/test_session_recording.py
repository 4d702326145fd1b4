"""The end of a record when its writer hangs: another connection tells what is missing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from events_help import AGENT, OPEN_POLICY, make_policy

from mcpguard.events.ids import new_id
from mcpguard.events.pump import Pump
from mcpguard.events.query import Filter, events
from mcpguard.events.recorder import Recorder
from mcpguard.events.sessions import State
from mcpguard.events.store import Store
from mcpguard.session import recording
from mcpguard.session.recording import BEHIND, SKIPPED, UNRECORDED, Recording


class HangingPump(Pump):
    """Its thread hangs in a write, with the connection in its hand."""

    def __init__(self, store: Store) -> None:
        self._held, self._ends = threading.Event(), threading.Event()
        self._store = store
        self._thread = threading.Thread(target=self._hang, daemon=True)
        self._thread.start()
        assert self._held.wait(10)

    def _hang(self) -> None:
        with self._store._lock:
            self._held.set()
            self._ends.wait(60)

    def stop(self, progress: object = None) -> bool:
        return False

    def behind(self) -> int:
        return 7

    def end(self) -> None:
        self._ends.set()
        self._thread.join()


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Recording, Path]]:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    made = Recording.begin(new_id(time.time_ns()), make_policy(*OPEN_POLICY), ["agent"], "3 landlock", ())
    assert made._store is not None
    pump = HangingPump(made._store)
    made._pump = pump
    yield made, Path(made._store.path)
    pump.end()


def test_a_writer_that_hangs_is_left_and_the_loss_is_on_record(
    hanging: tuple[Recording, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    made, path = hanging
    made.stop()
    made.end(3, quiet=False)
    with Store.open(path) as store:
        assert [(e.count, e.detail) for e in events(store, made.session, Filter())] == [(7, BEHIND)]
        session = store.session(made.session)
    assert (session.state, session.exit_code) == (State.ENDED, 3)
    told = capsys.readouterr().err
    assert "the record could not be finished" in told
    assert f"the record is not complete: 7 {BEHIND}" in told


def test_where_the_disk_hangs_as_well_the_session_gets_no_end(
    hanging: tuple[Recording, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, path = hanging
    opened, answers = Store.open, threading.Event()

    def hang(*_arguments: object, **_names: object) -> Store:
        answers.wait(60)
        return opened(path)

    with monkeypatch.context() as disk:
        disk.setattr(recording, "_SECOND_TRY_S", 0.1)
        disk.setattr(Store, "open", hang)
        made.stop()
        made.end(3, quiet=False)
        with opened(path) as store:
            assert store.session(made.session).ended_ns is None
    answers.set()


def test_a_launch_that_failed_leaves_a_session_that_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    made = Recording.begin(new_id(time.time_ns()), make_policy(*OPEN_POLICY), ["agent"], "3 landlock", ())
    made.not_started(125)
    with Store.open() as store:
        session = store.session(made.session)
        assert list(events(store, made.session, Filter())) == []
    assert (session.state, session.exit_code) == (State.ENDED, 125)


@pytest.mark.parametrize(
    ("final", "told"), [({"missed": 3, "unrecorded": 2}, [(3, SKIPPED), (2, UNRECORDED)]), ({}, [])]
)
def test_programs_that_the_kernel_skipped_are_on_record_as_a_loss(
    final: dict[str, int], told: list[tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    policy = make_policy(*OPEN_POLICY)
    made = Recording.begin(new_id(time.time_ns()), policy, ["agent"], "2 bpf-modify-return", ())
    assert made._store is not None
    made._recorder = Recorder(made._store, made.session, policy, AGENT)
    made.take_final(final)
    with Store.open() as store:
        found = [(event.count, event.detail) for event in events(store, made.session, Filter()) if event.kind == "loss"]
    assert found == told
