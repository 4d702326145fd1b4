"""`mcpguard log` and `mcpguard sessions` as commands, against a real store."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from events_help import SECOND, START_EPOCH_NS, Bench, begin, connection, opened, refused
from typer.testing import CliRunner

from mcpguard.cli import log, sessions
from mcpguard.errors import StoreError, UsageError
from mcpguard.events import unrecorded
from mcpguard.events.finding import REPEATS_OF_OPENS
from mcpguard.events.missing import CUT_OFF
from mcpguard.events.sessions import Supervisor
from mcpguard.model.access import Verdict
from mcpguard.model.event import Event, Kind

APP = typer.Typer()
log.register(APP)
sessions.register(APP)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", "/ws")
    bench = Bench(tmp_path)
    bench.feed(
        refused("open", "/ws/secret/key", errno.EACCES), opened("/ws/a"), connection("192.0.2.1", Verdict.DENY, rule=2)
    )
    bench.recorder.finish()
    return bench


def run(*words: str) -> str:
    result = CliRunner().invoke(APP, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_json_is_one_object_a_line(bench: Bench) -> None:
    found = [json.loads(line) for line in run("log", "--format", "json").splitlines()]
    assert [event["seq"] for event in found] == [1, 2, 3]
    assert {event["session"] for event in found} == {bench.session}


def test_options_of_the_contract_narrow_the_output(bench: Bench) -> None:
    def found(*words: str) -> list[str]:
        return [json.loads(line)["op"] for line in run("log", "--format", "json", *words).splitlines()]

    assert found("--verdict", "deny") == ["open", "connect"]
    assert found("--kind", "net") == ["connect"]
    assert found("--path", "~/secret") == ["open"]
    assert found("--host", "192.0.2.*") == ["connect"]
    assert found("--since", "2026-11-18T11:06:41Z") == []
    assert found(bench.session[:17]) == ["open", "connect", "open"]


def test_a_table_line_holds_verdict_process_object_and_place_of_the_rule(bench: Bench) -> None:
    line = run("log", "--path", "~/secret").strip()
    for word in ("DENY", "claude[1000]", "open read", "~/secret/key", "test.yaml:12", "EACCES"):
        assert word in line
    assert "\x1b" not in line, "no colour in a pipe"


def test_a_person_is_told_that_nothing_matches_and_a_script_is_not(bench: Bench) -> None:
    for words, note in (((), f"no event of session {bench.session} matches\n"), (("--format", "json"), "")):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mcpguard", "log", "--path", "/nowhere", *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "", note)


def test_csv_has_a_header_and_a_row_per_event(bench: Bench) -> None:
    rows = list(csv.DictReader(io.StringIO(run("log", "--format", "csv"))))
    assert [row["rule_line"] for row in rows] == ["12", "12", "11"]


def test_following_an_interrupted_session_shows_it_and_ends(bench: Bench) -> None:
    dead = Supervisor(4_194_305, 1, Supervisor.current().boot)
    session = begin(bench.store, bench.policy, supervisor=dead, now_ns=START_EPOCH_NS + SECOND)
    bench.store.add(session, [Event(START_EPOCH_NS, session, Kind.PROCESS, "fork", Verdict.ALLOW)])
    found = [json.loads(line) for line in run("log", session, "--follow", "--format", "json").splitlines()]
    assert [(e["seq"], e["kind"], e.get("detail")) for e in found] == [(1, "process", None), (2, "loss", CUT_OFF)]
    for words in (("--kind", "loss"), ("--kind", "loss", "--follow")):
        assert CUT_OFF in run("log", session, *words)
    assert run("log", session, "--verdict", "deny", "--format", "json") == ""


@pytest.mark.parametrize("words", [(), ("--format", "json"), ("--format", "csv")])
def test_who_asks_for_denials_only_is_told_that_the_record_is_not_complete(
    bench: Bench, words: tuple[str, ...]
) -> None:
    asked = ["log", "--verdict", "deny", *words]
    assert "not complete" not in CliRunner().invoke(APP, asked).output
    bench.recorder.lost("records that the kernel dropped", 3)
    bench.recorder.finish()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mcpguard", *asked], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert f"the record of session {bench.session} is not complete" in done.stderr
    assert "not complete" not in done.stdout


def test_denials_of_an_incomplete_session_are_shown_as_so_many_or_more(bench: Bench) -> None:
    bench.store.end_session(bench.session, exit_code=0, now_ns=START_EPOCH_NS + SECOND)
    assert " 2  " in run("sessions")
    assert json.loads(run("sessions", "--format", "json"))["complete"] is True
    bench.store.end_session(bench.session, exit_code=0, now_ns=START_EPOCH_NS + SECOND, unsaved=3)
    assert " 2+  " in run("sessions")
    assert json.loads(run("sessions", "--format", "json"))["complete"] is False
    assert [json.loads(line)["count"] for line in run("log", "--kind", "loss", "--format", "json").splitlines()] == [3]


def test_only_counts_of_repeated_opens_missing_is_complete(bench: Bench) -> None:
    bench.recorder.lost(REPEATS_OF_OPENS, 3)
    bench.recorder.finish()
    assert json.loads(run("sessions", "--format", "json"))["complete"] is True


def test_a_run_that_could_not_be_recorded_is_named_by_the_next_reader(bench: Bench) -> None:
    for number in (1, 2):
        unrecorded.note(f"20991231-235959-aaa{number}", "claude-code", "database is locked")
    for words in (("sessions",), ("log",)):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mcpguard", *words], capture_output=True, text=True, check=True
        )
        assert "2 runs are not on record" in done.stderr
        assert "20991231-235959-aaa2 (profile claude-code): database is locked" in done.stderr
    path = Path(bench.store.path).with_name(unrecorded.NAME)
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("no json\n[]\n{}\n")
    assert unrecorded.words() is None


def test_an_unknown_session_and_a_bad_time_are_our_errors(bench: Bench) -> None:
    with pytest.raises(StoreError) as unknown:
        run("log", "nope")
    assert unknown.value.exit_code == 1
    with pytest.raises(UsageError) as misuse:
        run("log", "--since", "yesterday")
    assert misuse.value.exit_code == 2


@pytest.mark.parametrize("words", [("--verdict", "maybe"), ("--kind", "fire"), ("--format", "xml"), ("--no-such",)])
def test_a_misused_option_exits_2(bench: Bench, words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(APP, ["log", *words]).exit_code == 2


def test_a_reader_that_has_enough_ends_the_command_silently(bench: Bench) -> None:
    program = (
        "import typer; from mcpguard.cli import log, sessions; app = typer.Typer(); log.register(app);"
        "sessions.register(app); app()"
    )
    bench.feed(*[refused("open", f"/ws/secret/{n}", errno.EACCES) for n in range(3000)])
    writer = subprocess.Popen(
        [sys.executable, "-c", program, "log", "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ.copy(),
    )
    assert writer.stdout is not None and writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert writer.stderr.read() == b""
    writer.stderr.close()
    assert writer.wait(60) == 0


def test_sessions_lists_each_with_its_state_and_denials(bench: Bench) -> None:
    dead = Supervisor(4_194_305, 1, Supervisor.current().boot)
    old = begin(bench.store, bench.policy, supervisor=dead, now_ns=START_EPOCH_NS - SECOND)
    bench.store.end_session(bench.session, exit_code=7, now_ns=START_EPOCH_NS + SECOND)
    found = [json.loads(line) for line in run("sessions", "--format", "json").splitlines()]
    assert [(s["id"], s["state"], s["denied"]) for s in found] == [(bench.session, "ended", 2), (old, "interrupted", 0)]
    assert found[0]["exit_code"] == 7
    assert "exit_code" not in found[1]
    table = run("sessions")
    assert bench.session in table and "interrupted" in table


def test_sessions_tells_which_ones_ask(bench: Bench) -> None:
    begin(bench.store, bench.policy, modes=("ask", "audit"), now_ns=START_EPOCH_NS + SECOND)
    found = [json.loads(line) for line in run("sessions", "--format", "json").splitlines()]
    assert [one["modes"] for one in found] == [["ask", "audit"], []]
    assert run("sessions").count(f"{found[0]['profile']} --ask --audit ") == 1


def test_no_store_yet_is_an_empty_list_of_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    assert run("sessions", "--format", "json") == ""
    assert not (tmp_path / "state").exists()


def test_a_broken_store_is_told_on_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCPGUARD_HOME", str(tmp_path))
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "events.db").write_bytes(b"no database" * 100)
    result = CliRunner().invoke(APP, ["sessions", "--format", "json"], catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "it is kept as" in result.stderr


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, *words: str) -> list[str]:
    """The lines of a command that believes its output is a terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in run(*words).splitlines()]


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_a_terminal_shows_one_whole_line_for_each_event(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    bench.feed(refused("open", "/ws/secret/" + "a-long-name/" * 20 + "the-end", errno.EACCES))
    bench.recorder.finish()
    lines = on_a_terminal(monkeypatch, columns, "log")
    assert [line for line in lines if len(line) > columns] == []
    events = [line for line in lines if re.match(r"\d\d:\d\d:\d\d  ", line)]
    assert len(events) == 4
    assert "the-end" in events[-1]
    assert "test.yaml:" in events[-1]


def test_a_day_that_is_not_today_is_shown_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = on_a_terminal(monkeypatch, 80, "log")
    assert len([line for line in lines if re.fullmatch(r"\d{4}-\d\d-\d\d", line)]) == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", lines[0])


def test_a_pipe_gets_the_date_with_each_event_and_nothing_cut(bench: Bench) -> None:
    long = "/ws/secret/" + "a-long-name/" * 20 + "the-end"
    bench.feed(refused("open", long, errno.EACCES))
    bench.recorder.finish()
    lines = run("log").splitlines()
    assert len(lines) == 4
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in lines)
    assert long.replace("/ws/", "~/", 1) in lines[-1]


def test_a_loss_shows_how_much_was_lost() -> None:
    loss = Event(START_EPOCH_NS, "s", Kind.LOSS, "lost", Verdict.ALLOW, count=1, detail="records")
    assert re.search(r"LOSS .* 1 lost .*records", next(iter(log._table([loss], "/"))))


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_only_the_command_of_a_session_is_cut(bench: Bench, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    lines = on_a_terminal(monkeypatch, columns, "sessions")
    assert all(len(line) <= columns and line == line.rstrip() for line in lines)
    assert bench.session in lines[1]
    for heading in ("session", "state", "profile", "started", "denied", "exit"):
        assert heading in lines[0]


def test_a_session_in_a_pipe_is_shown_whole_and_without_blanks_at_its_end(bench: Bench) -> None:
    command = ("agent", "word " * 200 + "last")
    begin(bench.store, bench.policy, command=command, now_ns=START_EPOCH_NS + SECOND)
    lines = run("sessions").splitlines()
    assert lines[1].endswith("last")
    assert all(line == line.rstrip() for line in lines)
